"""Tiny torch Conformers with every parameter at random, and recordings to feed them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.audio_utils import mel_filter_bank

from slm_jax.audio.files import read_audio

DATA = Path(__file__).parents[2] / "shared" / "data"


def randomised(model: Any) -> Any:
  """The model in evaluation mode, every weight, bias, scale and running statistic drawn anew."""
  generator = torch.Generator().manual_seed(0)
  for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
    if tensor.is_floating_point() and not name.endswith("inv_freq"):
      tensor.data.normal_(0.05, 0.25, generator=generator)
      if name.endswith("running_var"):
        tensor.data.abs_().add_(0.1)
      elif "norm" in name and name.endswith("weight"):
        tensor.data.add_(1.0)  # loud enough that attention takes sides
  return model.eval()


def extracted(extractor: Any, waveforms: list[np.ndarray]) -> dict[str, torch.Tensor]:
  """What a feature extractor makes of int16 waveforms."""
  waves = [wave / np.float32(32768) for wave in waveforms]
  found = extractor(waves, sampling_rate=16_000, return_tensors="pt", return_attention_mask=True)
  return dict(found)


def granite_features(waveform: np.ndarray, num_mel_bins: int) -> np.ndarray:
  """What GraniteSpeechFeatureExtractor makes of one int16 waveform: fp32 [T, 2 * num_mel_bins].

  Its torchaudio.transforms.MelSpectrogram, with that class's defaults, is torch's transform.
  """
  audio = torch.from_numpy(waveform / np.float32(32768))
  spectrum = torch.stft(
    audio, 512, 160, 400, torch.hann_window(400), center=True, pad_mode="reflect",
    return_complex=True,
  )  # fmt: skip
  filters = mel_filter_bank(257, num_mel_bins, 0.0, 8000.0, 16_000, norm=None, mel_scale="htk")
  mel = spectrum.abs().square().T @ torch.from_numpy(filters).float()
  logs = mel.clamp(min=1e-10).log10()
  logs = torch.maximum(logs, logs.max() - 8.0) / 4 + 1
  logs = logs[: len(logs) // 2 * 2]
  return logs.reshape(-1, 2 * num_mel_bins).numpy()


def rows(audio: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
  """[B, S] as waveforms of their own lengths."""
  return [row[:n] for row, n in zip(audio, lengths, strict=True)]


def recordings(limit: int) -> tuple[np.ndarray, np.ndarray] | None:
  """One recording of every folder of recordings, cut at `limit` samples, as (int16 [B, S], lengths).

  None where there are none.
  """
  files = [sorted(folder.rglob("*.*"))[0] for folder in sorted(DATA.glob("*/audio"))]
  if not files:
    return None
  waves = [read_audio(file)[:limit] for file in files]
  lengths = np.array([len(wave) for wave in waves], np.int32)
  size = lengths.max() + 1000
  return np.stack([np.pad(wave, (0, size - len(wave))) for wave in waves]), lengths


def change(file: Path, within: str | None = None, **changes: Any) -> None:
  """Sets values of a JSON file, or of the object `within` it."""
  record = json.loads(file.read_text())
  (record if within is None else record[within]).update(changes)
  file.write_text(json.dumps(record))
