"""The paper's training mixture over public corpora, with its one instruction for each task.

    slm_jax train --gin.MIXTURE_OR_TASK_NAME="'slm_paper'" --gin.MIXTURE_OR_TASK_MODULE="'tasks.slm_paper'"

`slm_paper_asr`, `slm_paper_ast` and `slm_paper_instruction` are its parts; every corpus is a task too,
`slm_paper_<corpus>…`, see docs/datasets.md. $SLM_JAX_VOCABULARY names the LM's SentencePiece model,
$SLM_JAX_MANUAL_DIR the folder of word lists.

The paper's recognition data are not public: the corpora here stand in for them. Its wordings and
mixing rates are not known: those here are ours.
"""

from slm_jax.data.datasets import wordings
from slm_jax.data.datasets.registration import mix_kinds, register_all
from slm_jax.data.vocabulary import vocabulary

SHARES = {"asr": 0.45, "ast": 0.45, "instruction": 0.1}
TEMPERATURE = 2.0

TRAINED = register_all("slm_paper", wordings.PAPER, vocabulary())
mix_kinds("slm_paper", TRAINED, SHARES, TEMPERATURE)
