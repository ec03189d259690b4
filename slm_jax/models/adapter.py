"""The adapter: the one trained part, from speech frames to the LM's embedding space.

Length reduction, a projection to the LM's width, pre-norm transformer layers, and a final RMS norm whose scale starts
at the RMS of the LM's token embedding, so that speech enters the LM as loud as text does (SLM §3, width and FFN are
not published; see `docs/decisions.md`).
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from slm_jax.models.length_reduction import LengthReduction, LengthReductionConfig

_init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdapterConfig:
  """Shape of the adapter; its output width is the LM's."""

  num_layers: int = 2
  num_heads: int
  head_dim: int
  mlp_dim: int
  length_reduction: LengthReductionConfig
  dropout_rate: float = 0.0
  dtype: str = "float32"

  def __post_init__(self):
    if self.head_dim % 2:
      raise ValueError(f"head_dim={self.head_dim}: rotary positions need an even width")
    if self.num_layers < 0:
      raise ValueError(f"num_layers={self.num_layers}: expected 0 (projection only) or more")


def rotate(x: jax.Array, positions: jax.Array) -> jax.Array:
  """Rotary position embedding (Su et al., arXiv:2104.09864 §3.2) of x [B, T, N, H] at positions [T]."""
  half = x.shape[-1] // 2
  frequency = 10_000.0 ** (-jnp.arange(half) / half)
  angle = positions[:, None] * frequency  # [T, H/2]
  sin, cos = jnp.sin(angle)[None, :, None], jnp.cos(angle)[None, :, None]
  first, second = x[..., :half], x[..., half:]
  return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1).astype(
    x.dtype
  )


def _dense(features: int, axes: tuple[str, str], dtype: str, name: str) -> nn.Dense:
  kernel_init = nn.with_logical_partitioning(_init, axes)
  return nn.Dense(features, use_bias=False, dtype=dtype, kernel_init=kernel_init, name=name)


def _norm(dtype: str, name: str) -> nn.RMSNorm:
  scale_init = nn.with_logical_partitioning(nn.initializers.ones, ("embed",))
  return nn.RMSNorm(epsilon=1e-6, dtype=dtype, scale_init=scale_init, name=name)


class AdapterLayer(nn.Module):
  """Pre-norm self-attention with rotary positions, then a gated-GELU FFN."""

  config: AdapterConfig

  @nn.compact
  def __call__(self, x: jax.Array, mask: jax.Array, *, train: bool = False) -> jax.Array:
    """x [B, T, D], mask bool [B, T] (True = real) -> [B, T, D]."""
    cfg, width = self.config, x.shape[-1]
    dropout = nn.Dropout(cfg.dropout_rate, deterministic=not train)
    joined = cfg.num_heads * cfg.head_dim
    positions = jnp.arange(x.shape[1])

    y = _norm(cfg.dtype, "attention_norm")(x)
    q, k, v = (
      _dense(joined, ("embed", "joined_kv"), cfg.dtype, name)(y).reshape(
        *y.shape[:2], cfg.num_heads, cfg.head_dim
      )
      for name in ("query", "key", "value")
    )
    q, k = rotate(q, positions), rotate(k, positions)
    scores = jnp.einsum("BTNH,BSNH->BNTS", q, k).astype(jnp.float32) * cfg.head_dim**-0.5
    # A finite floor: a row of padding only has no real key, and -inf everywhere would give NaN.
    scores = jnp.where(mask[:, None, None, :], scores, -1e9)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    y = jnp.einsum("BNTS,BSNH->BTNH", weights, v).reshape(*x.shape[:2], joined)
    x = x + dropout(_dense(width, ("joined_kv", "embed"), cfg.dtype, "out")(y))

    y = _norm(cfg.dtype, "mlp_norm")(x)
    gate = nn.gelu(_dense(cfg.mlp_dim, ("embed", "mlp"), cfg.dtype, "wi_0")(y))
    y = gate * _dense(cfg.mlp_dim, ("embed", "mlp"), cfg.dtype, "wi_1")(y)
    return x + dropout(_dense(width, ("mlp", "embed"), cfg.dtype, "wo")(y))


class Adapter(nn.Module):
  """Speech frames -> embeddings that the LM reads as if they were tokens."""

  config: AdapterConfig
  output_dim: int

  @nn.compact
  def __call__(
    self,
    frames: jax.Array,
    mask: jax.Array,
    ctc_logits: jax.Array | None = None,
    *,
    train: bool = False,
  ) -> tuple[jax.Array, jax.Array]:
    """frames [B, T, E], mask bool [B, T], ctc_logits [B, T, V] or None -> ([B, T', D], mask bool [B, T'])."""
    cfg = self.config
    reduction = LengthReduction(cfg.length_reduction, name="length_reduction")
    x, mask = reduction(frames, mask, ctc_logits, train=train)
    x = _dense(self.output_dim, ("frames_in", "embed"), cfg.dtype, "projection")(x)
    for index in range(cfg.num_layers):
      x = AdapterLayer(cfg, name=f"layer_{index}")(x, mask, train=train)
    return _norm(cfg.dtype, "output_norm")(x) * mask[..., None], mask


def scale_output_norm(adapter_params: dict, token_embedding: jax.Array) -> dict:
  """Sets the output norm's scale to the RMS of the LM's token embedding [V, D]."""
  rms = jnp.sqrt(jnp.mean(jnp.square(token_embedding.astype(jnp.float32))))
  scale = adapter_params["output_norm"]["scale"]
  return {**adapter_params, "output_norm": {"scale": jnp.full_like(scale, rms)}}
