"""Retrieval tasks: questions about passages, with the right passage to be cited."""

from typing import NamedTuple

from megatron_qwen3.posttrain.rewards.tasks.made import ENGLISH, FRENCH, GERMAN, Made, TaskDraw

_FIRST = ("Ada", "Boris", "Celia", "Darko", "Elif", "Farid", "Greta", "Hugo", "Ines", "Jonas")
_LAST = ("Alder", "Brandt", "Castor", "Dorn", "Eklund", "Falk", "Grau", "Holm", "Ivers", "Jansen")
_CITIES = ("Arven", "Belmar", "Corvel", "Dunmoor", "Estrel", "Faldor", "Garrow", "Hestia")
_UNKNOWN = {ENGLISH: "unknown", GERMAN: "unbekannt", FRENCH: "inconnu"}
_PASSAGE = {
    ENGLISH: (
        "{name} was born in {city} in {year} and moved away as a child.",
        "The painter {name}, born {year}, came from {city}.",
    ),
    GERMAN: ("{name} wurde {year} in {city} geboren und zog als Kind fort.",),
    FRENCH: ("{name} est née à {city} en {year}, puis a quitté la ville.",),
}
_QUESTIONS = {
    "year": {
        ENGLISH: ("In which year was {name} born?", "When was {name} born? The year is enough."),
        GERMAN: ("In welchem Jahr wurde {name} geboren?",),
        FRENCH: ("En quelle année {name} est née ?",),
    },
    "city": {
        ENGLISH: ("In which city was {name} born?", "Where does {name} come from?"),
        GERMAN: ("In welcher Stadt wurde {name} geboren?",),
        FRENCH: ("Dans quelle ville {name} est née ?",),
    },
}
_ASKED = {
    ENGLISH: "Answer from the passages alone and cite the one that says it by its number, as [2]. "
    "If none says it, answer unknown and cite nothing.",
    GERMAN: "Antworte nur aus den Abschnitten und nenne den, der es sagt, mit seiner Nummer, wie "
    "[2]. Sagt es keiner, antworte unbekannt und nenne keinen.",
    FRENCH: "Réponds d'après ces passages seulement et cite celui qui le dit par son numéro, comme "
    "[2]. Si aucun ne le dit, réponds inconnu et ne cite rien.",
}


class _Person(NamedTuple):
    name: str
    city: str
    year: str


def retrieval(draw: TaskDraw) -> Made:
    """3 to 6 passages about one person each; one question in eight is about somebody else."""
    count = draw.randint(3, 6)
    first, last = draw.sample(_FIRST, count + 1), draw.sample(_LAST, count + 1)
    names = [f"{a} {b}" for a, b in zip(first, last, strict=True)]
    cities, years = draw.sample(_CITIES, count), draw.sample(range(1850, 1990), count)
    people = [_Person(*row) for row in zip(names, cities, map(str, years), strict=False)]
    language, _ = draw.wording(_ASKED_WORDINGS)
    passages = [
        f"[{n}] {draw.choice(_PASSAGE[language]).format(**person._asdict())}"
        for n, person in enumerate(people, 1)
    ]
    asked = draw.choice(sorted(_QUESTIONS))
    is_known = draw.random() >= 1 / 8
    number = draw.randrange(count)
    name = people[number].name if is_known else names[-1]
    gold = getattr(people[number], asked) if is_known else _UNKNOWN[language]
    values = [getattr(person, asked) for person in people]
    question = draw.choice(_QUESTIONS[asked][language]).format(name=name)
    text = "\n\n".join(["\n".join(passages), question, _ASKED[language]])
    verifier = {
        "kind": "cited",
        "gold": gold,
        "sources": [number + 1] if is_known else [],
        "others": [value for value in values if value != gold],
    }
    return Made(text, verifier, f"{gold} [{number + 1}]" if is_known else gold, language)


_ASKED_WORDINGS = {language: (text,) for language, text in _ASKED.items()}
