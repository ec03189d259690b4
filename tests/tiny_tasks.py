"""A dozen synthetic utterances as SeqIO tasks, for running the command line from end to end."""

import seqio
import tensorflow as tf

from slm_jax.data.speech_corpus import MiniSpeechSource
from slm_jax.data.speech_tasks import add_speech_task
from tasks.mini import VOCABULARY

for _name, _kind in (("tiny_asr", "repeat"), ("tiny_ast", "translate")):
  add_speech_task(
    _name, MiniSpeechSource(_kind, {"train": 12, "validation": 5}, seed=7), VOCABULARY
  )
seqio.MixtureRegistry.add("tiny_slm", [("tiny_asr", 1.0), ("tiny_ast", 1.0)])


@seqio.map_over_dataset(num_seeds=1)
def _louder_or_softer(example, seed):
  gain = tf.random.stateless_uniform([], seed, 0.5, 1.0)
  return {**example, "audio": tf.cast(tf.cast(example["audio"], tf.float32) * gain, tf.int16)}


_asr = seqio.TaskRegistry.get("tiny_asr")
seqio.TaskRegistry.add(
  "tiny_altered",
  source=_asr.source,
  preprocessors=[*_asr.preprocessors, _louder_or_softer],
  output_features=_asr.output_features,
)
