"""The words of the mini world, read from lexicon.tsv, with every inflected form the grammar needs.

Columns: kind, key (the English headword), tags, and one cell per language (en, de, fr, es). The
forms in a cell are separated by commas:

  noun, profession   en: singular,plural; de, fr, es: gender,singular,plural; de adds the accusative
                     singular where it differs from the nominative
  verb               third person present: singular,plural
  colour, adjective  en: the word; de: uninflected,-e,-en,-es; fr: pre|post (its side of the noun),
                     masculine,feminine,masculine plural,feminine plural, and the masculine before
                     a vowel where it differs; es: the same four, without pre|post
  number, time, place  one form; times and places are whole phrases

Tags of a noun: its class. Of an adjective or a verb: the noun classes it goes with ("any" = all). A
verb's tags also name its frames other than a thing: "alone", "person", "recipient"; `then:VERB` is
the verb of the follow-up, `then_person:VERB` the same when the object is a person.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path

COLUMNS = ("en", "de", "fr", "es")
LANGUAGES = ("en", "de", "es", "fr")
NOUN_CLASSES = ("food", "clothes", "thing", "paper", "animal", "vehicle", "plant")
FRAMES = ("alone", "person", "thing", "recipient")
PATH = Path(__file__).parent / "lexicon.tsv"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Word:
  """One row; `forms[language]` are its forms in the order given in the module's docstring."""

  kind: str
  key: str
  tags: tuple[str, ...]
  forms: Mapping[str, tuple[str, ...]]
  classes: tuple[str, ...]  # noun classes: its own, or those it goes with
  frames: tuple[str, ...] = ()  # verbs only
  then: Mapping[str, str] = dataclasses.field(default_factory=dict)  # verbs only: frame → key


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lexicon:
  """Words by kind, in file order, and the choices open to the sampler."""

  by_kind: Mapping[str, tuple[Word, ...]]
  verbs_by_frame: Mapping[str, tuple[Word, ...]]
  nouns_by_class: Mapping[str, tuple[Word, ...]]
  adjectives_by_class: Mapping[str, tuple[Word, ...]]
  places: Mapping[str, tuple[Word, ...]]  # "city" and "local"
  verb: Mapping[str, Word]


def _word(line: str) -> Word:
  kind, key, tags, *cells = line.split("\t")
  if len(cells) != len(COLUMNS):
    raise ValueError(f"{PATH.name}: row {key!r} has {len(cells)} language cells, expected 4")
  forms = {name: tuple(cell.split(",")) for name, cell in zip(COLUMNS, cells, strict=True)}
  tag_list = tuple(tags.split())
  classes = NOUN_CLASSES if "any" in tag_list else tuple(t for t in tag_list if t in NOUN_CLASSES)
  frames: tuple[str, ...] = ()
  then: dict[str, str] = {}
  if kind == "verb":
    frames = tuple(f for f in FRAMES if f in tag_list and f != "thing")
    frames += ("thing",) if classes else ()
    options = dict(tag.split(":") for tag in tag_list if ":" in tag)
    then = {frame: options.get(f"then_{frame}", options["then"]) for frame in frames}
  return Word(
    kind=kind, key=key, tags=tag_list, forms=forms, classes=classes, frames=frames, then=then
  )


@functools.cache
def load_lexicon() -> Lexicon:
  """Reads lexicon.tsv once."""
  words = [_word(line) for line in PATH.read_text(encoding="utf-8").splitlines()[1:]]
  kinds = dict.fromkeys(word.kind for word in words)
  by_kind = {kind: tuple(w for w in words if w.kind == kind) for kind in kinds}
  verbs = by_kind["verb"]
  return Lexicon(
    by_kind=by_kind,
    verbs_by_frame={f: tuple(v for v in verbs if f in v.frames) for f in FRAMES},
    nouns_by_class={c: tuple(n for n in by_kind["noun"] if c in n.classes) for c in NOUN_CLASSES},
    adjectives_by_class={
      c: tuple(a for a in by_kind["adjective"] if c in a.classes) for c in NOUN_CLASSES
    },
    places={k: tuple(p for p in by_kind["place"] if k in p.tags) for k in ("city", "local")},
    verb={verb.key: verb for verb in verbs},
  )


@functools.cache
def surface_words() -> frozenset[str]:
  """Every word of every form in any language, lower case; names keep clear of them."""
  words = (w for kind in load_lexicon().by_kind.values() for w in kind)
  return frozenset(
    part.lower() for w in words for forms in w.forms.values() for f in forms for part in f.split()
  )
