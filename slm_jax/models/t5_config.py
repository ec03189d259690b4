"""Shape of a T5-family model; `T5Config` is part of `slm_jax.models.t5`."""

import dataclasses

from slm_jax.models.quantization import WEIGHT_KINDS

ACTIVATIONS = ("gelu", "relu", "silu", "linear")
COMPUTE_TYPES = ("float32", "bfloat16")
REMAT_POLICIES = ("none", "full", "dots")


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Config:
  """T5 (arXiv:1910.10683), T5 1.1, mT5 (arXiv:2010.11934) and umT5 by a few switches.

  `mlp_activations` has one entry per input projection of the FFN; their results are multiplied.
  ("gelu", "linear") is the gated GELU of T5 1.1 and mT5 (tanh approximation), ("relu",) is T5 1.0.
  `logits_via_embedding` ties the output to the token embedding and scales the hidden state by
  emb_dim**-0.5 (T5 1.0). `per_layer_relpos` gives every layer its own relative position bias
  (umT5); otherwise a stack shares one. `dtype` is the type of computation; parameters are created
  in fp32, may be loaded in any float type, and are cast where they are used.
  """

  vocab_size: int
  emb_dim: int
  num_heads: int
  head_dim: int
  mlp_dim: int
  num_encoder_layers: int
  num_decoder_layers: int
  mlp_activations: tuple[str, ...] = ("gelu", "linear")
  logits_via_embedding: bool = False
  relpos_num_buckets: int = 32
  relpos_max_distance: int = 128
  per_layer_relpos: bool = False
  layer_norm_epsilon: float = 1e-6
  dropout_rate: float = 0.0
  dtype: str = "float32"
  # "int8": kernels and embeddings are stored as `slm_jax.models.quantization` says; frozen ones only.
  weights: str = "float"
  # Low-rank updates (LoRA, arXiv:2106.09685) of every attention's query and value, 0 for none.
  lora_rank: int = 0
  # The backward pass recomputes: nothing, whole layers, or all but matrix products with weights.
  remat: str = "none"
  # Padding, and the token that decoding starts from.
  pad_id: int = 0
  eos_id: int = 1

  def __post_init__(self):
    sizes = ("vocab_size", "emb_dim", "num_heads", "head_dim", "mlp_dim")
    for name in (*sizes, "num_encoder_layers", "num_decoder_layers"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
    if not 1 <= len(self.mlp_activations) <= 2 or set(self.mlp_activations) - set(ACTIVATIONS):
      raise ValueError(
        f"mlp_activations={self.mlp_activations}: expected one or two of {ACTIVATIONS}"
      )
    if self.relpos_num_buckets % 4 or self.relpos_num_buckets < 4:
      raise ValueError(f"relpos_num_buckets={self.relpos_num_buckets}: expected a multiple of 4")
    if self.relpos_max_distance <= self.relpos_num_buckets // 2:
      raise ValueError(
        f"relpos_max_distance={self.relpos_max_distance}: expected more than half of "
        f"relpos_num_buckets={self.relpos_num_buckets}"
      )
    if self.lora_rank < 0:
      raise ValueError(f"lora_rank={self.lora_rank}: expected 0, for none, or more")
    if not 0.0 <= self.dropout_rate < 1.0:
      raise ValueError(f"dropout_rate={self.dropout_rate}: expected a value in [0, 1)")
    if self.dtype not in COMPUTE_TYPES:
      raise ValueError(f"dtype={self.dtype!r}: expected one of {COMPUTE_TYPES}")
    if self.weights not in WEIGHT_KINDS:
      raise ValueError(f"weights={self.weights!r}: expected one of {WEIGHT_KINDS}")
    if self.remat not in REMAT_POLICIES:
      raise ValueError(f"remat={self.remat!r}: expected one of {REMAT_POLICIES}")
    for name in ("pad_id", "eos_id"):
      if not 0 <= getattr(self, name) < self.vocab_size:
        raise ValueError(f"{name}={getattr(self, name)}: expected an id below {self.vocab_size=}")
