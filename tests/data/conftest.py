"""The shipped vocabulary, and SeqIO registries with caches in a temporary folder."""

import importlib
import sys

import pytest
import seqio

VOCABULARY_PATH = "slm_jax/assets/mini/spiece.model"


@pytest.fixture(scope="session")
def vocabulary(request):
  return seqio.SentencePieceVocabulary(str(request.config.rootpath / VOCABULARY_PATH))


@pytest.fixture
def registry(monkeypatch, tmp_path):
  """SeqIO's registries and cache folders, given back as they were; yields the cache folder."""
  for kind in (seqio.TaskRegistry, seqio.MixtureRegistry):
    monkeypatch.setattr(kind, "_REGISTRY", dict(kind._REGISTRY))
  before = list(seqio.utils.get_global_cache_dirs())
  seqio.set_global_cache_dirs([str(tmp_path / "cache")])
  yield tmp_path / "cache"
  seqio.set_global_cache_dirs(before)


@pytest.fixture
def import_anew(registry, monkeypatch):
  """Imports `tasks.NAME` as if nothing had before: earlier tests may have, by naming a task."""

  def load(name: str):
    monkeypatch.delitem(sys.modules, f"tasks.{name}", raising=False)
    for kind in (seqio.TaskRegistry, seqio.MixtureRegistry):
      for known in [known for known in kind._REGISTRY if known.startswith(name)]:
        kind.remove(known)
    return importlib.import_module(f"tasks.{name}")

  return load
