"""Writes a pre-trained part as the folder that adapter runs load as a frozen base."""

import hashlib
import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np

from slm_jax.interop.hf_t5 import save_language_model
from slm_jax.interop.speech_encoder_folder import save_speech_encoder
from slm_jax.training.recipes import (
  BestRQRecipe,
  LanguageModelRecipe,
  SpeechEncoderRecipe,
  resolve_path,
)


def write_model(
  recipe: LanguageModelRecipe | SpeechEncoderRecipe | BestRQRecipe, params: dict, output_dir: str
) -> str:
  """Writes bf16 safetensors, config and tokenizer (if any) to `output_dir`; returns the weights' SHA-256."""
  small = jax.tree.map(lambda x: np.asarray(x).astype(ml_dtypes.bfloat16), params)
  tokenizer = None if isinstance(recipe, BestRQRecipe) else resolve_path(recipe.tokenizer)
  output = Path(output_dir)
  if isinstance(recipe, LanguageModelRecipe):
    save_language_model(output, recipe.config, small["language_model"], tokenizer)
  else:
    encoder = {k: v for k, v in small["speech_encoder"].items() if k != "intermediate_ctc_head"}
    save_speech_encoder(output, recipe.config, encoder, tokenizer)
  digest = hashlib.sha256((output / "model.safetensors").read_bytes()).hexdigest()
  print(f"[slm_jax] wrote {output}; model.safetensors SHA-256 {digest}", file=sys.stderr)
  return digest
