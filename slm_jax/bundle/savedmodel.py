"""Exports a whole model as a TensorFlow SavedModel, by jax2tf: what TensorFlow Serving runs."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow as tf
from jax.experimental import jax2tf

from slm_jax.bundle.atomic_folder import atomic_folder
from slm_jax.bundle.stablehlo import ExportedShapes
from slm_jax.interop.safetensors_folder import TOKENIZER_NAME
from slm_jax.models.decoding import generate
from slm_jax.models.generation_config import GenerationConfig
from slm_jax.models.speech_language_model import SpeechLanguageModel
from slm_jax.models.t5 import T5


def export_savedmodel(
  model: SpeechLanguageModel, output: Path | str, shapes: ExportedShapes
) -> Path:
  """Writes the SavedModel and `spiece.model`; the folder appears when it is whole.

  Its signature `serving_default` takes audio int16 [B, S] at 16 kHz, lengths int32 [B] and prompt
  int32 [B, P] (pad 0, EOS last), and gives ids int32 [B, T], greedy.

  Raises:
    UserError: `output` is taken.
  """
  lm, config = (
    model.model.config.language_model,
    GenerationConfig(max_new_tokens=shapes.max_new_tokens),
  )

  def answer(params: dict, audio: jax.Array, lengths: jax.Array, prompt: jax.Array) -> jax.Array:
    encoded: Any = model.model.apply({"params": params}, audio, lengths, prompt, method="encode")
    memory, mask = encoded
    found = generate(T5(lm), params["language_model"], memory, mask, config)
    return found.ids.astype(jnp.int32)

  converted = jax2tf.convert(answer, with_gradient=False)
  leaves, structure = jax.tree.flatten(model.params)
  module: Any = tf.Module()
  module.weights = [tf.Variable(tf.constant(np.asarray(leaf)), trainable=False) for leaf in leaves]
  batch = shapes.batch_size

  def serve(audio, lengths, prompt):
    params = jax.tree.unflatten(structure, module.weights)
    return {"ids": converted(params, audio, lengths, prompt)}

  signature = [
    tf.TensorSpec([batch, model.max_samples], tf.int16, "audio"),
    tf.TensorSpec([batch], tf.int32, "lengths"),
    tf.TensorSpec([batch, shapes.prompt_length], tf.int32, "prompt"),
  ]
  module.serve = tf.function(serve, input_signature=signature, autograph=False)
  with atomic_folder(Path(output)) as partial:
    tf.saved_model.save(module, str(partial), signatures={"serving_default": module.serve})
    (partial / TOKENIZER_NAME).write_bytes(model.tokenizer.serialized_model_proto())
  return Path(output)
