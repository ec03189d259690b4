"""BEST-RQ: pre-training a speech encoder without transcripts (arXiv:2202.01855; in USM: arXiv:2303.01037 §3.1).

Spans of the features are replaced by noise, and the encoder tells, for every frame that it could not
see, which code of a random quantiser the hidden features have. Projection and codebooks are drawn
once and never trained; USM has 16 codebooks with a softmax each.

B batch, T encoder frames, R features of one frame (R = F bins of each of the frames it stands for),
C codebooks, K codes of each, E width of a code.
"""

import dataclasses
from typing import cast

import jax
import jax.numpy as jnp
from flax import linen as nn

from slm_jax.models.conformer import ConformerConfig
from slm_jax.models.length_reduction import group
from slm_jax.models.speech_encoders.usm import USMEncoder
from slm_jax.models.subsampling import TIME_REDUCTION


@dataclasses.dataclass(frozen=True, kw_only=True)
class BestRQConfig:
  """The quantiser and the masking; spans count features (10 ms). The numbers are the papers'."""

  num_codebooks: int = 16
  codebook_size: int = 8192
  code_dim: int = 16
  mask_probability: float = 0.01
  mask_span: int = 40
  noise_std: float = 0.1
  seed: int = 0

  def __post_init__(self):
    for name in ("num_codebooks", "codebook_size", "code_dim", "mask_span"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
    if self.mask_span < 2 * TIME_REDUCTION:
      raise ValueError(
        f"mask_span={self.mask_span}: expected at least {2 * TIME_REDUCTION}, so that a span hides a "
        "frame of the encoder wherever it begins"
      )
    if not 0 < self.mask_probability < 1:
      raise ValueError(
        f"mask_probability={self.mask_probability}: expected a share between 0 and 1"
      )


def codes(features: jax.Array, config: BestRQConfig) -> jax.Array:
  """Nearest codes by angle, of frames as the encoder's subsampling groups them.

  Args:
    features: log-mel, about normal, [B, T', F].

  Returns:
    int32 [B, ceil(T' / 4), C]: argmin_k | c_k / |c_k| - A x / |A x| |, ibid. §3.1.
  """
  x = group(features, TIME_REDUCTION)
  x = x.reshape(*x.shape[:2], -1)  # [B, T, R]
  projection_key, code_key = jax.random.split(jax.random.key(config.seed))
  init = nn.initializers.xavier_uniform()
  shape = (config.num_codebooks, config.codebook_size, config.code_dim)
  projection = init(projection_key, (x.shape[-1], shape[0] * shape[2]), jnp.float32)
  codebooks = jax.random.normal(code_key, shape)
  codebooks /= jnp.linalg.norm(codebooks, axis=-1, keepdims=True)
  projected = (x @ projection).reshape(*x.shape[:2], shape[0], shape[2])
  # Of vectors of length 1 the nearest is the one with the largest product; the length of the
  # projection changes nothing about which that is.
  nearest = jax.lax.map(
    lambda one: jnp.argmax(jnp.einsum("BTE,KE->BTK", one[0], one[1]), axis=-1),
    (jnp.moveaxis(projected, 2, 0), codebooks),
  )
  return jnp.moveaxis(nearest, 0, -1).astype(jnp.int32)


def hidden_spans(key: jax.Array, mask: jax.Array, config: BestRQConfig) -> jax.Array:
  """Which features are hidden, bool [B, T']: a span begins at each with `mask_probability`."""
  starts = jax.random.bernoulli(key, config.mask_probability, mask.shape)
  begun = jnp.cumsum(starts, axis=1)
  before = jnp.pad(begun, ((0, 0), (config.mask_span, 0)))[:, : mask.shape[1]]
  return (begun > before) & mask


class BestRQ(nn.Module):
  """The encoder on masked features, and the kernels of the codebooks' softmaxes."""

  encoder_config: ConformerConfig
  config: BestRQConfig

  def setup(self):
    cfg = self.config
    self.encoder = USMEncoder(self.encoder_config)
    init = nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=1, out_axis=2)
    self.heads = cast(
      jax.Array,
      self.param(
        "heads",
        nn.with_logical_partitioning(init, ("codebooks", "embed", "vocab")),
        (cfg.num_codebooks, self.encoder_config.model_dim, cfg.codebook_size),
      ),
    )

  def __call__(
    self, audio: jax.Array, lengths: jax.Array, *, train: bool = False
  ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Encodes with spans hidden (rng "best_rq").

    Args:
      audio, lengths, train: as of `USMEncoder`.

    Returns:
      (frames [B, T, D]; codes int32 [B, T, C]; bool [B, T], True where a frame was hidden whole; the
      heads' kernels [C, D, K]).
    """
    features, mask = self.encoder.features(audio, lengths)
    span_key, noise_key = jax.random.split(self.make_rng("best_rq"))
    hidden = hidden_spans(span_key, mask, self.config)
    noise = self.config.noise_std * jax.random.normal(noise_key, features.shape)
    encoded = self.encoder.encode_features(
      jnp.where(hidden[..., None], noise, features), mask, train=train
    )
    # What lies past the end of a row does not stand in the way of its last frame.
    whole = group(hidden | ~mask, TIME_REDUCTION).all(axis=-1) & encoded.mask
    return encoded.frames, codes(features, self.config), whole, self.heads
