"""Continuation: the cut lies between two aligned words, and what is heard and expected make the whole."""

import json
import zipfile

import pytest

from slm_jax.data.datasets.continuation import Continue
from slm_jax.data.datasets.corpus import SpeechRecord
from slm_jax.data.datasets.recipes import NotUsed
from slm_jax.errors import UserError

WORDS = [f"W{n}" for n in range(10)]
# Words last half a second; there is a pause of a second before each second word.
ALIGNED, ENDS = [], []
for _n, _word in enumerate(WORDS):
  for _token in [""] * (_n % 2 == 0) + [_word]:
    ALIGNED.append(_token)
    ENDS.append((ENDS[-1] if ENDS else 0.0) + (0.5 if _token else 1.0))


TEXT = " ".join(WORDS)


def record(key="84-1-0000", text=TEXT):
  return SpeechRecord(id=key, audio=b"", text=text, language="en", speaker="84")


@pytest.fixture
def alignments(tmp_path):
  path = tmp_path / "LibriSpeech-Alignments.zip"
  lines = [
    f'84-1-{n:04d} "{",".join(ALIGNED)}" "{",".join(f"{end:.3f}" for end in ENDS)}"'
    for n in range(30)
  ]
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("LibriSpeech/dev-clean/84/1/84-1.alignment.txt", "\n".join(lines) + "\n")
    archive.writestr("README.md", "?")
  return str(path)


def test_heard_and_expected_make_the_whole(alignments):
  recipe = Continue(instructions=("Continue.",), alignments=alignments, lower_case=True)
  cuts = set()
  for n in range(30):
    said = record(f"84-1-{n:04d}")
    utterance = recipe.utterance(said)
    heard, rest = utterance.transcript.split(), utterance.target.split()
    assert heard + rest == [word.lower() for word in WORDS]
    assert 3 <= len(heard) <= 7
    start, stop = recipe.span(said)
    last = ALIGNED.index(WORDS[len(heard) - 1])
    # In the middle of the pause, or at the border of two words.
    assert start == 0 and stop == ENDS[last] + (0.5 if ALIGNED[last + 1] == "" else 0)
    cuts.add(len(heard))
  assert len(cuts) > 2


def test_records_without_their_alignment_are_left_out(alignments):
  recipe = Continue(instructions=("Continue.",), alignments=alignments)
  with pytest.raises(NotUsed, match="no alignment"):
    recipe.utterance(record("1-1-1"))
  with pytest.raises(NotUsed, match="alignment of another text"):
    recipe.utterance(record(text="SOMETHING ELSE"))
  strict = Continue(instructions=("Continue.",), alignments=alignments, min_words=6)
  with pytest.raises(NotUsed, match="fewer than 6 words"):
    strict.utterance(record())
  assert json.dumps(recipe.describe())


@pytest.mark.parametrize("line", ["84-1-0000 A,B 1,2", '84-1-0000 "A,B" "1.0"'])
def test_another_layout_is_refused(tmp_path, line):
  (tmp_path / "84-1.alignment.txt").write_text(line + "\n")
  with pytest.raises(UserError, match="84-1.alignment.txt:1 is not an id"):
    Continue(instructions=("Continue.",), alignments=str(tmp_path)).utterance(record())
  (tmp_path / "84-1.alignment.txt").unlink()
  with pytest.raises(UserError, match="holds no"):
    Continue(instructions=("C.",), alignments=str(tmp_path / ".")).utterance(record())


@pytest.mark.parametrize("changes", [{"min_share": 0.8}, {"max_share": 1.0}, {"min_words": 0}])
def test_settings_that_cannot_be(changes):
  with pytest.raises(ValueError):
    Continue(instructions=("Continue.",), alignments="x", **changes)
