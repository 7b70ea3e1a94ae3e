"""Translation tasks: short sentences, all of whose words are in a dictionary of four languages.

A sentence tells the colour of one thing, or of two; apart from capitals and the full stop it has
one translation, so that a verifier can check it.
"""

from typing import NamedTuple

from megatron_qwen3.posttrain.rewards.tasks.made import (
    ENGLISH,
    FRENCH,
    GERMAN,
    SPANISH,
    Made,
    TaskDraw,
)

_NAMES = {
    ENGLISH: {ENGLISH: "English", GERMAN: "German", FRENCH: "French", SPANISH: "Spanish"},
    GERMAN: {
        ENGLISH: "Englische",
        GERMAN: "Deutsche",
        FRENCH: "Französische",
        SPANISH: "Spanische",
    },
    FRENCH: {ENGLISH: "anglais", GERMAN: "allemand", FRENCH: "français", SPANISH: "espagnol"},
    SPANISH: {ENGLISH: "inglés", GERMAN: "alemán", FRENCH: "francés", SPANISH: "español"},
}
_WORDINGS = {  # of the request, which is in the sentence's language
    ENGLISH: (
        "Translate into {target}, and reply with the translation alone: {sentence}",
        "How do you say this in {target}? Give only the sentence. {sentence}",
    ),
    GERMAN: ("Übersetze ins {target} und antworte nur mit der Übersetzung: {sentence}",),
    FRENCH: ("Traduis en {target} et réponds seulement par la traduction : {sentence}",),
    SPANISH: ("Traduce al {target} y responde solo con la traducción: {sentence}",),
}
_IS = {ENGLISH: "is", GERMAN: "ist", FRENCH: "est", SPANISH: "es"}
_AND = {ENGLISH: "and", GERMAN: "und", FRENCH: "et", SPANISH: "y"}


class _Thing(NamedTuple):
    """The noun with its article in each language, and whether it is feminine in French, Spanish."""

    en: str
    de: str
    fr: str
    es: str
    is_feminine: tuple[bool, bool]


_THINGS = (
    _Thing("the dog", "der Hund", "le chien", "el perro", (False, False)),
    _Thing("the cat", "die Katze", "le chat", "el gato", (False, False)),
    _Thing("the horse", "das Pferd", "le cheval", "el caballo", (False, False)),
    _Thing("the house", "das Haus", "la maison", "la casa", (True, True)),
    _Thing("the book", "das Buch", "le livre", "el libro", (False, False)),
    _Thing("the table", "der Tisch", "la table", "la mesa", (True, True)),
    _Thing("the door", "die Tür", "la porte", "la puerta", (True, True)),
    _Thing("the flower", "die Blume", "la fleur", "la flor", (True, True)),
    _Thing("the tree", "der Baum", "l'arbre", "el árbol", (False, False)),
    _Thing("the shirt", "das Hemd", "la chemise", "la camisa", (True, True)),
    _Thing("the apple", "der Apfel", "la pomme", "la manzana", (True, True)),
    _Thing("the hat", "der Hut", "le chapeau", "el sombrero", (False, False)),
)
_Colour = tuple[str, str, tuple[str, str], tuple[str, str]]
# English, German, and the masculine and feminine of French and Spanish.
_COLOURS: tuple[_Colour, ...] = (
    ("red", "rot", ("rouge", "rouge"), ("rojo", "roja")),
    ("black", "schwarz", ("noir", "noire"), ("negro", "negra")),
    ("white", "weiß", ("blanc", "blanche"), ("blanco", "blanca")),
    ("green", "grün", ("vert", "verte"), ("verde", "verde")),
    ("yellow", "gelb", ("jaune", "jaune"), ("amarillo", "amarilla")),
    ("blue", "blau", ("bleu", "bleue"), ("azul", "azul")),
)


def translation(draw: TaskDraw) -> Made:
    """One sentence or two joined ones, from one of the languages into another."""
    language, wording = draw.wording(_WORDINGS)
    target = draw.choice([name for name in _WORDINGS if name != language])
    count = draw.randint(1, 2)
    said = [(thing, draw.choice(_COLOURS)) for thing in draw.sample(_THINGS, count)]
    given, wanted = (_sentence(said, name) for name in (language, target))
    text = wording.format(target=_NAMES[language][target], sentence=f"{given}.")
    golds = [f"{wanted}.", wanted, wanted.replace("'", "’"), wanted.replace("'", "’") + "."]
    verifier = {"kind": "exact", "gold": golds, "ignore_case": True}
    return Made(text, verifier, golds[0], target)


def _sentence(said: list[tuple[_Thing, _Colour]], language: str) -> str:
    parts = [
        f"{getattr(thing, language)} {_IS[language]} {_colour(colour, thing, language)}"
        for thing, colour in said
    ]
    text = f" {_AND[language]} ".join(parts)
    return text[0].upper() + text[1:]


def _colour(colour: _Colour, thing: _Thing, language: str) -> str:
    english, german, french, spanish = colour
    if language in (ENGLISH, GERMAN):
        return german if language == GERMAN else english
    is_spanish = language == SPANISH
    return (spanish if is_spanish else french)[thing.is_feminine[is_spanish]]
