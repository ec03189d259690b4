"""Whisper's rules against transformers' own copy of them."""

import importlib.resources
import json

import pytest
from transformers.models.whisper.english_normalizer import (
  BasicTextNormalizer,
  EnglishTextNormalizer,
)

from slm_jax.evaluation import scores
from slm_jax.evaluation.normalisers import NORMALISERS, normaliser_of

TEXTS = (
  "",
  "I'm gonna pay $3.50, won't I?",
  "Mr. Smith's colour is twenty-two [laughs] uh",
  "one hundred and five dollars and six cents",
  "the 1st of may nineteen ninety nine",
  "naïve café, Straße",
  "我喜欢 喝茶。",
  "double oh seven",
  "It costs 1,000 pesos (about two and a half percent)",
  "she'd've gone, y'all",
  "नमस्ते दुनिया",
)


@pytest.fixture(scope="module")
def spellings():
  files = importlib.resources.files("whisper_normalizer")
  (path,) = (
    p
    for folder in files.iterdir()
    if folder.is_dir()
    for p in folder.iterdir()
    if p.name == "english.json"
  )
  return json.loads(path.read_text("utf-8"))


@pytest.mark.parametrize("text", TEXTS)
def test_whispers_rules_are_those_of_transformers(text, spellings):
  assert normaliser_of("whisper-english-1")(text) == EnglishTextNormalizer(spellings)(text).strip()
  assert normaliser_of("whisper-basic-1")(text) == BasicTextNormalizer()(text).strip()


def test_ids_give_different_scores_and_scores_say_which():
  reference, hypothesis = "It's twenty-two colours.", "it is 22 colors"
  found = {n: scores.score("wer", [reference], [hypothesis], normaliser=n) for n in NORMALISERS}
  assert found["whisper-english-1"].value == 0.0
  assert found["whisper-basic-1"].value > 0 and found["none"].value == pytest.approx(400 / 3)
  assert all(score.normaliser == name for name, score in found.items())
