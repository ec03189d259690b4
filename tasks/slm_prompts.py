"""As tasks.slm_paper, each example with one of many wordings of its task's instruction.

    slm_jax train --gin.MIXTURE_OR_TASK_NAME="'slm_prompts'" --gin.MIXTURE_OR_TASK_MODULE="'tasks.slm_prompts'"

Which wording an example gets depends on its id alone. A model that has only ever seen one wording
tends to take the task from the audio instead of from the instruction.
"""

from slm_jax.data.datasets import wordings
from slm_jax.data.datasets.registration import mix_kinds, register_all
from slm_jax.data.vocabulary import vocabulary

SHARES = {"asr": 0.45, "ast": 0.45, "instruction": 0.1}
TEMPERATURE = 2.0

TRAINED = register_all("slm_prompts", wordings.POOLS, vocabulary())
mix_kinds("slm_prompts", TRAINED, SHARES, TEMPERATURE)
