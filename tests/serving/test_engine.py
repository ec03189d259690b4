"""Adapters side by side: a row's answer is its adapter's alone, and nothing is compiled again."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import slm_jax.bundle
from slm_jax.bundle.checksums import SUMS, write_sums
from slm_jax.bundle.loading import trained_parameters
from slm_jax.bundle.manifest import CONFIG
from slm_jax.errors import UserError
from slm_jax.evaluation.generation import prompt_ids
from slm_jax.serving.bundles import load_bundles
from slm_jax.serving.engine import Engine, EngineConfig, Row

SHAPES = EngineConfig(
  batch_size=4, audio_seconds=(0.125, 0.25), prompt_length=8, max_new_tokens=12, tokens_a_call=5
)


@pytest.fixture(scope="module")
def engine(bundles):
  loaded = load_bundles(bundles, num_slots=3)
  found = Engine(loaded.model, loaded.adapters, SHAPES)
  before = found.compiled_programs()
  found.warm_up()
  # Encode, start and advance, for two lengths.
  assert found.compiled_programs() == before + 2 * 3
  return found


def answer(engine, *asked, **options):
  """Ids of each (audio, adapter's name)."""
  prompt = prompt_ids(engine.tokenizer, "lisa")
  rows = [
    Row(audio=audio, prompt=prompt, slot=engine.adapters.slot(name), max_new_tokens=12, **options)
    for audio, name in asked
  ]
  ids: list[list[int]] = [[] for _ in rows]

  def on_tokens(i, tokens, done):
    ids[i] += tokens
    return True

  engine.answer(rows, on_tokens)
  return ids


def test_answers_are_those_of_each_bundle_alone(engine, bundles, noises):
  for name, folder in bundles.items():
    alone = slm_jax.bundle.load(folder)
    texts = alone.generate(noises[:3], "lisa", max_new_tokens=12, batch_size=4)
    ids = answer(engine, *((sound, name) for sound in noises[:3]))
    assert [engine.tokenizer.decode(row) for row in ids] == texts
  one, two = (answer(engine, *((n, name) for n in noises[:4])) for name in bundles)
  assert one != two


def test_a_row_does_not_depend_on_whose_rows_stand_beside_it(engine, noises):
  names = ["one", "two", "two", "one"]
  mixed = answer(engine, *zip(noises[:4], names, strict=True))
  for sound, name, ids in zip(noises[:4], names, mixed, strict=True):
    assert answer(engine, (sound, name)) == [ids]


def test_swapping_adapters_back_gives_the_same_bits_and_compiles_nothing(engine, bundles, noises):
  compiled = engine.compiled_programs()
  first = answer(engine, (noises[0], "one"))
  two = trained_parameters(Path(bundles["two"]))["adapter"]
  before = engine.adapters.stack
  engine.adapters.put("one", two)
  assert answer(engine, (noises[0], "one")) == answer(engine, (noises[0], "two"))
  engine.adapters.put("one", trained_parameters(Path(bundles["one"]))["adapter"])
  assert answer(engine, (noises[0], "one")) == first
  for path, kernel in engine.adapters.stack["projection"].items():
    np.testing.assert_array_equal(kernel, before["projection"][path])
  engine.adapters.put("three", two)
  assert answer(engine, (noises[0], "three")) == answer(engine, (noises[0], "two"))
  with pytest.raises(UserError, match="no free slot for the adapter 'four'"):
    engine.adapters.put("four", two)
  engine.adapters.remove("three")
  with pytest.raises(UserError, match="no adapter 'three'; there are one, two"):
    engine.adapters.slot("three")
  answer(engine, *((sound, "two") for sound in noises[4:8]), temperature=1.0, seed=7)
  assert engine.compiled_programs() == compiled


def test_a_row_that_nobody_wants_ends_early(engine, noises):
  heard = []

  def on_tokens(i, tokens, done):
    heard.append((i, len(tokens), done))
    return i != 0

  prompt = prompt_ids(engine.tokenizer, "lisa")
  rows = [Row(audio=noises[i], prompt=prompt, slot=i, max_new_tokens=12) for i in (0, 1)]
  engine.answer(rows, on_tokens)
  assert [i for i, _, _ in heard].count(0) == 1


def test_bundles_that_cannot_share_bases_are_refused(bundles, tmp_path):
  def changed(**fields):
    folder = shutil.copytree(bundles["two"], tmp_path / "two", dirs_exist_ok=True)
    record = json.loads((folder / CONFIG).read_text()) | fields
    (folder / CONFIG).write_text(json.dumps(record))
    (folder / SUMS).unlink()
    write_sums(folder)
    return {"one": bundles["one"], "two": str(folder)}

  with pytest.raises(UserError, match="'two' and 'one' differ in speech_first"):
    load_bundles(changed(speech_first=False))
  base = {"name": "x", "fingerprint": "0" * 64, "dtype": "float32"}
  with pytest.raises(UserError, match="another language_model: fingerprints 0000"):
    load_bundles(changed(language_model=base))
  with pytest.raises(UserError, match="holds more than an adapter"):
    load_bundles(changed(trainable=".*"))


@pytest.mark.parametrize(
  "fields", [{"batch_size": 0}, {"audio_seconds": ()}, {"audio_seconds": (5.0, 2.0)}]
)
def test_shapes_that_make_no_sense_are_refused(fields):
  with pytest.raises(ValueError, match=next(iter(fields))):
    EngineConfig(**fields)
