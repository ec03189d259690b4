"""DSTC11's speech-aware MultiWOZ: spoken user turns of task-oriented dialogues, with dialogue states."""

import dataclasses
import io
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import h5py
import numpy as np
import tensorflow_datasets as tfds

from slm_jax.data.datasets.archives import members, read_text
from slm_jax.data.datasets.corpus import LeftOut, SpeechCorpusBuilder, SpeechRecord
from slm_jax.data.datasets.segments import encode_flac
from slm_jax.errors import UserError

URL = "https://storage.googleapis.com/gresearch/dstc11"
# The answer where no slot has a value yet.
NO_STATE = "none"


@dataclasses.dataclass(frozen=True)
class _Part:
  """A split: its archive of HDF5 files, its text, and gold states where the text has none."""

  audio: str
  text: str
  gold: str = ""


_DEV, _TEST = "dev-dstc11.2022-07-27.txt", "test-dstc11.2022-09-21.txt"
_GOLD = "test-dstc11.2022-1102.gold.json"
# Config → split → files.
PARTS = {
  "tts_verbatim": {
    "train": _Part("train.tts-verbatim.2022-07-27.zip", "train.tts-verbatim.2022-07-27.txt"),
    "validation": _Part("dev-dstc11.tts-verbatim.2022-07-27.zip", _DEV),
    "test": _Part("test-dstc11-tts-verbatim.2022-09-21.zip", _TEST, _GOLD),
  },
  "human_verbatim": {
    "validation": _Part("dev-dstc11.human-verbatim.2022-09-29.zip", _DEV),
    "test": _Part("test-dstc11.human-verbatim.2022-09-29.zip", _TEST, _GOLD),
  },
  "human_paraphrased": {
    "validation": _Part("dev-dstc11.human-paraphrased.2022-11-02.zip", _DEV),
    "test": _Part("test-dstc11.human-paraphrased.2022-10-17.zip", _TEST, _GOLD),
  },
}
_LINE = re.compile(
  r"(?:line_nr: \d+ )?dialog_id: (?P<dialog>\S+) turn_id: (?P<turn>\d+) "
  r"text: (?P<speaker>user|agent): ?(?:(?P<text>.*) state:(?P<state>.*)|(?P<text_alone>.*))$"
)
_GROUP = re.compile(r"dialog_id: (?P<dialog>\S+) turn_id: (?P<turn>\d+)$")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Turn:
  """`state` is None where the text gives none."""

  number: int
  speaker: str
  text: str
  state: str | None


class SpeechMultiwoz(SpeechCorpusBuilder):
  """Speech MultiWOZ of DSTC11: the answer to a user's turn is the dialogue state after it.

  Config "tts_verbatim" has four synthetic voices for each dialogue of "train" and another one for the
  other splits; in "human_verbatim" people read the turns, in "human_paraphrased" they say them in
  their own words, and `text` is what a recogniser understood. `context` is the conversation so far; of
  the user's earlier turns it has what the recogniser understood, where the data give that. A state is
  "slot=value; slot=value" in the data's order, or "none".
  """

  VERSION = tfds.core.Version("1.0.0")
  HOMEPAGE = "https://storage.googleapis.com/gresearch/dstc11/dstc11_20221102a.html"
  LICENCE = "see the challenge's page; MultiWOZ 2.1 is under the MIT licence"
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    "Put the .zip, .txt and .gold.json files of the challenge's page there, under their own names."
  )
  BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name, description="") for name in PARTS]

  def _split_generators(self, dl_manager: tfds.download.DownloadManager):
    config = self.builder_config
    assert config and config.name

    def locate(name: str) -> Path:
      return self.archive(dl_manager, name, url=f"{URL}/{name}")

    return {
      split: self._generate_examples(
        split,
        _records(
          locate(part.audio),
          _dialogs(locate(part.text)),
          _gold_states(locate(part.gold)) if part.gold else {},
          paraphrased=config.name == "human_paraphrased",
        ),
      )
      for split, part in PARTS[config.name].items()
    }


def _records(
  audio: Path,
  dialogs: Mapping[str, list[_Turn]],
  states: Mapping[str, list[str]],
  *,
  paraphrased: bool,
) -> Iterator[SpeechRecord | LeftOut]:
  for name, read in members(audio):
    if not name.endswith((".hd5", ".hdf5", ".h5")):
      continue
    try:
      file = h5py.File(io.BytesIO(read()))
    except OSError as error:
      yield LeftOut(name, f"is no HDF5 file ({error})")
      continue
    with file:
      yield from _turns(file, name, dialogs, states, paraphrased)


def _turns(
  file: h5py.File,
  name: str,
  dialogs: Mapping[str, list[_Turn]],
  states: Mapping[str, list[str]],
  paraphrased: bool,
) -> Iterator[SpeechRecord | LeftOut]:
  """The user's turns of one file, whose groups are named as the lines of the text begin."""
  voice = PurePosixPath(name).parent.name
  groups: dict[tuple[str, int], Any] = {}
  for key in map(str, file):
    if place := _GROUP.search(key):
      groups[_dialog(place["dialog"]), int(place["turn"])] = file[key]
    else:
      yield LeftOut(f"{name}:{key}", "names no dialogue and turn")
  heard = {key: _text(group.attrs.get("hyp", "")) for key, group in groups.items()}
  for (dialog, number), group in groups.items():
    place = f"{name}:{dialog}:{number}"
    turns = dialogs.get(dialog, [])
    turn = next((t for t in turns if t.number == number and t.speaker == "user"), None)
    if turn is None:
      yield LeftOut(place, "no such user's turn in the text")
      continue
    state = turn.state
    if dialog in states:
      users = [t.number for t in turns if t.speaker == "user"]
      index = users.index(number)
      state = states[dialog][index] if index < len(states[dialog]) else None
    samples = np.asarray(group["audio"]) if "audio" in group else np.zeros(0)
    if state is None:
      yield LeftOut(place, "no state", problem=False)
    elif samples.dtype != np.int16 or not samples.size:
      yield LeftOut(place, f"audio is {samples.dtype} {samples.shape}, expected int16 samples")
    else:
      before = (
        f"{t.speaker}: {heard.get((dialog, t.number)) or t.text}"
        for t in turns
        if t.number < number
      )
      yield SpeechRecord(
        id="-".join(filter(None, (voice, dialog, str(number)))),
        audio=encode_flac(samples.reshape(-1)),
        text=heard[dialog, number] if paraphrased else turn.text,
        language="en",
        speaker=voice,
        context=" ".join(before),
        answer=state or NO_STATE,
      )


def _dialogs(path: Path) -> dict[str, list[_Turn]]:
  found: dict[str, list[_Turn]] = {}
  for number, line in enumerate(read_text(path).split("\n"), start=1):
    if not line.strip() or line.startswith("END_OF_DIALOG"):
      continue
    if not (place := _LINE.search(line.strip())):
      raise UserError(
        f"{path}:{number} is {line[:60]!r}, expected dialog_id, turn_id, text and state; download it "
        "again"
      )
    state = place["state"]
    turn = _Turn(
      number=int(place["turn"]),
      speaker=place["speaker"],
      text=(place["text"] or place["text_alone"] or "").strip(),
      state=None if state is None else state.strip(),
    )
    found.setdefault(_dialog(place["dialog"]), []).append(turn)
  return found


def _gold_states(path: Path) -> dict[str, list[str]]:
  """Dialogue → the state after each of the user's turns."""
  try:
    content = json.loads(read_text(path))
    return {
      _dialog(dialog): [
        "; ".join(
          f"{domain}-{slot}={value}"
          for domain, slots in turn.get("state", turn).items()
          for slot, value in slots.items()
        )
        for turn in turns
      ]
      for dialog, turns in content.items()
    }
  except (ValueError, TypeError, KeyError, AttributeError) as error:
    raise UserError(
      f"{path} does not map dialogues to turns with states ({error}); download it again"
    ) from error


def _dialog(name: str) -> str:
  return name.lower().removesuffix(".json")


def _text(value: object) -> str:
  text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
  return " ".join(text.split())
