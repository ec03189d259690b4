"""How data become SeqIO tasks: the user's own by `register_speech_task`, the project's sources by the rest."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import seqio
import tensorflow as tf

from slm_jax.data.example_source import BAD_EXAMPLES, ExampleSource
from slm_jax.data.hints import Hints
from slm_jax.data.preprocessors import decode_pcm, tokenize_fields
from slm_jax.data.record_columns import Columns
from slm_jax.data.record_source import RecordSettings, RecordSource
from slm_jax.data.record_splits import SplitSpec, make_splits
from slm_jax.data.task_metrics import kind_of, metric_functions
from slm_jax.data.vocabulary import vocabulary as load_vocabulary

# Examples waiting to be shuffled are part of every saved data position, audio included; shards are
# shuffled as well.
SPEECH_SHUFFLE_BUFFER = 128
TEXT_SHUFFLE_BUFFER = 2_000


class SpeechTask(seqio.Task):
  """A task of speech.

  Its cache is read one example from each shard in turn. SeqIO reads sixteen at once and keeps two
  blocks of sixteen of each, and of the next sixteen, in memory; all of it becomes part of a saved
  data position, audio included. Blocks of one make a position a sixteenth as large and the order
  better mixed.

  Read without a cache, it writes what cannot be used to where its cache would be.

  Attributes:
    kind: of task, as `slm_jax eval` scores it, key of `KIND_METRICS`; "" leaves it to the task's name.
  """

  def __init__(self, *args, kind: str = "", **kwargs):
    super().__init__(*args, **kwargs)
    self.kind = kind

  def get_dataset(self, *args, **kwargs):
    folders = seqio.utils.get_global_cache_dirs()
    if isinstance(self.source, ExampleSource) and folders:
      folder = Path(folders[0]) / seqio.utils.get_task_dir_from_name(self.name)
      self.source.bad_examples = folder / BAD_EXAMPLES
    return super().get_dataset(*args, **kwargs)

  def _get_cached_source(self, split: str, file_shuffle_buffer_size: int | None = None):
    source = super()._get_cached_source(split, file_shuffle_buffer_size)
    source._block_length = 1
    return source


def register_speech_task(
  name: str,
  source: SplitSpec,
  *,
  instruction: str | Sequence[str] | None = None,
  metrics: Sequence[str] = ("wer", "cer"),
  target: str = "text",
  columns: Mapping[str, str] | None = None,
  splits: Mapping[str, float | str | Mapping[str, str | Sequence[str]]] | None = None,
  split_by: str = "",
  where: Mapping[str, str | Sequence[str]] | None = None,
  language: str = "",
  target_language: str = "",
  vocabulary: str | Path | seqio.Vocabulary | None = None,
  sample_rate: int | None = None,
  hints: Hints | None = None,
  max_seconds: float = 30.0,
  max_problem_share: float = 0.01,
) -> seqio.Task:
  """Registers recorded speech as a SeqIO task; reads nothing yet.

  Args:
    name: of the task; in a cache each / makes a folder.
    source: a manifest (.jsonl, .tsv, .csv), a folder of recordings with transcripts (name.wav and
      name.txt), .parquet, .tfrecord or .array_record files (patterns and lists too), or "tfds:" and
      the name of a prepared data set. Or split → any of these, each split's own.
    instruction: what is asked about the speech, or several wordings of it; {column} stands for a
      record's text there. "": each record brings its own. None: the task has none (recognition by
      a CTC head).
    metrics: of "wer", "cer", "exact" (transcription), "bleu", "chrf", "exact" (translation), "exact", "f1"
      (an answer), "wer", "b_wer", "u_wer", "exact" (biasing) or "jga" (a dialogue state).
    target: the column that is the answer: "text", "translation", or another one of the data.
    columns: field of `Columns` → what it is called in the data.
    splits: of a source that is not split itself: name → share of the records (by a hash of
      `split_by`), → TFDS's split, or → {column: values}. Default: 95 % "train", 5 %
      "validation"; for TFDS its own two of these names.
    split_by: column whose equal values must not stand in several splits, e.g. "speaker".
    where: column → values; other records are not part of the task. "*": any but none.
    language: spoken, of records that do not say.
    target_language: of the answer if it is not the spoken one, of records that do not say.
    vocabulary: SentencePiece model or folder of the LM; see `vocabulary.vocabulary`.
    sample_rate: of bare samples, in Hz.
    hints: makes what {hints} stands for in an instruction, e.g. the names in a record's text among
      distractors.
    max_seconds: longer recordings are left out and counted, never cut.
    max_problem_share: of records that may be unusable.

  Raises:
    ValueError: the arguments do not go together.
  """
  wordings = (instruction,) if isinstance(instruction, str) else tuple(instruction or ())
  kind = kind_of(metrics)
  settings = RecordSettings(
    columns=Columns.of(columns or {}),
    target=target,
    instructions=wordings,
    task=name,
    language=language,
    target_language=target_language,
    sample_rate=sample_rate,
    hints=hints,
    max_seconds=max_seconds,
  )
  if not isinstance(vocabulary, seqio.Vocabulary):
    vocabulary = load_vocabulary(vocabulary)
  return add_speech_task(
    name,
    RecordSource(
      make_splits(source, splits, split_by=split_by, where=where or {}),
      settings,
      max_problem_share=max_problem_share,
    ),
    vocabulary,
    instructions=bool(wordings),
    metrics=metrics,
    kind=kind,
    cached_only=False,
  )


def add_speech_task(
  name: str,
  source: ExampleSource,
  vocabulary: seqio.Vocabulary,
  *,
  instructions: bool = True,
  target: str = "target",
  metrics: Sequence[str] = (),
  kind: str = "",
  cached_only: bool = True,
) -> seqio.Task:
  """Registers speech with an instruction (audio, inputs, targets) or without (audio, targets).

  The source's examples have `audio` (PCM16 bytes at 16 kHz), `target` and, with instructions,
  `instruction`. They are cached as they are: the vocabulary may change without making the audio
  again.

  Args:
    name: of the task.
    source: its examples.
    vocabulary: of inputs and targets.
    instructions: whether the task has inputs.
    target: field that is the answer.
    metrics: names of SeqIO metric functions, see `task_metrics`.
    kind: see `SpeechTask`.
    cached_only: whether it may be read from its cache alone.
  """
  fields = {"targets": (target,)}
  if instructions:
    fields["inputs"] = ("instruction",)
  tokens = {feature: seqio.Feature(vocabulary, dtype=tf.int32) for feature in fields}
  return seqio.TaskRegistry.add(
    name,
    source=source,
    preprocessors=[
      seqio.CacheDatasetPlaceholder(required=cached_only),
      decode_pcm,
      tokenize_fields(fields),
      seqio.preprocessors.append_eos,
    ],
    output_features={"audio": seqio.ContinuousFeature(dtype=tf.int16), **tokens},
    metric_fns=metric_functions(metrics),
    shuffle_buffer_size=SPEECH_SHUFFLE_BUFFER,
    task_cls=SpeechTask,
    kind=kind,
  )


def add_text_task(name: str, source: ExampleSource, vocabulary: seqio.Vocabulary) -> seqio.Task:
  """Registers text to text (inputs, targets); inputs are the sentence, then the instruction."""
  return seqio.TaskRegistry.add(
    name,
    source=source,
    preprocessors=[
      seqio.CacheDatasetPlaceholder(required=True),
      tokenize_fields({"inputs": ("sentence", "instruction"), "targets": ("target",)}),
      seqio.preprocessors.append_eos,
    ],
    output_features={
      feature: seqio.Feature(vocabulary, dtype=tf.int32) for feature in ("inputs", "targets")
    },
    shuffle_buffer_size=TEXT_SHUFFLE_BUFFER,
  )
