"""The adapter: the one trained part, from speech frames to the LM's embedding space.

Length reduction, a projection to the LM's width, pre-norm transformer layers, and a final RMS norm whose scale starts
at the RMS of the LM's token embedding, so that speech enters the LM as loud as text does (SLM §3, width and FFN are
not published; see `docs/decisions.md`).

With `ctc_embeddings` each frame also brings the LM embedding that the encoder's CTC head expects there (LegoSLM,
arXiv:2505.11352), and the fresh adapter passes exactly that on: training starts from what CTC recognised and learns
what CTC got wrong, instead of learning the lexicon.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from slm_jax.models.length_reduction import LengthReduction, LengthReductionConfig
from slm_jax.models.partitioning import keep_rows_apart

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
  # Needs an encoder whose CTC classes are the LM's tokens, the blank in place of padding.
  ctc_embeddings: bool = False

  def __post_init__(self):
    if self.head_dim % 2:
      raise ValueError(f"head_dim={self.head_dim}: rotary positions need an even width")
    if self.num_layers < 0:
      raise ValueError(f"num_layers={self.num_layers}: expected 0 (projection only) or more")
    for name in ("num_heads", "head_dim", "mlp_dim") if self.num_layers else ():
      if getattr(self, name) < 1:
        raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")


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


def expected_embedding(ctc_logits: jax.Array, token_embedding: jax.Array) -> jax.Array:
  """Mean of the token embeddings under the CTC posterior, the blank's being 0 (arXiv:2505.11352).

  ctc_logits [B, T, V], class 0 the blank; token_embedding [V or more, D] -> [B, T, D].
  """
  posterior = jax.nn.softmax(ctc_logits.astype(jnp.float32), axis=-1)[..., 1:]
  return posterior.astype(token_embedding.dtype) @ token_embedding[1 : ctc_logits.shape[-1]]


def _pass_on_embedding(group: int):
  """Initialiser of a kernel [group * (E + D), D]: the output is the mean of the group's D-wide ends."""

  def init(key: jax.Array, shape: tuple[int, int], dtype=jnp.float32) -> jax.Array:
    del key
    frame = jnp.eye(shape[0] // group, shape[1], shape[1] - shape[0] // group, dtype)
    return jnp.tile(frame, (group, 1)) / group

  return init


def _dense(
  features: int,
  axes: tuple[str, str],
  dtype: str,
  name: str | None = None,
  init: Callable[..., Any] = _init,
) -> nn.Dense:
  kernel_init = nn.with_logical_partitioning(init, axes)
  return nn.Dense(features, use_bias=False, dtype=dtype, kernel_init=kernel_init, name=name)


def _norm(dtype: str, name: str | None = None) -> nn.RMSNorm:
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
    # A residual branch that starts at 0 leaves the CTC embeddings as they are.
    last = nn.initializers.zeros if cfg.ctc_embeddings else _init
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
    x = x + dropout(_dense(width, ("joined_kv", "embed"), cfg.dtype, "out", last)(y))

    y = _norm(cfg.dtype, "mlp_norm")(x)
    gate = nn.gelu(_dense(cfg.mlp_dim, ("embed", "mlp"), cfg.dtype, "wi_0")(y))
    y = gate * _dense(cfg.mlp_dim, ("embed", "mlp"), cfg.dtype, "wi_1")(y)
    return x + dropout(_dense(width, ("mlp", "embed"), cfg.dtype, "wo", last)(y))


class Adapter(nn.Module):
  """Speech frames -> embeddings that the LM reads as if they were tokens.

  `frozen_part` is what neither learns nor draws: its results can be kept. `learned_part` is the rest.
  """

  config: AdapterConfig
  output_dim: int

  def setup(self):
    cfg = self.config
    reduction = cfg.length_reduction
    self.length_reduction = LengthReduction(reduction)
    init = _pass_on_embedding(reduction.output_dim(1)) if cfg.ctc_embeddings else _init
    axes = ("frames_in", "embed")
    self.projection = _dense(self.output_dim, axes, cfg.dtype, init=init)
    for index in range(cfg.num_layers):
      setattr(self, f"layer_{index}", AdapterLayer(cfg))
    self.output_norm = _norm(cfg.dtype)

  def __call__(
    self,
    frames: jax.Array,
    mask: jax.Array,
    ctc_logits: jax.Array | None = None,
    token_embedding: jax.Array | None = None,
    *,
    blank_id: int = 0,
    train: bool = False,
  ) -> tuple[jax.Array, jax.Array]:
    """Adapts.

    Args:
      frames: [B, T, E].
      mask: bool [B, T], True = real.
      ctc_logits: [B, T, V] or None; needed by the CTC kinds of length reduction and `ctc_embeddings`.
      token_embedding: the LM's, [V or more, D]; needed by `ctc_embeddings`.
      blank_id: class of `ctc_logits` that is the blank.
      train: turns on dropout and random length reduction.

    Returns:
      ([B, T', D], mask bool [B, T']).

    Raises:
      ValueError: `ctc_embeddings` without logits.
    """
    x, mask = self.frozen_part(frames, mask, ctc_logits, token_embedding, blank_id=blank_id)
    return self.learned_part(x, mask, train=train)

  def frozen_part(
    self,
    frames: jax.Array,
    mask: jax.Array,
    ctc_logits: jax.Array | None = None,
    token_embedding: jax.Array | None = None,
    *,
    blank_id: int = 0,
  ) -> tuple[jax.Array, jax.Array]:
    """Everything before the first weight and the first random choice: (x, mask) for `learned_part`.

    Arguments and errors as of `__call__`. x holds real frames first, then zeros.
    """
    cfg = self.config
    if cfg.ctc_embeddings:
      if ctc_logits is None or token_embedding is None:
        raise ValueError("ctc_embeddings=True needs CTC logits, but the encoder has no CTC head")
      expected = expected_embedding(ctc_logits, token_embedding)
      frames = jnp.concatenate([frames, expected.astype(frames.dtype)], axis=-1)
    if cfg.length_reduction.is_fixed:
      return self.length_reduction(frames, mask, ctc_logits, blank_id=blank_id)
    return jnp.where(mask[..., None], frames, 0), mask

  def learned_part(
    self, x: jax.Array, mask: jax.Array, *, train: bool = False
  ) -> tuple[jax.Array, jax.Array]:
    """What `frozen_part` returned, to ([B, T', D], mask bool [B, T'])."""
    cfg = self.config
    if not cfg.length_reduction.is_fixed:
      x, mask = self.length_reduction(x, mask, train=train)
    x = keep_rows_apart(self.projection(x))
    for index in range(cfg.num_layers):
      x = keep_rows_apart(getattr(self, f"layer_{index}")(x, mask, train=train))
    return self.output_norm(x) * mask[..., None], mask


def scale_output_norm(adapter_params: dict, token_embedding: jax.Array) -> dict:
  """Sets the output norm's scale to the RMS of the LM's token embedding [V, D]."""
  # The embedding may be spread over a mesh, where the adapter is not yet: only the number moves.
  rms = np.asarray(_rms(token_embedding))
  scale = adapter_params["output_norm"]["scale"]
  return {**adapter_params, "output_norm": {"scale": jnp.full_like(scale, rms)}}


@jax.jit
def _rms(x: jax.Array) -> jax.Array:
  return jnp.sqrt(jnp.mean(jnp.square(x.astype(jnp.float32))))
