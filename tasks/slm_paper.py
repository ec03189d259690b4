"""The paper's training mixture over public corpora, with its one instruction for each task.

    slm_jax train --gin.MIXTURE_OR_TASK_NAME="'slm_paper'" --gin.MIXTURE_OR_TASK_MODULE="'tasks.slm_paper'"

`slm_paper_asr` and `slm_paper_ast` are its parts, and each corpus is a task: see
`slm_jax tasks list` and docs/datasets.md. $SLM_JAX_VOCABULARY names the LM's SentencePiece model.

The paper's recognition data are not public; the corpora here stand in for them. Its mixing rates
are not known: the shares and the temperature below are ours.
"""

import seqio

from slm_jax.data.datasets import covost2, fleurs, wordings
from slm_jax.data.datasets.registration import CorpusTasks, mix_by_size
from slm_jax.data.vocabulary import vocabulary

TEMPERATURE = 2.0
SHARES = {"asr": 0.5, "ast": 0.5}

_tasks = CorpusTasks("slm_paper", wordings.PAPER, vocabulary())
_asr = [
  _tasks.librispeech(),
  *(_tasks.covost2_asr(language) for language in covost2.INTO_ENGLISH),
]
_ast = [_tasks.covost2(language, "en") for language in covost2.INTO_ENGLISH]

seqio.MixtureRegistry.add(
  "slm_paper",
  [
    (mix_by_size("slm_paper_asr", _asr, TEMPERATURE), SHARES["asr"]),
    (mix_by_size("slm_paper_ast", _ast, TEMPERATURE), SHARES["ast"]),
  ],
)

# For scoring alone.
for _language in fleurs.LANGUAGES:
  _tasks.fleurs_asr(_language)
  if _language != "en_us":
    _tasks.fleurs(_language, "en_us")
