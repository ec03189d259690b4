"""Random T5-family models of Transformers on PyTorch, and inputs for both sides."""

import numpy as np
import torch

SHAPE = {
  "vocab_size": 96,
  "d_model": 32,
  "d_kv": 8,
  "d_ff": 48,
  "num_layers": 2,
  "num_decoder_layers": 3,
  "num_heads": 4,
  "dropout_rate": 0.0,
}
RNG = np.random.default_rng(0)
# Longer than relative_attention_max_distance / 4, so that several logarithmic buckets are in use.
SOURCE, TARGET = 40, 6
MASK = np.arange(SOURCE) < np.array([SOURCE, 17, 5])[:, None]
MASK[0, 3:5] = False  # a hole: speech of another length stands before the text
TOKENS = np.where(MASK, RNG.integers(2, 96, (3, SOURCE)), 0)
LABELS = RNG.integers(2, 96, (3, TARGET))
DECODER_TOKENS = np.pad(LABELS, ((0, 0), (1, 0)))[:, :-1]


def torch_model(model_class, config, *, own_head: bool):
  """Random weights, large enough that tokens differ in likelihood and positions matter."""
  torch.manual_seed(1)
  model = model_class(config).eval()
  if own_head:
    head = 0.5 * torch.randn_like(model.shared.weight)
    head[1] *= 2.0  # so that some sequences end early
    model.lm_head.weight = torch.nn.Parameter(head)
  with torch.no_grad():
    for name, parameter in model.named_parameters():
      if "relative_attention_bias" in name:
        parameter.normal_(std=2.0)
      elif "layer_norm" in name:
        parameter.uniform_(0.5, 1.5)
      elif name == "shared.weight":
        parameter.mul_(0.3)
      elif name != "lm_head.weight":
        parameter.mul_(1.5)
  return model


def torch_forward(model, *, decoder_input_ids=DECODER_TOKENS, **inputs):
  mask = torch.tensor(MASK.astype(np.int64))
  decoder_input_ids = torch.tensor(decoder_input_ids)
  return model(attention_mask=mask, decoder_input_ids=decoder_input_ids, **inputs)
