"""Speech MultiWOZ as DSTC11 publishes it: HDF5 groups named by dialogue and turn, states in text or JSON."""

import io
import json

import h5py
import numpy as np
import pytest

from slm_jax.audio.files import decode_audio
from slm_jax.data.datasets.corpus import SpeechRecord
from slm_jax.data.datasets.recipes import Answer
from slm_jax.data.datasets.speech_multiwoz import PARTS, SpeechMultiwoz
from slm_jax.errors import UserError

TTS = PARTS["tts_verbatim"]
TEXT = """\
line_nr: 0 dialog_id: SNG0073.json turn_id: 1 text: user: a taxi, please. state:
line_nr: 1 dialog_id: SNG0073.json turn_id: 2 text: agent: to which state: or place? state:
line_nr: 1 dialog_id: SNG0073.json turn_id: 3 text: user: nusha, 1 am. state: taxi-destination=nusha; taxi-leaveat=1 am
END_OF_DIALOG
line_nr: 4 dialog_id: pmul4648.json turn_id: 1 text: user: find nusha. state: attraction-name=nusha
"""
# The published test set: no states.
UNLABELLED = "\n".join(
  line.rsplit(" state:", 1)[0] for line in TEXT.splitlines() if "dialog" in line
)
GOLD = {
  "sng0073": [{}, {"taxi": {"destination": "nusha", "leaveat": "1 am"}}],
  "pmul4648": [{"attraction": {"name": "nusha"}}],
}
SAMPLES = (np.arange(1_600) % 200 - 100).astype(np.int16)


def hdf5(dialog, turns, samples=SAMPLES):
  file = io.BytesIO()
  with h5py.File(file, "w") as opened:
    for turn in turns:
      group = opened.create_group(f"line_nr: {turn // 2} dialog_id: {dialog} turn_id: {turn}")
      group["audio"] = samples
      group["feat"] = np.zeros((3, 512), np.float32)
      group.attrs["hyp"] = f"heard {turn}"
  return file.getvalue()


def write(archives, config="tts_verbatim", **changes):
  dialogs = {"sng0073": hdf5("SNG0073.json", (1, 3)), "pmul4648": hdf5("pmul4648.json", (1,))}
  dialogs |= changes.get("dialogs", {})
  for split, part in PARTS[config].items():
    folders = ("train/tpa", "train/tpb") if split == "train" else (part.audio[:-4],)
    files = {f"{folder}/{name}.hd5": data for folder in folders for name, data in dialogs.items()}
    archives.pack(part.audio, files)
    archives.write(part.text, UNLABELLED if part.gold else TEXT)
    if part.gold:
      archives.write(part.gold, json.dumps(changes.get("gold", GOLD)))


def test_user_turns_with_history_and_state(archives, prepare):
  write(archives)
  prepared = prepare(SpeechMultiwoz, "tts_verbatim")
  records = prepared.split("train")
  assert sorted(records) == sorted(
    f"{voice}-{turn}"
    for voice in ("tpa", "tpb")
    for turn in ("pmul4648-1", "sng0073-1", "sng0073-3")
  )
  record = records["tpa-sng0073-3"]
  assert record["text"] == "nusha, 1 am." and record["speaker"] == "tpa"
  assert record["context"] == "user: heard 1 agent: to which state: or place?"
  assert record["answer"] == "taxi-destination=nusha; taxi-leaveat=1 am"
  np.testing.assert_array_equal(decode_audio(record["audio"], "x"), SAMPLES)
  assert records["tpa-sng0073-1"]["answer"] == "none"
  assert records["tpa-sng0073-1"]["context"] == ""


@pytest.mark.parametrize(
  "gold", [GOLD, {d: [{"response": "ok", "state": s} for s in turns] for d, turns in GOLD.items()}]
)
def test_states_of_the_test_set_come_from_the_gold_file(archives, prepare, gold):
  write(archives, gold=gold)
  prepared = prepare(SpeechMultiwoz, "tts_verbatim")
  want = {k.removeprefix("tpa-"): r["answer"] for k, r in prepared.split("train").items()}
  found = {k.split("-", 4)[-1]: r["answer"] for k, r in prepared.split("test").items()}
  assert len(found) == 3
  for key, answer in found.items():
    assert any(key.endswith(name) and answer == state for name, state in want.items())


def test_paraphrases_have_what_was_heard_as_text(archives, prepare):
  write(archives, "human_paraphrased")
  prepared = prepare(SpeechMultiwoz, "human_paraphrased")
  assert set(prepared.builder.info.splits) == {"validation", "test"}
  texts = {r["text"] for r in prepared.split("validation").values()}
  assert texts == {"heard 1", "heard 3"}


@pytest.mark.parametrize(
  "dialogs, reason",
  [
    ({"sng0073": b"not HDF5"}, "is no HDF5 file"),
    ({"sng0073": hdf5("SNG0073.json", (2,))}, "no such user's turn"),
    ({"sng0073": hdf5("SNG0073.json", (1, 3), np.zeros(3, np.float32))}, "expected int16 samples"),
  ],
)
def test_damaged_files_are_named(archives, prepare, dialogs, reason):
  write(archives, dialogs=dialogs)
  with pytest.raises(UserError, match=f"sng0073.*{reason}"):
    prepare(SpeechMultiwoz, "tts_verbatim")


def test_turns_without_a_state_are_left_out(archives, prepare):
  write(archives, gold={"sng0073": GOLD["sng0073"][:1], "pmul4648": GOLD["pmul4648"]})
  prepared = prepare(SpeechMultiwoz, "tts_verbatim")
  assert len(prepared.split("test")) == 2
  assert prepared.left_out["test"] == {"no state": 1}


def test_instruction_holds_the_conversation():
  recipe = Answer(task="dialogue_state", instructions=("{context} State?",))
  record = SpeechRecord(
    id="a", audio=b"", text="hi", language="en", context="agent: {what}?", answer="none"
  )
  utterance = recipe.utterance(record)
  assert utterance.instruction == "agent: {what}? State?" and utterance.target == "none"
