"""gin files to config dataclasses: strict about names and types, and the only module that imports gin.

Each component has one frozen keyword-only dataclass; gin binds those and nothing else. A name that is unknown, bound
twice in one file, or bound and never used is an error that lists near misses.
"""

import dataclasses
import difflib
import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path

try:
  import gin
  from gin import config as gin_config
  from gin import config_parser
except (
  ImportError
) as error:  # a checkout's `gin/` folder imports as an empty namespace when gin-config is missing
  raise ImportError("gin-config is not installed: pip install gin-config") from error

from slm_jax.audio.log_mel import LogMelConfig
from slm_jax.audio.spec_augment import SpecAugmentConfig
from slm_jax.errors import UserError
from slm_jax.evaluation.config import EvalConfig
from slm_jax.models.adapter import AdapterConfig
from slm_jax.models.best_rq import BestRQConfig
from slm_jax.models.conformer import ConformerConfig
from slm_jax.models.length_reduction import LengthReductionConfig
from slm_jax.models.retriever import RetrieverConfig
from slm_jax.models.t5 import T5Config
from slm_jax.training.config import (
  DatasetConfig,
  FakeDatasetConfig,
  PretrainConfig,
  TrainConfig,
)
from slm_jax.training.optimizer import OptimizerConfig
from slm_jax.training.recipes import (
  AdapterRecipe,
  BestRQRecipe,
  LanguageModelRecipe,
  RetrieverRecipe,
  SpeechEncoderRecipe,
)
from slm_jax.training.sharding import MeshConfig

# Entry points of the command line, under the names a T5X user types; the rest go by their class names.
ROOTS = {"train": TrainConfig, "eval": EvalConfig, "pretrain": PretrainConfig}
COMPONENTS = ROOTS | {
  cls.__name__: cls
  for cls in (
    AdapterConfig,
    AdapterRecipe,
    BestRQConfig,
    BestRQRecipe,
    ConformerConfig,
    DatasetConfig,
    FakeDatasetConfig,
    LanguageModelRecipe,
    LengthReductionConfig,
    LogMelConfig,
    MeshConfig,
    OptimizerConfig,
    RetrieverConfig,
    RetrieverRecipe,
    SpecAugmentConfig,
    SpeechEncoderRecipe,
    T5Config,
  )
}
PACKAGE_ROOT = Path(__file__).parent.parent


def _matches(value, hint) -> bool:
  """Whether a gin value fits a type hint; ints pass as floats, sequences of any kind as tuples."""
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if hint is typing.Any:
    return True
  if origin in (typing.Union, types.UnionType):
    return any(_matches(value, arg) for arg in args)
  if origin in (tuple, list):
    inner = args[0] if args else typing.Any
    return isinstance(value, (tuple, list)) and all(_matches(item, inner) for item in value)
  if origin is dict:
    return isinstance(value, dict) and all(
      _matches(k, args[0]) and _matches(v, args[1]) for k, v in value.items()
    )
  if hint is float:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
  if hint is int:
    return isinstance(value, int) and not isinstance(value, bool)
  return isinstance(value, hint)


def _describe(hint) -> str:
  return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)


def _knob(selector: str, name: str) -> str:
  """The macro that a field is bound to, or the field itself: what a user has to set."""
  bound = gin_config._CONFIG.get(("", f"slm_jax.{selector}"), {}).get(name)
  for reference in gin_config.iterate_references({("", "x"): {"y": bound}}):
    if reference.selector == "gin.macro":
      return reference.scoped_selector.split("/")[0]
  return f"{selector}.{name}"


def _builder(selector: str, cls: type):
  """A function with the dataclass's signature that checks types, then builds it."""
  hints = typing.get_type_hints(cls)

  def build(**values):
    for name, value in values.items():
      if value is gin.REQUIRED:
        knob = _knob(selector, name)
        raise UserError(
          f"{knob} is required and not bound; give --gin.{knob}=… or bind it in a gin file"
        )
      if not _matches(value, hints[name]):
        raise UserError(
          f"{selector}.{name} = {value!r} is {type(value).__name__}; expected {_describe(hints[name])}"
        )
      if typing.get_origin(hints[name]) is tuple:
        values[name] = tuple(value)
    missing = [
      field.name
      for field in dataclasses.fields(cls)
      if field.name not in values
      and field.default is dataclasses.MISSING
      and field.default_factory is dataclasses.MISSING
    ]
    if missing:
      raise UserError(
        f"{selector}: not bound: {missing}; add --gin.{selector}.{missing[0]}=… or a gin file"
      )
    try:
      return cls(**values)
    except ValueError as error:
      raise UserError(f"{selector}: {error}") from error

  # gin reads names and defaults off the signature; a default_factory has no literal to show.
  signature = inspect.signature(cls)
  build.__signature__ = signature.replace(  # pyright: ignore[reportFunctionMemberAccess]
    parameters=[
      p.replace(default=inspect.Parameter.empty)
      if "factory" in type(p.default).__name__.lower()
      else p
      for p in signature.parameters.values()
    ]
  )
  build.__doc__ = cls.__doc__
  return build


# gin's second file reader looks inside packages and logs an error for every folder that lacks a file.
gin_config._FILE_READERS[:] = gin_config._FILE_READERS[:1]
for _selector, _cls in COMPONENTS.items():
  gin.external_configurable(_builder(_selector, _cls), name=_selector, module="slm_jax")


def _near(name: str, known: Sequence[str]) -> str:
  close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
  return f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(sorted(known))}"


def _check_binding(scope: str, selector: str, parameter: str, where: str) -> None:
  if not parameter:  # a macro
    return
  if selector not in COMPONENTS:
    raise UserError(
      f"{where}: no component named {selector!r}; {_near(selector, list(COMPONENTS))}"
    )
  names = [field.name for field in dataclasses.fields(COMPONENTS[selector])]
  if parameter not in names:
    raise UserError(f"{where}: {selector} has no field {parameter!r}; {_near(parameter, names)}")


class _Delegate(config_parser.ParserDelegate):
  """Values are not resolved while a file is only checked."""

  def configurable_reference(self, scoped_name, evaluate):
    return scoped_name, evaluate

  def macro(self, name):
    return name


def _check_file(path: Path, search_paths: Sequence[Path], seen: set[Path]) -> None:
  """Names every unknown and doubly bound name of a gin file and of what it includes."""
  if path in seen:
    return
  seen.add(path)
  bound: dict[tuple, int] = {}
  try:
    statements = list(config_parser.ConfigParser(path.read_text("utf-8"), _Delegate()))
  except UnicodeDecodeError as error:
    raise UserError(f"{path}: not a gin file (not UTF-8 text: byte {error.start})") from error
  except SyntaxError as error:
    raise UserError(f"{path}:{error.lineno}: {error.msg}") from error
  for statement in statements:
    if isinstance(statement, config_parser.IncludeStatement):
      _check_file(find_gin_file(statement.filename, search_paths), search_paths, seen)
    elif isinstance(statement, config_parser.BindingStatement):
      line = statement.location.line_num
      key = (statement.scope, statement.selector, statement.arg_name)
      if key in bound:
        name = ".".join(part for part in (statement.selector, statement.arg_name) if part)
        raise UserError(
          f"{path}:{line}: {name} is bound twice (first on line {bound[key]}); keep one"
        )
      bound[key] = line
      _check_binding(statement.scope, statement.selector, statement.arg_name, f"{path}:{line}")


def find_gin_file(name: str, search_paths: Sequence[Path]) -> Path:
  """Resolves a gin file name against the search paths; raises UserError listing near misses."""
  for base in (Path("."), *search_paths):
    if (base / name).is_file():
      return base / name
  there = [str(p) for base in search_paths for p in sorted(base.rglob("*.gin"))]
  raise UserError(f"no gin file {name!r} in {[str(p) for p in search_paths]}; {_near(name, there)}")


def _referenced(value) -> set[str]:
  """Names of the components and macros (as `%NAME`) that a bound value refers to."""
  names = set()
  for reference in gin_config.iterate_references({("", "x"): {"y": value}}):
    selector = reference.selector
    names.add(
      f"%{reference.scoped_selector.split('/')[0]}" if selector == "gin.macro" else selector
    )
  return {name.rsplit(".", 1)[-1] if not name.startswith("%") else name for name in names}


def _check_unused() -> None:
  bindings = {}  # "%MACRO" or component -> names its values refer to
  for (scope, selector), values in gin_config._CONFIG.items():
    name = f"%{scope}" if selector == "gin.macro" else selector.rsplit(".", 1)[-1]
    for value in values.values():
      bindings.setdefault(name, set()).update(_referenced(value))
  reached, queue = set(), [name for name in bindings if name in ROOTS] + ["AdapterRecipe"]
  while queue:
    name = queue.pop()
    if name not in reached:
      reached.add(name)
      queue.extend(bindings.get(name, ()))
  for name in sorted(set(bindings) - reached):
    used = sorted(n.lstrip("%") for n in reached)
    raise UserError(
      f"{name.lstrip('%')} is bound but nothing uses it; {_near(name.lstrip('%'), used)}"
    )


def _mentioned() -> set[str]:
  """Macros that are bound, or that bound values refer to."""
  names = {f"%{scope}" for scope, selector in gin_config._CONFIG if selector == "gin.macro"}
  values = [value for bound in gin_config._CONFIG.values() for value in bound.values()]
  return {name[1:] for name in names.union(*map(_referenced, values)) if name[0] == "%"}


def load(
  gin_files: Sequence[str],
  bindings: Sequence[str] = (),
  search_paths: Sequence[str] = (),
  placeholders: Mapping[str, str] | None = None,
) -> None:
  """Parses gin files in order (later ones win), then `NAME=VALUE` bindings.

  Args:
    gin_files, bindings: as on the command line.
    search_paths: folders of gin files, before the working directory and our own.
    placeholders: texts for macros, where the files mention these; bindings override them.

  Raises:
    UserError: a missing file, a syntax error, an unknown, doubly bound or unused name.
  """
  paths = [Path(p) for p in search_paths] + [Path.cwd(), PACKAGE_ROOT / "gin", PACKAGE_ROOT]
  gin.clear_config()
  for path in reversed(paths):
    gin.add_config_file_search_path(str(path))
  seen: set[Path] = set()
  try:
    for name in gin_files:
      path = find_gin_file(name, paths)
      _check_file(path, paths, seen)
      gin.parse_config_file(str(path))
    for name in _mentioned() & set(placeholders or ()):
      gin.parse_config(f"{name} = {(placeholders or {})[name]!r}")
    for binding in bindings:
      name = binding.split("=", 1)[0].strip()
      scope, _, unscoped = name.rpartition("/")
      selector, _, parameter = unscoped.rpartition(".")
      _check_binding(scope, selector, parameter if selector else "", f"--gin.{name}")
      gin.parse_config(binding)
  except SyntaxError as error:
    raise UserError(
      f"gin: {error.msg}: {str(error.text).strip()!r} (strings need quotes)"
    ) from error
  except (ValueError, RuntimeError) as error:
    raise UserError(f"gin: {_first_line(error)}") from error
  _check_unused()


def _first_line(error: Exception) -> str:
  return str(error).strip().split("\n")[0]


def build(name: str):
  """Builds the component bound under `name`, e.g. "train".

  Raises:
    UserError: a required field or macro is not bound, or a value has the wrong type or an impossible value.
  """
  try:
    return gin.get_configurable(f"slm_jax.{name}")()
  except UserError as error:
    # gin appends where the call came from on lines of its own.
    raise UserError(_first_line(error)) from error
  except (ValueError, TypeError, RuntimeError) as error:
    raise UserError(f"gin: {_first_line(error)}") from error


def operative() -> str:
  """The bindings that were used, as text that `load` reads again."""
  return gin.operative_config_str()
