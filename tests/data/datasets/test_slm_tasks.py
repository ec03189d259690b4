"""The paper's mixture and the one of many wordings: tasks, instructions, shares, and one example trained on."""

import json
import string

import numpy as np
import pytest
import seqio
import tensorflow_datasets as tfds

from slm_jax.data.datasets import registration, wordings
from slm_jax.data.datasets.corpus_source import CorpusSource
from slm_jax.data.datasets.covost2 import Covost2
from slm_jax.data.datasets.languages import NAMES, code_of, name_of
from slm_jax.data.datasets.recipes import Recipe, Transcribe
from slm_jax.errors import UserError

MODULES = ("slm_paper", "slm_prompts")


@pytest.fixture
def tasks(import_anew):
  return {name: import_anew(name) for name in MODULES}


def test_pools_have_fifteen_wordings_and_the_papers_have_one():
  assert set(wordings.PAPER) == set(wordings.POOLS)
  known = {"language", "target_language", "hints", "context", "question"}
  for task, pool in wordings.POOLS.items():
    assert len(set(pool)) == len(pool) >= 15
    assert len(wordings.PAPER[task]) == 1 and wordings.PAPER[task][0] in pool
    for wording in pool:
      fields = {name for _, name, _, _ in string.Formatter().parse(wording) if name}
      assert fields <= known
      assert ("hints" in fields) == (task == "biasing")
      assert ("context" in fields) == (task in ("question", "dialogue_state"))
      assert "target_language" in fields or task != "ast"


def test_every_language_has_a_name(tasks):
  assert name_of("zh-CN") == "Chinese" and name_of("cmn_hans_cn") == "Mandarin Chinese"
  with pytest.raises(UserError, match="'tlh' has no English name"):
    name_of("tlh")
  sources = [seqio.TaskRegistry.get(name).source for name in seqio.TaskRegistry.names()]
  corpora = [source for source in sources if isinstance(source, CorpusSource)]
  configs = {
    s.name.split(":")[0].partition("/")[2] for s in corpora if s.name[:3] in ("fle", "cov")
  }
  for config in configs:
    for language in config.split("-" if config.count("_") > 1 and "-" in config else "\n"):
      assert code_of(language) in NAMES


def test_both_modules_have_the_same_tasks(tasks):
  names = {
    prefix: {
      n.removeprefix(prefix) for n in seqio.TaskRegistry.names() if n.startswith(prefix + "_")
    }
    for prefix in MODULES
  }
  assert names["slm_paper"] == names["slm_prompts"] and len(names["slm_paper"]) > 280
  for expected in ("_covost2_de_en", "_fleurs_de_asr", "_librispeech_listed_biasing_clean_1000"):
    assert expected in names["slm_paper"]
  for name in seqio.TaskRegistry.names():
    if name.startswith(MODULES):
      source = seqio.TaskRegistry.get(name).source
      assert isinstance(source, CorpusSource) and isinstance(source.recipe, Recipe)
      instructions = source.recipe.instructions
      own = name.endswith("_spoken_alpaca")
      assert (
        len(instructions) == 1 if own or name.startswith("slm_paper") else len(instructions) > 14
      )


def test_mixture_shares_hold_whatever_the_sizes(tasks, monkeypatch):
  sizes = {}
  monkeypatch.setattr(
    CorpusSource, "num_input_examples", lambda self, split: sizes.setdefault(self.name, 100)
  )
  mixture = seqio.MixtureRegistry.get("slm_paper")
  module = tasks["slm_paper"]
  sizes["covost2/fr_en:1.0.0"] = 90_000
  rates = {task.name: mixture.get_rate(task) for task in mixture.tasks}
  for kind, names in module.TRAINED.items():
    assert sum(rates[name] for name in names) == pytest.approx(module.SHARES[kind])
  assert sum(rates.values()) == pytest.approx(1)
  large, small = (rates[f"slm_paper_covost2_{pair}"] for pair in ("fr_en", "de_en"))
  assert large / small == pytest.approx(900 ** (1 / module.TEMPERATURE))
  with pytest.raises(ValueError, match="shares of"):
    registration.mix_kinds("x", {"asr": []}, {"ast": 1.0}, 1.0)
  with pytest.raises(ValueError, match="temperature=0.5"):
    registration.mix_by_size("x", [], 0.5)


def test_wordings_are_spread_and_fixed_for_each_example():
  from slm_jax.data.datasets.corpus import SpeechRecord

  recipe = Transcribe(instructions=wordings.POOLS["asr"])
  records = [SpeechRecord(id=str(n), audio=b"", text="ja", language="de") for n in range(500)]
  chosen = [recipe.utterance(record).instruction for record in records]
  assert chosen == [recipe.utterance(record).instruction for record in records]
  assert len(set(chosen)) == len(wordings.POOLS["asr"])
  assert max(map(chosen.count, set(chosen))) < 60
  assert "Transcribe the German speech." in chosen


def test_an_unprepared_corpus_says_what_to_run(tasks, tmp_path, monkeypatch):
  monkeypatch.setattr(seqio.utils, "_TFDS_DATA_DIR_OVERRIDE", str(tmp_path))
  task = seqio.TaskRegistry.get("slm_paper_covost2_de_en")
  with pytest.raises(UserError, match="python -m slm_jax.data.datasets.prepare covost2/de_en,"):
    task.source.list_shards("train")


def test_translation_task_from_archive_to_tokens(tasks, archives, prepare, tmp_path, monkeypatch):
  clip = "common_voice_de_17000001.mp3"
  splits = ("train", "dev", "test")
  lines = [f"{n}{clip}\tGood morning.\t{split}" for n, split in enumerate(splits)]
  table = "\n".join(["path\ttranslation\tsplit", *lines])
  archives.pack("covost_v2.de_en.tsv.tar.gz", {"covost_v2.de_en.tsv": table})
  spoken = "\n".join(
    ["path\tsentence\tclient_id", *(f"{n}{clip}\tGuten Tag.\tann" for n in range(3))]
  )
  audio = archives.audio(suffix="mp3", rate=48_000)
  archives.pack(
    "de.tar.gz", {"validated.tsv": spoken, **{f"clips/{n}{clip}": audio for n in range(3)}}
  )
  prepare(Covost2, "de_en")
  monkeypatch.setattr(seqio.utils, "_TFDS_DATA_DIR_OVERRIDE", str(tmp_path / "tfds"))
  task = seqio.TaskRegistry.get("slm_paper_covost2_de_en")
  assert task.kind == "translation"
  [example] = task.get_dataset(None, "train", shuffle=False, use_cached=False).as_numpy_iterator()
  assert example["inputs_pretokenized"] == (b"Translate this speech from German into English.")
  assert example["targets_pretokenized"] == b"Good morning."
  assert (example["language"], example["target_language"]) == (b"de", b"en")
  assert example["audio"].dtype == np.int16 and 1_600 <= len(example["audio"]) < 4_800
  assert example["targets"][-1] == 1
  [scored] = seqio.TaskRegistry.get("slm_paper_covost2_de_asr").source.make_examples("test", 0, 1)
  assert scored["target"] == b"Guten Tag."
  assert json.dumps(task.source.describe()) and tfds.__version__


def test_every_corpus_has_a_card(tasks, request):
  page = (request.config.rootpath / "docs" / "datasets.md").read_text()
  sources = [seqio.TaskRegistry.get(name).source for name in seqio.TaskRegistry.names()]
  corpora = {s.name.partition("/")[0].partition(":")[0] for s in sources if hasattr(s, "recipe")}
  assert len(corpora) == 9
  for corpus in corpora:
    assert f"| `{corpus}" in page
