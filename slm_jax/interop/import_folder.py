"""Public weights into a folder of ours, tensor by tensor: the logic of the `import` mode."""

import dataclasses
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from slm_jax.errors import UserError
from slm_jax.interop import safetensors_folder as folders
from slm_jax.interop.hf_t5 import save_language_model
from slm_jax.interop.language_model_source import (
  StoredLanguageModel,
  is_remote,
  open_language_model,
)
from slm_jax.interop.speech_encoder_folder import save_speech_encoder
from slm_jax.interop.speech_encoder_source import (
  StoredSpeechEncoder,
  is_speech_encoder,
  open_speech_encoder,
)
from slm_jax.interop.stored_parameter import FLOAT_TYPES
from slm_jax.interop.t5x_checkpoint import save_t5x_checkpoint

# Other files of an LM's tokenizer, for Transformers; here spiece.model alone is read afterwards.
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Import:
  """What is about to be written.

  Attributes:
    model: the opened source.
    source, output: folders; `source` may be in a bucket.
    copied: files of the tokenizer that go along as they are.
    layout: "hf" or "t5x", as of `open_import`.
  """

  model: StoredLanguageModel | StoredSpeechEncoder
  source: Path | str
  output: Path
  copied: tuple[Path, ...]
  layout: str = "hf"

  @property
  def parameter_count(self) -> int:
    return sum(one.size for one in self.model.parameters.values())

  @property
  def lacks_text(self) -> str | None:
    """What to copy into the output before ids become text there; None if nothing is missing."""
    model = self.model
    if isinstance(model, StoredLanguageModel):
      return None if model.tokenizer_path else "spiece.model"
    silent = not model.config.vocab_size or model.tokenizer is not None
    return None if silent else "spiece.model, tokenizer.json or vocab.json"

  @property
  def step(self) -> int:
    """Step of a T5X checkpoint to be written: that of the source if it is one, else 0."""
    found = re.fullmatch(r"checkpoint_(\d+)", str(self.source).rstrip("/").rpartition("/")[2])
    return 0 if found is None else int(found[1])

  @property
  def byte_count(self) -> int:
    return sum(one.size * one.dtype.itemsize for one in self.model.parameters.values())


def open_import(
  source: Path | str,
  output: Path | str,
  *,
  dtype: str | None = None,
  tokenizer: Path | str | None = None,
  layout: str = "hf",
) -> Import:
  """Looks at everything but the weights' values.

  Args:
    source: what `open_language_model` takes, or what `open_speech_encoder` takes.
    output: a folder that does not exist yet.
    dtype, tokenizer: as of `open_language_model`.
    layout: "hf" for a Hugging Face folder, "t5x" for a folder with a T5X checkpoint.

  Raises:
    UserError: `output` exists, the disk has too little room, or the source cannot be opened.
  """
  output = Path(output)
  if dtype is not None and dtype not in FLOAT_TYPES:
    raise UserError(
      f"--dtype={dtype}: expected one of {list(FLOAT_TYPES)}; folders hold floats, int8 weights are made "
      "from them when a model is loaded"
    )
  if os.path.lexists(output):
    raise UserError(f"output {output} exists; nothing is overwritten, remove it or choose another")
  if _is_speech_encoder(source):
    if tokenizer is not None:
      raise UserError(
        f"{source} is a speech encoder, it brings its tokenizer; leave --tokenizer out"
      )
    if layout != "hf":
      raise UserError(f"{source} is a speech encoder, T5X has no layout for it; leave --format out")
    model = open_speech_encoder(source, dtype=dtype)
    copied = model.tokenizer_files
  else:
    model = open_language_model(source, dtype=dtype, tokenizer=tokenizer)
    copied = () if is_remote(source) else tuple(Path(source) / name for name in _TOKENIZER_FILES)
  # A damaged one is found before gigabytes are written.
  _ = model.tokenizer
  job = Import(
    model=model,
    source=source,
    output=output,
    copied=tuple(file for file in copied if file.is_file()),
    layout=layout,
  )
  above = next(folder for folder in output.absolute().parents if folder.is_dir())
  if (free := shutil.disk_usage(above).free) < job.byte_count:
    raise UserError(
      f"output {output} needs {job.byte_count:,} bytes, its disk has {free:,}; free some or choose "
      "another, or a smaller --dtype"
    )
  return job


def run_import(job: Import, *, max_shard_bytes: int, report: Callable[[int], None]) -> None:
  """Writes the folder, one tensor in memory at a time; it appears, whole, at the end.

  Args:
    max_shard_bytes: a Hugging Face folder's weights beyond it go into several files.
    report: told the bytes of every tensor when it is written.

  Raises:
    UserError: a tensor holds NaN or infinite values, or cannot be read or written.
  """
  temporary = job.output.with_name(f".{job.output.name}.importing-{time.time_ns()}")
  try:
    temporary.mkdir(parents=True)
    for file in job.copied:
      folders.write_bytes(temporary / file.name, file.read_bytes())
    model = job.model
    if not isinstance(model, StoredLanguageModel):
      save_speech_encoder(temporary, model.config, model.params, report=report)
    elif job.layout == "t5x":
      if model.tokenizer_path is not None:
        content = folders.tokenizer_model(model.tokenizer_path)
        folders.write_bytes(temporary / folders.TOKENIZER_NAME, content)
      save_t5x_checkpoint(temporary, model.config, model.params, job.step, report=report)
    else:
      save_language_model(
        temporary,
        model.config,
        model.params,
        model.tokenizer_path,
        max_shard_bytes=max_shard_bytes,
        report=report,
      )
    os.rename(temporary, job.output)
  except OSError as error:
    raise UserError(f"output {job.output} cannot be written: {error}") from error
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


def _is_speech_encoder(source: Path | str) -> bool:
  file = Path(source) / folders.CONFIG_NAME
  return file.is_file() and is_speech_encoder(folders.read_config(source))
