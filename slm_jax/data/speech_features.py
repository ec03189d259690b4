"""SeqIO feature converters: task features (audio, inputs, targets) to the fields of `Batch`."""

from collections.abc import Mapping

import seqio
import tensorflow as tf

Spec = seqio.FeatureConverter.FeatureSpec


class SpeechFeatureConverter(seqio.FeatureConverter):
  """Speech and an instruction in, text out.

  | task feature | model feature |
  |---|---|
  | audio int16 [s] | audio int16 [S] (padded with 0), audio_lengths int32 [] = s |
  | inputs int32 | encoder_input_tokens int32 [P], padded with 0 |
  | targets int32 | decoder_target_tokens int32 [T], padded with 0 |
  | | decoder_input_tokens int32 [T]: targets shifted right, 0 first |
  | | decoder_loss_weights float32 [T]: 1 on targets, 0 on padding |

  Targets come with their EOS. Longer features are an error here: `batches.drop_over_long` removes
  them before. Packing is not supported: an utterance fills its row.
  """

  TASK_FEATURES: Mapping[str, Spec] = {
    "audio": Spec(dtype=tf.int16),
    "inputs": Spec(dtype=tf.int32),
    "targets": Spec(dtype=tf.int32),
  }
  MODEL_FEATURES: Mapping[str, Spec] = {
    "audio": Spec(dtype=tf.int16),
    "audio_lengths": Spec(dtype=tf.int32, rank=0),
    "encoder_input_tokens": Spec(dtype=tf.int32),
    "decoder_input_tokens": Spec(dtype=tf.int32),
    "decoder_target_tokens": Spec(dtype=tf.int32),
    "decoder_loss_weights": Spec(dtype=tf.float32),
  }
  PACKING_FEATURE_DTYPES: Mapping[str, tf.DType] = {}

  def __init__(self, pack: bool = False, **kwargs):
    """Raises ValueError for pack=True."""
    if pack:
      raise ValueError("pack=True: speech examples are not packed")
    super().__init__(pack=False, **kwargs)

  def _convert_features(
    self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]
  ) -> tf.data.Dataset:
    def pad(values: tf.Tensor, length: int) -> tf.Tensor:
      padded = tf.pad(values, [[0, length - tf.size(values)]])
      return tf.ensure_shape(padded, [length])

    def convert(example):
      converted = {name: example[name] for name in self._passthrough_features}
      if "audio" in self.TASK_FEATURES:
        converted["audio"] = pad(example["audio"], task_feature_lengths["audio"])
        converted["audio_lengths"] = tf.size(example["audio"])
      if "inputs" in self.TASK_FEATURES:
        converted["encoder_input_tokens"] = pad(example["inputs"], task_feature_lengths["inputs"])
      targets = pad(example["targets"], task_feature_lengths["targets"])
      converted["decoder_target_tokens"] = targets
      converted["decoder_input_tokens"] = tf.concat([[self.bos_id], targets[:-1]], axis=0)
      # By length, not by id: a pad id inside the text would otherwise lose its weight.
      real = tf.range(task_feature_lengths["targets"]) < tf.size(example["targets"])
      converted["decoder_loss_weights"] = tf.cast(real, tf.float32)
      return converted

    return ds.map(convert, num_parallel_calls=tf.data.AUTOTUNE)

  def get_model_feature_lengths(self, task_feature_lengths: Mapping[str, int]) -> Mapping[str, int]:
    """Model feature → length; `audio_lengths` is a scalar and counts as 1."""
    lengths = {name: task_feature_lengths[name] for name in self._passthrough_features}
    if "audio" in self.TASK_FEATURES:
      lengths |= {"audio": task_feature_lengths["audio"], "audio_lengths": 1}
    if "inputs" in self.TASK_FEATURES:
      lengths["encoder_input_tokens"] = task_feature_lengths["inputs"]
    decoder = ("decoder_input_tokens", "decoder_target_tokens", "decoder_loss_weights")
    return lengths | dict.fromkeys(decoder, task_feature_lengths["targets"])


class RecognitionFeatureConverter(SpeechFeatureConverter):
  """Speech in, its transcript out, no instruction: what CTC trains on."""

  TASK_FEATURES = {n: s for n, s in SpeechFeatureConverter.TASK_FEATURES.items() if n != "inputs"}
  MODEL_FEATURES = {
    n: s for n, s in SpeechFeatureConverter.MODEL_FEATURES.items() if n != "encoder_input_tokens"
  }


class TextFeatureConverter(SpeechFeatureConverter):
  """Text in, text out: what the LM is pre-trained on."""

  TASK_FEATURES = {n: s for n, s in SpeechFeatureConverter.TASK_FEATURES.items() if n != "audio"}
  MODEL_FEATURES = {
    n: s
    for n, s in SpeechFeatureConverter.MODEL_FEATURES.items()
    if n not in ("audio", "audio_lengths")
  }


CONVERTERS = (SpeechFeatureConverter, RecognitionFeatureConverter, TextFeatureConverter)


def converter_for(feature_names, **kwargs) -> SpeechFeatureConverter:
  """The converter of exactly these task features; raises ValueError if there is none."""
  for converter in CONVERTERS:
    if set(converter.TASK_FEATURES) == set(feature_names):
      return converter(**kwargs)
  known = [sorted(converter.TASK_FEATURES) for converter in CONVERTERS]
  raise ValueError(f"no feature converter for {sorted(feature_names)}; there are {known}")
