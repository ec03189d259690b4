"""`slm_jax infer --ctc`: what a speech encoder hears by itself."""

import argparse
import sys
import tempfile
from pathlib import Path

from slm_jax.cli.main import Parser
from slm_jax.errors import UserError

EXAMPLE = "slm_jax infer --ctc --speech_encoder=slm_jax:mini/speech_encoder --audio=a.wav"
# Audio is cut at pauses beyond this, where the encoder itself takes more.
_CHUNK_SECONDS = 30.0


def run(argv: list[str]) -> int:
  """Transcribes audio files by a CTC head; returns the exit status."""
  flags = _parser().parse_args(argv)
  if bool(flags.requests) == bool(flags.audio):
    raise UserError("slm_jax infer --ctc: give either --requests=FILE.jsonl or --audio=…")
  if flags.requests and not flags.output:
    raise UserError("slm_jax infer --ctc: --requests needs --output=FILE.jsonl")
  if min(flags.ctc_beams, flags.batch_size) < 1:
    raise UserError(
      f"--ctc_beams={flags.ctc_beams}, --batch_size={flags.batch_size}: expected at least 1"
    )
  from slm_jax import inference

  if flags.requests:
    requests = inference.read_requests(flags.requests, instructed=False)
  else:
    requests = [inference.InferenceRequest(audio=audio) for audio in flags.audio]
  transcriber = _transcriber(flags)
  with tempfile.TemporaryDirectory() as folder:
    output = flags.output or str(Path(folder) / "transcripts.jsonl")
    summary = inference.transcribe(
      transcriber, requests, output, flags.batch_size, max_bad_audio=flags.max_bad_audio
    )
    if flags.audio:
      print(Path(output).read_text("utf-8"), end="")
  print(
    f"[slm_jax] {summary.requests} requests, {summary.bad_audio} skipped, {summary.audio_seconds:.1f} s of audio in "
    f"{summary.seconds:.1f} s by {flags.speech_encoder}",
    file=sys.stderr,
  )
  return 0


def _parser() -> Parser:
  parser = Parser(
    prog="slm_jax infer --ctc",
    description="transcribe audio files with a speech encoder's CTC head alone",
    epilog=f"example:\n  {EXAMPLE}",
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--ctc", action="store_true", help=argparse.SUPPRESS)
  parser.add_argument(
    "--speech_encoder",
    required=True,
    help="folder of an encoder, ours or Hugging Face's; slm_jax:mini/speech_encoder is the shipped one",
  )
  parser.add_argument(
    "--audio", action="append", default=[], help="repeatable; any rate and channels"
  )
  parser.add_argument("--requests", help='JSON lines {"audio": …}')
  parser.add_argument("--output", help="JSON lines are written here; default: shown alone")
  parser.add_argument(
    "--ctc_beams", type=int, default=1, help="prefixes of a beam search; 1, the default, is greedy"
  )
  parser.add_argument("--batch_size", type=int, default=8)
  parser.add_argument(
    "--chunk_seconds",
    type=float,
    help=f"longer audio is cut at pauses; default {_CHUNK_SECONDS:.0f}, or less where the encoder takes less",
  )
  parser.add_argument("--max_bad_audio", type=int, default=0, help="bad files that may be skipped")
  return parser


def _transcriber(flags: argparse.Namespace):
  """The encoder, loaded; its head, tokenizer and limit are looked at before its weights."""
  from slm_jax.audio.files import SAMPLE_RATE
  from slm_jax.evaluation.ctc_transcriber import CtcTranscriber
  from slm_jax.interop import load_speech_encoder, open_speech_encoder
  from slm_jax.training.recipes import resolve_path

  folder = resolve_path(flags.speech_encoder)
  source = open_speech_encoder(folder)
  if not source.config.vocab_size:
    raise UserError(
      f"{flags.speech_encoder} has no CTC head, so that it hears nothing by itself; train an adapter "
      "over it, or name an encoder with a head"
    )
  if source.tokenizer is None:
    raise UserError(
      f"{flags.speech_encoder} has no tokenizer for its CTC head; copy the spiece.model, tokenizer.json "
      "or vocab.json with tokenizer_config.json there that it was published with"
    )
  limit = source.config.max_samples
  if flags.chunk_seconds is None:
    default = round(_CHUNK_SECONDS * SAMPLE_RATE)
    max_samples = default if limit is None else min(default, limit)
  elif 1 <= flags.chunk_seconds <= (limit or 24 * 3600 * SAMPLE_RATE) / SAMPLE_RATE:
    max_samples = int(flags.chunk_seconds * SAMPLE_RATE)
  else:
    most = "a day" if limit is None else f"the encoder's limit of {limit / SAMPLE_RATE:g}"
    raise UserError(f"--chunk_seconds={flags.chunk_seconds}: expected 1 to {most}")
  encoder = load_speech_encoder(folder)
  return CtcTranscriber(encoder, max_samples, flags.ctc_beams)
