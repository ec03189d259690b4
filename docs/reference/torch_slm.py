"""A trained SLM in PyTorch: the folder of `slm_jax export --format=hf`, without JAX.

  logits = TorchSLM("exported", num_heads=16, head_dim=64, factor=4)(recordings, "Repeat the sentence.", target_ids)

For encoders of Transformers that give a frame for each of their features (w2v-BERT 2.0), an adapter that stacks
`factor` frames (`LengthReductionConfig.kind = "stack"`), and speech before the instruction.
"""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import (
  AutoFeatureExtractor,
  AutoModel,
  AutoModelForSeq2SeqLM,
)


class TorchSLM:
  """Attributes: `encoder`, `language_model` (Transformers'), `weights` of the adapter by name."""

  def __init__(self, folder: str, *, num_heads: int, head_dim: int, factor: int):
    self.extractor = AutoFeatureExtractor.from_pretrained(Path(folder) / "speech_encoder")
    self.encoder = AutoModel.from_pretrained(Path(folder) / "speech_encoder").eval()
    self.language_model = AutoModelForSeq2SeqLM.from_pretrained(
      Path(folder) / "language_model"
    ).eval()
    self.weights = load_file(Path(folder) / "adapter.safetensors")
    self.num_heads, self.head_dim, self.factor = num_heads, head_dim, factor

  def norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.weights[f"{name}.scale"]

  def dense(self, x: torch.Tensor, name: str) -> torch.Tensor:
    return x @ self.weights[f"{name}.kernel"]

  def rotate(self, x: torch.Tensor) -> torch.Tensor:
    """Rotary positions of [B, T, N, H], halves together."""
    half = x.shape[-1] // 2
    frequency = 10_000.0 ** (-torch.arange(half) / half)
    angle = torch.arange(x.shape[1])[:, None] * frequency
    sin, cos = angle.sin()[None, :, None], angle.cos()[None, :, None]
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

  def layer(self, x: torch.Tensor, mask: torch.Tensor, name: str) -> torch.Tensor:
    y = self.norm(x, f"{name}.attention_norm")
    q, k, v = (
      self.dense(y, f"{name}.{part}").unflatten(-1, (self.num_heads, self.head_dim))
      for part in ("query", "key", "value")
    )
    q, k = self.rotate(q), self.rotate(k)
    scores = torch.einsum("btnh,bsnh->bnts", q, k) * self.head_dim**-0.5
    attention = scores.masked_fill(~mask[:, None, None], -1e9).softmax(-1)
    x = x + self.dense(torch.einsum("bnts,bsnh->btnh", attention, v).flatten(2), f"{name}.out")
    y = self.norm(x, f"{name}.mlp_norm")
    gate = torch.nn.functional.gelu(self.dense(y, f"{name}.wi_0"), approximate="tanh")
    return x + self.dense(gate * self.dense(y, f"{name}.wi_1"), f"{name}.wo")

  def adapt(self, frames: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[B, T, E], bool [B, T] -> what the LM reads [B, T / factor, D], its mask."""
    missing = -frames.shape[1] % self.factor
    frames = torch.nn.functional.pad(frames * mask[..., None], (0, 0, 0, missing))
    mask = torch.nn.functional.pad(mask, (0, missing))[:, :: self.factor]
    x = self.dense(frames.unflatten(1, (-1, self.factor)).flatten(2), "projection")
    count = sum(name.endswith("attention_norm.scale") for name in self.weights)
    for index in range(count):
      x = self.layer(x, mask, f"layer_{index}")
    return self.norm(x, "output_norm") * mask[..., None], mask

  @torch.no_grad()
  def __call__(
    self, recordings: list[np.ndarray], instruction_ids: list[int], target_ids: list[list[int]]
  ) -> list[torch.Tensor]:
    """int16 recordings at 16 kHz, ids with EOS -> for each the logits [T, V] of its target, given what precedes."""
    waves = [wave / np.float32(32768) for wave in recordings]
    inputs = self.extractor(
      waves, sampling_rate=16_000, return_tensors="pt", return_attention_mask=True
    )
    frames = self.encoder(**inputs).last_hidden_state
    speech, mask = self.adapt(frames, inputs["attention_mask"].bool())
    text = self.language_model.get_input_embeddings()(torch.tensor([instruction_ids]))
    found = []
    # One at a time: the instruction follows the last frame, without a gap.
    for row, real, target in zip(speech, mask, target_ids, strict=True):
      joined = torch.cat([row[real][None], text], dim=1)
      shifted = torch.tensor([[self.language_model.config.decoder_start_token_id, *target[:-1]]])
      found.append(self.language_model(inputs_embeds=joined, decoder_input_ids=shifted).logits[0])
    return found
