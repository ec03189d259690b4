"""Every size in gin/models/t5 is the published one."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from slm_jax import config
from slm_jax.errors import UserError
from slm_jax.models.t5 import T5, T5Config
from slm_jax.training.recipes import AdapterRecipe, LanguageModelRecipe

FOLDER = Path("gin/models/t5")
TOKENIZER = "LanguageModelRecipe.tokenizer='spiece.model'"
# Parameters of the released weights, and what the papers and model cards call them, in millions:
# arXiv:1910.10683 §3.7, arXiv:2010.11934 table 1 and the README of each release. None: no number is
# stated, and the total is mT5's with 2 x 6272 more embeddings and a bias of 32 x heads in each layer.
PUBLISHED = {
  "t5_1_0_small": (60_506_624, 60),
  "t5_1_0_base": (222_903_552, 220),
  "t5_1_0_large": (737_668_096, 770),
  "t5_1_0_3b": (2_851_598_336, 2_800),
  "t5_1_0_11b": (11_307_321_344, 11_000),
  "t5_1_1_small": (76_961_152, 77),
  "t5_1_1_base": (247_577_856, 250),
  "t5_1_1_large": (783_150_080, 780),
  "t5_1_1_xl": (2_849_757_184, 2_850),
  "t5_1_1_xxl": (11_135_332_352, 11_000),
  "mt5_small": (300_176_768, 300),
  "mt5_base": (582_401_280, 580),
  "mt5_large": (1_229_581_312, 1_230),
  "mt5_xl": (3_742_619_648, 3_740),
  "mt5_xxl": (12_921_057_280, 12_920),
  "umt5_small": (306_601_984, 307),
  "umt5_base": (592_043_520, None),
  "umt5_xl": (3_768_356_864, None),
  "umt5_xxl": (12_972_531_712, None),
}


def load(name: str) -> LanguageModelRecipe:
  config.load([str(FOLDER / f"{name}.gin")], ["train.model=@LanguageModelRecipe()", TOKENIZER])
  return config.build("LanguageModelRecipe")


def count(cfg: T5Config) -> dict[str, int]:
  """Parameters in all, and by top-level part; nothing is computed."""
  tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
  mask = jax.ShapeDtypeStruct((1, 2), bool)
  params = jax.eval_shape(T5(cfg).init, jax.random.key(0), tokens, mask, tokens)["params"]
  parts = {
    part: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
    for part, tree in params.items()
  }
  return {**parts, "total": sum(parts.values())}


def test_every_file_is_in_the_table():
  files = {path.stem for path in FOLDER.glob("*.gin")} - {
    "frozen",
    "from_scratch",
    "from_scratch_chunked",
  }
  assert files == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_totals_are_the_published_ones(name):
  recipe = load(name)
  total, millions = PUBLISHED[name]
  assert count(recipe.config)["total"] == total
  # T5's own paper calls its 738 M large model 770 M.
  assert millions is None or abs(total / 1e6 / millions - 1) < 0.05
  assert recipe.config.dtype == "bfloat16"


def test_the_largest_mt5_divides_as_published():
  parts = count(load("mt5_xxl").config)
  assert round(parts["encoder"] / 1e9, 2) == 4.63
  # With the output projection, which is as large as the embedding.
  assert round((parts["decoder"] - parts["token_embedder"]) / 1e9, 2) == 6.24


@pytest.mark.parametrize("name", ["mt5_small", "umt5_small", "t5_1_1_small", "t5_1_0_small"])
def test_families_differ_by_their_switches(name):
  cfg = load(name).config
  family = name.removesuffix("_small")
  assert cfg.per_layer_relpos is (family == "umt5")
  assert cfg.logits_via_embedding is (family == "t5_1_0")
  assert cfg.mlp_activations == (("relu",) if family == "t5_1_0" else ("gelu", "linear"))


def test_the_tokenizer_is_asked_for_by_name():
  config.load([str(FOLDER / "mt5_small.gin")], ["train.model=@LanguageModelRecipe()"])
  with pytest.raises(UserError, match="LanguageModelRecipe.tokenizer"):
    config.build("LanguageModelRecipe")


def test_a_large_frozen_language_model_is_a_file_of_its_own():
  config.load(["models/mini.gin", "models/t5/frozen.gin"])
  recipe = config.build("AdapterRecipe")
  assert isinstance(recipe, AdapterRecipe)
  language_model = recipe.build().objective.model.config.language_model  # pyright: ignore
  assert (language_model.dtype, language_model.remat) == ("bfloat16", "full")


@pytest.mark.parametrize(
  "binding",
  [
    "AdapterRecipe.language_model_dtype='float16'",
    "AdapterRecipe.language_model_remat='some'",
    "AdapterRecipe.loss_chunk=-1",
  ],
)
def test_a_wrong_choice_for_the_frozen_language_model_is_named(binding):
  config.load(["models/mini.gin", "models/t5/frozen.gin"], [binding])
  with pytest.raises(UserError, match=binding.split("=")[0].split(".")[1]):
    config.build("AdapterRecipe")
