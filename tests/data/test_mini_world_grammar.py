"""Hand-written sentences of each language: agreement, articles, elision, word order."""

import dataclasses

import pytest

from slm_jax.data.mini_world.lexicon import load_lexicon
from slm_jax.data.mini_world.meaning import Meaning, Subject, Thing
from slm_jax.data.mini_world.patterns import Pattern
from slm_jax.data.mini_world.world import GRAMMARS

LEXICON = load_lexicon()


def word(kind, key):
  (found,) = (w for w in LEXICON.by_kind[kind] if w.key == key)
  return found


def thing(noun, determiner, modifier=None, number=None):
  kind = "colour" if modifier in {w.key for w in LEXICON.by_kind["colour"]} else "adjective"
  return Thing(
    noun=word("noun", noun),
    determiner=determiner,
    number=word("number", number) if number else None,
    modifier=word(kind, modifier) if modifier else None,
  )


def meaning(
  verb,
  *,
  subject="Tomeli",
  frame="thing",
  thing=None,
  person=None,
  place=None,
  time=None,
  slot="late",
):
  pattern = Pattern(
    time=slot if time else "none",
    subject="name",
    frame=frame,
    determiner=thing.determiner if thing else "none",
    modifier="plain",
    place="city" if place else "none",
  )
  return Meaning(
    pattern=pattern,
    subject=subject if isinstance(subject, Subject) else Subject(names=(subject,)),
    verb=LEXICON.verb[verb],
    thing=thing,
    person=person,
    place=word("place", place) if place else None,
    time=word("time", time) if time else None,
  )


PAIR = Subject(names=("Tomeli", "Karina"))
WRITER = Subject(profession=word("profession", "writer"))
THREE_KINGS = Subject(profession=word("profession", "king"), number=word("number", "three"))

MEANINGS = {
  "plural colour": meaning("buy", thing=thing("apple", "number", "red", "three")),
  "fronted time": meaning(
    "wash", subject=PAIR, thing=thing("cup", "definite", "white"), time="today", slot="front"
  ),
  "late time": meaning(
    "see", thing=thing("lion", "definite", "big"), place="in Rome", time="on Monday"
  ),
  "indefinite": meaning("eat", thing=thing("orange", "indefinite", "sweet")),
  "neuter": meaning("read", subject=WRITER, thing=thing("book", "indefinite", "old")),
  "before a vowel": meaning("draw", thing=thing("tree", "definite", "old")),
  "mice": meaning("feed", subject=THREE_KINGS, thing=thing("mouse", "number", "hungry", "two")),
  "person": meaning("help", subject=PAIR, frame="person", person="Dano", place="in Germany"),
  "receiver": meaning(
    "give", frame="recipient", thing=thing("coat", "indefinite", "new"), person="Dano", time="now"
  ),
  "alone": meaning(
    "sleep", subject=THREE_KINGS, frame="alone", place="in the school", time="in May", slot="front"
  ),
  "pink": meaning("sell", thing=thing("dress", "number", "pink", "ten")),
}

STATEMENTS = {
  "en": {
    "plural colour": "Tomeli buys three red apples.",
    "fronted time": "Today Tomeli and Karina wash the white cup.",
    "late time": "Tomeli sees the big lion in Rome on Monday.",
    "indefinite": "Tomeli eats a sweet orange.",
    "neuter": "The writer reads an old book.",
    "before a vowel": "Tomeli draws the old tree.",
    "mice": "Three kings feed two hungry mice.",
    "person": "Tomeli and Karina help Dano in Germany.",
    "receiver": "Tomeli gives a new coat to Dano now.",
    "alone": "In May three kings sleep in the school.",
    "pink": "Tomeli sells ten pink dresses.",
  },
  "de": {
    "plural colour": "Tomeli kauft drei rote Äpfel.",
    "fronted time": "Heute waschen Tomeli und Karina die weiße Tasse.",
    "late time": "Tomeli sieht am Montag den großen Löwen in Rom.",
    "indefinite": "Tomeli isst eine süße Orange.",
    "neuter": "Der Schriftsteller liest ein altes Buch.",
    "before a vowel": "Tomeli zeichnet den alten Baum.",
    "mice": "Drei Könige füttern zwei hungrige Mäuse.",
    "person": "Tomeli und Karina helfen Dano in Deutschland.",
    "receiver": "Tomeli gibt Dano jetzt einen neuen Mantel.",
    "alone": "Im Mai schlafen drei Könige in der Schule.",
    "pink": "Tomeli verkauft zehn rosa Kleider.",
  },
  "fr": {
    "plural colour": "Tomeli achète trois pommes rouges.",
    "fronted time": "Aujourd'hui Tomeli et Karina lavent la tasse blanche.",
    "late time": "Tomeli voit le grand lion à Rome lundi.",
    "indefinite": "Tomeli mange une orange sucrée.",
    "neuter": "L'écrivain lit un vieux livre.",
    "before a vowel": "Tomeli dessine le vieil arbre.",
    "mice": "Trois rois nourrissent deux souris affamées.",
    "person": "Tomeli et Karina aident Dano en Allemagne.",
    "receiver": "Tomeli donne un nouveau manteau à Dano maintenant.",
    "alone": "En mai trois rois dorment dans l'école.",
    "pink": "Tomeli vend dix robes roses.",
  },
  "es": {
    "plural colour": "Tomeli compra tres manzanas rojas.",
    "fronted time": "Hoy Tomeli y Karina lavan la taza blanca.",
    "late time": "Tomeli ve el león grande en Roma el lunes.",
    "indefinite": "Tomeli come una naranja dulce.",
    "neuter": "El escritor lee un libro viejo.",
    "before a vowel": "Tomeli dibuja el árbol viejo.",
    "mice": "Tres reyes alimentan dos ratones hambrientos.",
    "person": "Tomeli y Karina ayudan a Dano en Alemania.",
    "receiver": "Tomeli da un abrigo nuevo a Dano ahora.",
    "alone": "En mayo tres reyes duermen en la escuela.",
    "pink": "Tomeli vende diez vestidos rosas.",
  },
}


@pytest.mark.parametrize("language", STATEMENTS)
def test_statements_agree(language):
  rendered = {name: GRAMMARS[language].statement(m) for name, m in MEANINGS.items()}
  assert rendered == STATEMENTS[language]


def test_questions_in_each_language():
  m = dataclasses.replace(
    MEANINGS["late time"],
    pattern=dataclasses.replace(MEANINGS["late time"].pattern, modifier="colour"),
    thing=thing("orange", "number", "green", "five"),
  )
  assert GRAMMARS["en"].questions(m) == [
    ("Who sees the oranges?", "Tomeli"),
    ("What does Tomeli see?", "five green oranges"),
    ("How many oranges?", "five"),
    ("What colour are the oranges?", "green"),
    ("Where is Tomeli?", "in Rome"),
    ("When is that?", "on Monday"),
  ]
  assert GRAMMARS["de"].questions(m) == [
    ("Wer sieht die Orangen?", "Tomeli"),
    ("Was sieht Tomeli?", "fünf grüne Orangen"),
    ("Wie viele Orangen?", "fünf"),
    ("Welche Farbe haben die Orangen?", "grün"),
    ("Wo ist Tomeli?", "in Rom"),
    ("Wann ist das?", "am Montag"),
  ]
  assert GRAMMARS["fr"].questions(m) == [
    ("Qui voit les oranges ?", "Tomeli"),
    ("Que voit Tomeli ?", "cinq oranges vertes"),
    ("Combien d'oranges ?", "cinq"),
    ("De quelle couleur sont les oranges ?", "vertes"),
    ("Où est Tomeli ?", "à Rome"),
    ("C'est quand ?", "lundi"),
  ]
  assert GRAMMARS["es"].questions(m) == [
    ("¿Quién ve las naranjas?", "Tomeli"),
    ("¿Qué ve Tomeli?", "cinco naranjas verdes"),
    ("¿Cuántas naranjas?", "cinco"),
    ("¿De qué color son las naranjas?", "verdes"),
    ("¿Dónde está Tomeli?", "en Roma"),
    ("¿Cuándo es eso?", "el lunes"),
  ]


def test_questions_about_people():
  asked = dict(GRAMMARS["de"].questions(MEANINGS["receiver"]))
  assert asked["Wer gibt den Mantel?"] == "Tomeli"
  assert asked["Wer bekommt den Mantel?"] == "Dano"
  assert dict(GRAMMARS["es"].questions(MEANINGS["person"]))["¿Quién ayuda a Dano?"] == (
    "Tomeli y Karina"
  )
  assert dict(GRAMMARS["fr"].questions(MEANINGS["alone"]))["Où sont les rois ?"] == "dans l'école"
  assert dict(GRAMMARS["en"].questions(MEANINGS["mice"]))["How many kings?"] == "three"
  assert dict(GRAMMARS["fr"].questions(MEANINGS["plural colour"]))["Qu'achète Tomeli ?"] == (
    "trois pommes rouges"
  )


def test_replies_and_continuations():
  buys, gives = MEANINGS["plural colour"], MEANINGS["receiver"]
  assert [GRAMMARS[code].reply(buys) for code in ("en", "de", "fr", "es")] == [
    "Yes, Tomeli buys three apples.",
    "Ja, Tomeli kauft drei Äpfel.",
    "Oui, Tomeli achète trois pommes.",
    "Sí, Tomeli compra tres manzanas.",
  ]
  wash = LEXICON.verb["wash"]
  assert [GRAMMARS[code].continuation(buys, wash) for code in ("en", "de", "fr", "es")] == [
    "Then Tomeli washes the apples.",
    "Dann wäscht Tomeli die Äpfel.",
    "Ensuite Tomeli lave les pommes.",
    "Luego Tomeli lava las manzanas.",
  ]
  assert GRAMMARS["de"].continuation(gives, wash) == "Dann wäscht Dano den Mantel."
  assert GRAMMARS["en"].continuation(MEANINGS["alone"], LEXICON.verb["dream"]) == (
    "Then the kings dream."
  )
