"""The lexicon: size, one-to-one translation, complete forms."""

import re

import pytest

from slm_jax.data.mini_world.lexicon import LANGUAGES, NOUN_CLASSES, load_lexicon

LEXICON = load_lexicon()
WORDS = [word for words in LEXICON.by_kind.values() for word in words]
NUM_FORMS = {
  "noun": {"en": {2}, "de": {3, 4}, "fr": {3}, "es": {3}},
  "profession": {"en": {2}, "de": {3}, "fr": {3}, "es": {3}},
  "verb": dict.fromkeys(LANGUAGES, {2}),
  "colour": {"en": {1}, "de": {4}, "fr": {5, 6}, "es": {4}},
  "adjective": {"en": {1}, "de": {4}, "fr": {5, 6}, "es": {4}},
}


def headword(word, language):
  markers = {"m", "f", "n", "pre", "post"}
  return next(form for form in word.forms[language] if form not in markers)


@pytest.mark.parametrize("language", LANGUAGES)
def test_at_least_400_different_content_words(language):
  assert len({headword(word, language).lower() for word in WORDS}) >= 400


@pytest.mark.parametrize("language", LANGUAGES)
def test_within_a_kind_no_form_belongs_to_two_words(language):
  # Otherwise a sentence would have two translations.
  for words in LEXICON.by_kind.values():
    owners = {}
    for word in words:
      for form in set(word.forms[language]) - {"m", "f", "n", "pre", "post"}:
        assert owners.setdefault(form, word.key) == word.key, form


def test_every_word_has_the_forms_its_kind_needs():
  for word in WORDS:
    for language in LANGUAGES:
      forms = word.forms[language]
      assert len(forms) in NUM_FORMS.get(word.kind, dict.fromkeys(LANGUAGES, {1}))[language], word
      assert all(re.fullmatch(r"[^\W\d_]+([' ][^\W\d_]+)*", form) for form in forms), word


def test_no_french_word_needs_a_mark_for_its_h():
  for word in WORDS:
    phrasal = word.kind in ("number", "time", "place")
    if not phrasal and word.frames != ("alone",):  # nothing is ever elided before these
      assert not any(form[0] in "hy" for form in word.forms["fr"]), word


def test_no_counted_word_hides_its_number():
  # "the sheep" would be one or many; numbers and articles settle it in every other language.
  for kind in ("noun", "profession", "verb"):
    assert all(len(set(word.forms["en"])) == 2 for word in LEXICON.by_kind[kind])


def test_follow_up_verbs_take_the_same_objects():
  for verb in LEXICON.by_kind["verb"]:
    assert verb.frames
    for frame, key in verb.then.items():
      assert key != verb.key
      then = LEXICON.verb[key]
      assert ("alone" in then.frames) == (frame == "alone"), verb
      if frame in ("thing", "recipient"):
        assert set(verb.classes) <= set(then.classes), verb


def test_every_noun_class_can_be_described():
  for noun_class in NOUN_CLASSES:
    assert len(LEXICON.nouns_by_class[noun_class]) >= 8
    assert len(LEXICON.adjectives_by_class[noun_class]) >= 5
