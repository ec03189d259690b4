"""FLEURS: about 2000 sentences read in each of 102 languages, with translations into the others."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import tensorflow_datasets as tfds

from slm_jax.data.datasets.archives import members, read_text
from slm_jax.data.datasets.corpus import LeftOut, SpeechCorpusBuilder, SpeechRecord

URL = "https://huggingface.co/datasets/google/fleurs/resolve/main/data"
# The data set's own codes.
LANGUAGES = (
  "af_za am_et ar_eg as_in ast_es az_az be_by bg_bg bn_in bs_ba ca_es ceb_ph ckb_iq cmn_hans_cn "
  "cs_cz cy_gb da_dk de_de el_gr en_us es_419 et_ee fa_ir ff_sn fi_fi fil_ph fr_fr ga_ie gl_es gu_in "
  "ha_ng he_il hi_in hr_hr hu_hu hy_am id_id ig_ng is_is it_it ja_jp jv_id ka_ge kam_ke kea_cv kk_kz "
  "km_kh kn_in ko_kr ky_kg lb_lu lg_ug ln_cd lo_la lt_lt luo_ke lv_lv mi_nz mk_mk ml_in mn_mn mr_in "
  "ms_my mt_mt my_mm nb_no ne_np nl_nl nso_za ny_mw oc_fr om_et or_in pa_in pl_pl ps_af pt_br ro_ro "
  "ru_ru sd_in sk_sk sl_si sn_zw so_so sr_rs sv_se sw_ke ta_in te_in tg_tj th_th tr_tr uk_ua umb_ao "
  "ur_pk uz_uz vi_vn wo_sn xh_za yo_ng yue_hant_hk zu_za"
).split()
SPLITS = {"train": "train", "validation": "dev", "test": "test"}
_COLUMNS = ("id", "file_name", "raw", "normalized", "characters", "num_samples", "gender")


class FleursConfig(tfds.core.BuilderConfig):
  """`source` is spoken; `target` is the language of the translations, "" for none."""

  def __init__(self, source: str, target: str = ""):
    super().__init__(name="-".join(filter(None, (source, target))), description="")
    self.source = source
    self.target = target


class Fleurs(SpeechCorpusBuilder):
  """FLEURS. Config "de_de" is German speech, "de_de-en_us" German speech with English translations.

  A sentence is read by up to three speakers. Each recording is paired with the other language's
  text of the same sentence; sentences that the other language lacks are left out.
  """

  VERSION = tfds.core.Version("1.0.0")
  HOMEPAGE = "https://huggingface.co/datasets/google/fleurs"
  LICENCE = "CC BY 4.0"
  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    "Put the folder `data` of huggingface.co/datasets/google/fleurs there, as far as it is needed: "
    "<language>/{train,dev,test}.tsv and <language>/audio/{train,dev,test}.tar.gz."
  )
  BUILDER_CONFIGS = [
    *(FleursConfig(language) for language in LANGUAGES),
    *(FleursConfig(language, "en_us") for language in LANGUAGES if language != "en_us"),
    *(FleursConfig("en_us", language) for language in LANGUAGES if language != "en_us"),
  ]

  def _split_generators(self, dl_manager: tfds.download.DownloadManager):
    config = self.builder_config
    assert isinstance(config, FleursConfig)
    locate = functools.partial(self._locate, dl_manager)
    return {
      split: self._generate_examples(split, _records(locate, file, config))
      for split, file in SPLITS.items()
    }

  def _locate(self, dl_manager: tfds.download.DownloadManager, name: str) -> Path:
    return self.archive(dl_manager, name, url=f"{URL}/{name}")


def _records(
  locate: Callable[[str], Path], file: str, config: FleursConfig
) -> Iterator[SpeechRecord | LeftOut]:
  translations: dict[str, str] = {}
  if config.target:
    for row in _rows(locate(f"{config.target}/{file}.tsv")):
      if not isinstance(row, LeftOut):
        translations.setdefault(row["id"], row["raw"])
  rows: dict[str, dict[str, str]] = {}
  for row in _rows(locate(f"{config.source}/{file}.tsv")):
    if isinstance(row, LeftOut):
      yield row
    elif row["file_name"] in rows:
      yield LeftOut(row["file_name"], "listed twice", problem=False)
    elif config.target and row["id"] not in translations:
      yield LeftOut(row["file_name"], f"sentence missing in {config.target}", problem=False)
      rows[row["file_name"]] = {}
    else:
      rows[row["file_name"]] = row
  for name, read in members(locate(f"{config.source}/audio/{file}.tar.gz")):
    file_name = PurePosixPath(name).name
    if not (row := rows.pop(file_name, {})):
      continue
    yield SpeechRecord(
      id=f"{row['id']}-{PurePosixPath(file_name).stem}",
      audio=read(),
      text=row["raw"],
      normalized_text=row["normalized"],
      language=config.source,
      translation=translations.get(row["id"], ""),
      target_language=config.target,
    )
  for file_name, row in rows.items():
    if row:
      yield LeftOut(file_name, "recording missing")


def _rows(path: Path) -> Iterator[dict[str, str] | LeftOut]:
  """Rows of a TSV without header; quotation marks are part of the text."""
  for number, line in enumerate(read_text(path).split("\n"), start=1):
    if not line.strip():
      continue
    values = line.rstrip("\r").split("\t")
    if len(values) != len(_COLUMNS):
      yield LeftOut(f"{path}:{number}", f"{len(values)} columns, expected {len(_COLUMNS)}")
    else:
      yield dict(zip(_COLUMNS, values, strict=True))
