"""A dozen synthetic utterances as SeqIO tasks, for running the command line from end to end."""

import seqio

from slm_jax.data.speech_corpus import MiniSpeechSource
from slm_jax.data.speech_tasks import add_speech_task
from tasks.mini import VOCABULARY

for _name, _kind in (("tiny_asr", "repeat"), ("tiny_ast", "translate")):
  add_speech_task(
    _name, MiniSpeechSource(_kind, {"train": 12, "validation": 5}, seed=7), VOCABULARY
  )
seqio.MixtureRegistry.add("tiny_slm", [("tiny_asr", 1.0), ("tiny_ast", 1.0)])
