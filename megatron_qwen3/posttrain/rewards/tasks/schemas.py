"""JSON tasks: facts in words, to be written as JSON by a schema drawn at random."""

import json
from collections.abc import Callable
from typing import Any

from megatron_qwen3.posttrain.rewards.tasks.made import (
    CHINESE,
    ENGLISH,
    FRENCH,
    GERMAN,
    SPANISH,
    Made,
    TaskDraw,
)

_WORDINGS = {
    ENGLISH: (
        "Write these facts as one JSON document of the schema below, and nothing else.",
        "Turn the following into JSON that the schema describes. Reply with the JSON alone.",
    ),
    GERMAN: ("Schreibe diese Angaben als ein JSON-Dokument des Schemas, und nichts sonst.",),
    FRENCH: ("Écris ces faits comme un seul document JSON de ce schéma, et rien d'autre.",),
    SPANISH: ("Escribe estos datos como un solo documento JSON de este esquema, y nada más.",),
    CHINESE: ("请把下列内容写成符合该模式的一个 JSON 文档，不要写其他内容。",),
}
_WORDS = ("amber", "birch", "cobalt", "dune", "ember", "fjord", "grove", "harbor")
_Drawn = tuple[dict[str, Any], Any]  # a schema and a value


def _text(draw: TaskDraw) -> _Drawn:
    return {"type": "string"}, draw.choice(_WORDS)


def _whole(draw: TaskDraw) -> _Drawn:
    return {"type": "integer", "minimum": 0}, draw.randint(0, 500)


def _half(draw: TaskDraw) -> _Drawn:
    return {"type": "number"}, draw.randint(1, 99) / 2


def _flag(draw: TaskDraw) -> _Drawn:
    return {"type": "boolean"}, draw.random() < 0.5


def _one_of(draw: TaskDraw) -> _Drawn:
    options = draw.sample(_WORDS, 3)
    return {"type": "string", "enum": options}, draw.choice(options)


def _several(draw: TaskDraw) -> _Drawn:
    kind = {"type": "array", "items": {"type": "string"}}
    return kind, draw.sample(_WORDS, draw.randint(1, 3))


_FIELDS: dict[str, Callable[[TaskDraw], _Drawn]] = {
    "name": _text,
    "count": _whole,
    "price": _half,
    "available": _flag,
    "color": _one_of,
    "tags": _several,
    "weight": _half,
    "city": _text,
    "year": _whole,
}


def schema(draw: TaskDraw) -> Made:
    """An object of 2 to 4 fields, or one that contains another object."""
    described, value = _object(draw, draw.sample(sorted(_FIELDS), draw.randint(2, 4)))
    if draw.random() < 0.4:
        inner, item = _object(draw, draw.sample(sorted(_FIELDS), 2))
        described["properties"]["owner"], value["owner"] = inner, item
        described["required"].append("owner")
    language, wording = draw.wording(_WORDINGS)
    facts = "\n".join(f"- {line}" for line in _facts(value, ""))
    text = f"{wording}\n\n{facts}\n\n{json.dumps(described, ensure_ascii=False)}"
    verifier = {"kind": "json", "schema": described, "equals": value}
    return Made(text, verifier, json.dumps(value), language)


def _object(draw: TaskDraw, names: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    drawn = {name: _FIELDS[name](draw) for name in names}
    described = {
        "type": "object",
        "properties": {name: kind for name, (kind, _) in drawn.items()},
        "required": list(names),
        "additionalProperties": False,
    }
    return described, {name: value for name, (_, value) in drawn.items()}


def _facts(value: dict[str, Any], before: str) -> list[str]:
    lines: list[str] = []
    for name, one in value.items():
        if isinstance(one, dict):
            lines += _facts(one, f"{before}{name}.")
        elif isinstance(one, bool):
            lines.append(f"{before}{name}: {'yes' if one else 'no'}")
        else:
            said = ", ".join(one) if isinstance(one, list) else one
            lines.append(f"{before}{name}: {said}")
    return lines
