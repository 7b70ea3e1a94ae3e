"""Function-calling tasks: a request, a few tools, and the right calls."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from megatron_qwen3.posttrain.rewards.tasks.made import (
    CHINESE,
    ENGLISH,
    FRENCH,
    GERMAN,
    SPANISH,
    Made,
    TaskDraw,
    as_calls,
)

_CITIES = ("Berlin", "Lima", "Oslo", "Paris", "Quito", "Rome", "Seoul", "Tunis")
_CODES = ("CHF", "EUR", "GBP", "JPY", "USD")
_PEOPLE = ("Ada", "Bruno", "Chen", "Dora", "Emil", "Fatima")


class _Tool(NamedTuple):
    """parameters: of JSON Schema, all required; arguments: draws their values; said: requests."""

    name: str
    description: str
    parameters: Mapping[str, Mapping[str, Any]]
    arguments: Callable[[TaskDraw], dict[str, Any]]
    said: Mapping[str, tuple[str, ...]]


def _text(description: str) -> dict[str, Any]:
    return {"type": "string", "description": description}


def _whole(description: str) -> dict[str, Any]:
    return {"type": "integer", "description": description}


_TOOLS = (
    _Tool(
        "get_weather",
        "The weather in a city on one of the next days",
        {"city": _text("name of the city"), "days": _whole("days from today")},
        lambda draw: {"city": draw.choice(_CITIES), "days": draw.randint(1, 7)},
        {
            ENGLISH: (
                "What will the weather be in {city} in {days} days?",
                "Look up the weather for {city}, {days} days from today.",
            ),
            GERMAN: ("Wie wird das Wetter in {city} in {days} Tagen?",),
            FRENCH: ("Quel temps fera-t-il à {city} dans {days} jours ?",),
            SPANISH: ("¿Qué tiempo hará en {city} dentro de {days} días?",),
            CHINESE: ("请查询 {city} 在 {days} 天后的天气，城市名保持原文。",),
        },
    ),
    _Tool(
        "convert_currency",
        "Convert an amount of money into another currency",
        {
            "amount": _whole("how much"),
            "source": {"type": "string", "enum": list(_CODES)},
            "target": {"type": "string", "enum": list(_CODES)},
        },
        lambda draw: dict(
            zip(("source", "target"), draw.sample(_CODES, 2), strict=True),
            amount=draw.randint(5, 900),
        ),
        {
            ENGLISH: (
                "How much is {amount} {source} in {target}?",
                "Convert {amount} {source} to {target}, please.",
            ),
            GERMAN: ("Wie viel sind {amount} {source} in {target}?",),
            FRENCH: ("Combien font {amount} {source} en {target} ?",),
            SPANISH: ("¿Cuánto son {amount} {source} en {target}?",),
            CHINESE: ("{amount} {source} 等于多少 {target}？",),
        },
    ),
    _Tool(
        "set_timer",
        "Set a timer with a label",
        {"minutes": _whole("how long"), "label": _text("what it is for, one word")},
        lambda draw: {
            "minutes": draw.randint(1, 90),
            "label": draw.choice(("tea", "pasta", "laundry", "meeting")),
        },
        {
            ENGLISH: (
                "Set a timer of {minutes} minutes labelled {label}.",
                'Start a "{label}" timer for {minutes} minutes.',
            ),
            GERMAN: ('Stelle einen Timer mit dem Namen "{label}" auf {minutes} Minuten.',),
        },
    ),
    _Tool(
        "send_message",
        "Send a message to a contact",
        {"to": _text("the contact's name"), "urgent": {"type": "boolean"}},
        lambda draw: {"to": draw.choice(_PEOPLE), "urgent": draw.random() < 0.5},
        {
            ENGLISH: ("Send {to} a message; is it urgent: {urgent}.",),
            GERMAN: ("Sende {to} eine Nachricht; dringend: {urgent}.",),
        },
    ),
    _Tool(
        "book_table",
        "Reserve a table at a restaurant",
        {"people": _whole("number of guests"), "hour": _whole("0 to 23")},
        lambda draw: {"people": draw.randint(2, 9), "hour": draw.randint(17, 22)},
        {
            ENGLISH: ("Book a table for {people} at {hour}:00.",),
            GERMAN: ("Reserviere einen Tisch für {people} Personen um {hour} Uhr.",),
            FRENCH: ("Réserve une table pour {people} personnes à {hour} heures.",),
            SPANISH: ("Reserva una mesa para {people} personas a las {hour}:00.",),
        },
    ),
    _Tool(
        "add_numbers",
        "The sum of numbers",
        {"numbers": {"type": "array", "items": {"type": "integer"}}},
        lambda draw: {"numbers": [draw.randint(1, 99) for _ in range(draw.randint(2, 4))]},
        {
            ENGLISH: ("Let the tool add up these numbers, in this order: {numbers}.",),
            CHINESE: ("请用工具按顺序把这些数相加：{numbers}。",),
        },
    ),
)


def calls(draw: TaskDraw) -> Made:
    """One or two calls with 2 to 4 tools to choose from; one task in eight needs none of them."""
    tools = draw.sample(_TOOLS, draw.randint(2, 4))
    if draw.random() < 1 / 8:
        polite = draw.choice(("Thank you, that was all.", "Good morning! How are you?"))
        return Made(polite, {"kind": "calls", "gold": []}, "You are welcome.", tools=_shown(tools))
    used = [one for one in tools if draw.random() < 0.4 or one is tools[0]][:2]
    common = set.intersection(*(set(one.said) for one in used))
    language, _ = draw.wording({name: ("",) for name in tools[0].said if name in common})
    gold: list[dict[str, Any]] = []
    said: list[str] = []
    for one in used:
        arguments = one.arguments(draw)
        written = {name: _written(value) for name, value in arguments.items()}
        said.append(draw.choice(one.said[language]).format(**written))
        gold.append({"name": one.name, "arguments": arguments})
    draw.shuffle(tools)
    text = " ".join(said)
    return Made(text, {"kind": "calls", "gold": gold}, as_calls(gold), language, _shown(tools))


def _written(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _shown(tools: list[_Tool]) -> tuple[dict[str, Any], ...]:
    return tuple(
        {
            "type": "function",
            "function": {
                "name": one.name,
                "description": one.description,
                "parameters": {
                    "type": "object",
                    "properties": dict(one.parameters),
                    "required": list(one.parameters),
                },
            },
        }
        for one in tools
    )
