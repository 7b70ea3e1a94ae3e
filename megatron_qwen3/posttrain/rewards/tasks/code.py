"""Coding tasks: a function to write, with unit tests computed by a reference function."""

from collections.abc import Callable
from typing import Any, NamedTuple

from megatron_qwen3.posttrain.rewards.tasks.made import (
    CHINESE,
    ENGLISH,
    FRENCH,
    GERMAN,
    SPANISH,
    Made,
    TaskDraw,
)

_TESTS = 6
_ATTEMPTS = 50  # to find inputs that have different results
_WORDINGS = {
    ENGLISH: (
        "Write a Python function `{name}({arguments})` that {task}. Reply with one block of code.",
        "Implement `{name}({arguments})` in Python: it {task}. Give the code in one block.",
    ),
    GERMAN: (
        'Schreibe eine Python-Funktion `{name}({arguments})` nach dieser Beschreibung: "{task}". '
        "Antworte mit einem Codeblock.",
    ),
    FRENCH: (
        'Écris une fonction Python `{name}({arguments})` selon cette description : "{task}". '
        "Réponds par un bloc de code.",
    ),
    SPANISH: (
        'Escribe una función de Python `{name}({arguments})` según esta descripción: "{task}". '
        "Responde con un bloque de código.",
    ),
    CHINESE: (
        "请按照这个描述写一个 Python 函数 `{name}({arguments})`：“{task}”。用一个代码块回答。",
    ),
}


class _Family(NamedTuple):
    """task: description of the function, with fields of `settings`; body: its source, likewise."""

    name: str
    arguments: str
    task: str
    body: str
    settings: Callable[[TaskDraw], dict[str, Any]]
    inputs: Callable[[TaskDraw], tuple[Any, ...]]


def _numbers(draw: TaskDraw) -> tuple[list[int]]:
    return ([draw.randint(-20, 40) for _ in range(draw.randint(0, 7))],)


def _word(draw: TaskDraw) -> tuple[str]:
    return ("".join(draw.choice("abcdeio ") for _ in range(draw.randint(0, 9))),)


def _often_mirrored(draw: TaskDraw) -> tuple[str]:
    (word,) = _word(draw)
    return (word + word[::-1] if draw.random() < 0.5 else word,)


def _nothing(draw: TaskDraw) -> dict[str, Any]:
    return {}


_FAMILIES = (
    _Family(
        "scaled",
        "numbers",
        "takes a list of integers and returns a list with each of them times {a} plus {b}",
        "return [{a} * number + {b} for number in numbers]",
        lambda draw: {"a": draw.randint(2, 9), "b": draw.randint(1, 9)},
        _numbers,
    ),
    _Family(
        "above",
        "numbers",
        "takes a list of integers and returns those that are greater than {a}, in their order",
        "return [number for number in numbers if number > {a}]",
        lambda draw: {"a": draw.randint(-5, 20)},
        _numbers,
    ),
    _Family(
        "total",
        "numbers",
        "takes a list of integers and returns the sum of those that are divisible by {a}",
        "return sum(number for number in numbers if number % {a} == 0)",
        lambda draw: {"a": draw.randint(2, 5)},
        _numbers,
    ),
    _Family(
        "largest",
        "numbers",
        "takes a list of integers and returns its {a} largest ones, the largest first, or all of "
        "them where there are fewer",
        "return sorted(numbers, reverse=True)[:{a}]",
        lambda draw: {"a": draw.randint(1, 4)},
        _numbers,
    ),
    _Family(
        "runs",
        "numbers",
        "takes a list of integers and returns how often a number is greater than the one before it",
        "return sum(b > a for a, b in zip(numbers, numbers[1:]))",
        _nothing,
        _numbers,
    ),
    _Family(
        "counted",
        "text",
        'takes a text and returns how often the letter "{a}" is in it',
        'return text.count("{a}")',
        lambda draw: {"a": draw.choice("abcde")},
        _word,
    ),
    _Family(
        "turned",
        "text",
        "takes a text and returns its words, separated by spaces, each of them spelled backwards, "
        "joined by one space",
        'return " ".join(word[::-1] for word in text.split())',
        _nothing,
        _word,
    ),
    _Family(
        "is_mirrored",
        "text",
        "takes a text and returns whether it reads the same backwards, spaces left out",
        'letters = text.replace(" ", "")\n    return letters == letters[::-1]',
        _nothing,
        _often_mirrored,
    ),
    _Family(
        "divisors",
        "number",
        "takes a positive integer and returns the sorted list of its divisors that are at least "
        "{a}",
        "return [d for d in range({a}, number + 1) if number % d == 0]",
        lambda draw: {"a": draw.randint(1, 4)},
        lambda draw: (draw.randint(1, 60),),
    ),
)


def code(draw: TaskDraw) -> Made:
    """A function of one argument, with its results for some arguments."""
    family = draw.choice(_FAMILIES)
    settings = family.settings(draw)
    source = f"def {family.name}({family.arguments}):\n    {family.body.format(**settings)}\n"
    scope: dict[str, Any] = {}
    exec(source, scope)  # of the table above, never of a model
    tests = []
    for arguments, wanted in _examples(draw, family, scope[family.name]):
        shown = ", ".join(map(repr, arguments))
        tests.append(f"assert {family.name}({shown}) == {wanted!r}")
    language, wording = draw.wording(_WORDINGS)
    text = wording.format(
        name=family.name, arguments=family.arguments, task=family.task.format(**settings)
    )
    example = f"\n\n{tests[0].removeprefix('assert ')}"
    verifier = {"kind": "code", "tests": tests}
    return Made(text + example, verifier, f"```python\n{source}```", language)


def _examples(
    draw: TaskDraw, family: _Family, function: Callable[..., Any]
) -> list[tuple[tuple[Any, ...], Any]]:
    """Arguments and results, not all equal, so that no constant function passes."""
    for _ in range(_ATTEMPTS):
        inputs = [family.inputs(draw) for _ in range(_TESTS)]
        results = [function(*arguments) for arguments in inputs]
        if any(result != results[0] for result in results):
            return list(zip(inputs, results, strict=True))
    raise AssertionError(f"{family.name} gives {results[0]!r} for whatever is drawn")
