"""How the project's sources become SeqIO tasks: one function for each kind of task."""

import seqio
import tensorflow as tf

from slm_jax.data.example_source import ExampleSource
from slm_jax.data.preprocessors import decode_pcm, tokenize_fields

# Examples waiting to be shuffled are part of every saved data position, audio included; shards are
# shuffled as well.
SPEECH_SHUFFLE_BUFFER = 128
TEXT_SHUFFLE_BUFFER = 2_000


class SpeechTask(seqio.Task):
  """A task whose cache is read one example from each shard in turn, not sixteen.

  SeqIO reads sixteen shards at once and keeps two blocks of each, and of the next sixteen, in
  memory; all of it becomes part of a saved data position, audio included. Blocks of one make a
  position a sixteenth as large and the order better mixed.
  """

  def _get_cached_source(self, split: str, file_shuffle_buffer_size: int | None = None):
    source = super()._get_cached_source(split, file_shuffle_buffer_size)
    source._block_length = 1
    return source


def add_speech_task(
  name: str, source: ExampleSource, vocabulary: seqio.Vocabulary, *, instructions: bool = True
) -> seqio.Task:
  """Registers speech with an instruction (audio, inputs, targets) or without (audio, targets).

  The source's examples have `audio` (PCM16 bytes at 16 kHz), `target` and, with instructions,
  `instruction`. They are cached as they are: the vocabulary may change without making the audio
  again.
  """
  fields = {"targets": ("target",)}
  if instructions:
    fields["inputs"] = ("instruction",)
  tokens = {feature: seqio.Feature(vocabulary, dtype=tf.int32) for feature in fields}
  return seqio.TaskRegistry.add(
    name,
    source=source,
    preprocessors=[
      seqio.CacheDatasetPlaceholder(required=True),
      decode_pcm,
      tokenize_fields(fields),
      seqio.preprocessors.append_eos,
    ],
    output_features={"audio": seqio.ContinuousFeature(dtype=tf.int16), **tokens},
    shuffle_buffer_size=SPEECH_SHUFFLE_BUFFER,
    task_cls=SpeechTask,
  )


def add_text_task(name: str, source: ExampleSource, vocabulary: seqio.Vocabulary) -> seqio.Task:
  """Registers text to text (inputs, targets); inputs are the sentence, then the instruction."""
  return seqio.TaskRegistry.add(
    name,
    source=source,
    preprocessors=[
      seqio.CacheDatasetPlaceholder(required=True),
      tokenize_fields({"inputs": ("sentence", "instruction"), "targets": ("target",)}),
      seqio.preprocessors.append_eos,
    ],
    output_features={
      feature: seqio.Feature(vocabulary, dtype=tf.int32) for feature in ("inputs", "targets")
    },
    shuffle_buffer_size=TEXT_SHUFFLE_BUFFER,
  )
