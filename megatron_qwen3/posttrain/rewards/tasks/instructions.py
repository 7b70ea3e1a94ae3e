"""Instruction-following tasks: one to three of IFEval's instructions that do not conflict."""

from collections.abc import Callable
from typing import Any, NamedTuple

from megatron_qwen3.posttrain.rewards.tasks.made import Made, TaskDraw

_TOPICS = ("a walk in the rain", "an old library", "a train ride", "a market", "the night sky")
_ASKED = (
    "Write a short text about {topic}.",
    "Tell me something about {topic}.",
    "Describe {topic} to a friend.",
)
_BASE = "Many people know this well. It is quiet there and the hours pass slowly."
_WORDS = ("lantern", "copper", "whisper", "meadow", "pebble", "orchard")
_ENDS = ("That is all for today.", "Nothing more needs to be said.", "See you tomorrow.")


class _Instruction(NamedTuple):
    """said: the instruction; spec: its check; follow: changes a text so that it follows it."""

    said: str
    spec: dict[str, Any]
    follow: Callable[[str], str]


def _with_keywords(draw: TaskDraw) -> _Instruction:
    words = draw.sample(_WORDS, draw.randint(1, 2))
    said = f"Use the word{'s' * (len(words) > 1)} {' and '.join(words)}."
    spec = {"kind": "ifeval/keywords:existence", "keywords": words}
    return _Instruction(said, spec, lambda text: f"{text} There is a {' and a '.join(words)}.")


def _without_words(draw: TaskDraw) -> _Instruction:
    words = draw.sample(("very", "nice", "always", "beautiful"), 2)
    said = f"Do not use the words {words[0]} and {words[1]}."
    spec = {"kind": "ifeval/keywords:forbidden_words", "forbidden_words": words}
    return _Instruction(said, spec, lambda text: text)


def _without_commas(draw: TaskDraw) -> _Instruction:
    said = "Do not use any commas."
    return _Instruction(said, {"kind": "ifeval/punctuation:no_comma"}, lambda text: text)


def _with_bullets(draw: TaskDraw) -> _Instruction:
    count = draw.randint(2, 5)
    said = f"Include exactly {count} bullet points, in Markdown, as * this."
    spec = {"kind": "ifeval/detectable_format:number_bullet_lists", "num_bullets": count}
    bullets = "\n".join(f"* point number {n + 1}" for n in range(count))
    return _Instruction(said, spec, lambda text: f"{text}\n\n{bullets}\n\n")


def _with_title(draw: TaskDraw) -> _Instruction:
    said = "Give it a title in double angular brackets, as <<title>>."
    spec = {"kind": "ifeval/detectable_format:title"}
    return _Instruction(said, spec, lambda text: f"<<Quiet hours>>\n\n{text}")


def _in_small_letters(draw: TaskDraw) -> _Instruction:
    said = "Write in English, in small letters only, without capitals."
    return _Instruction(said, {"kind": "ifeval/change_case:english_lowercase"}, str.lower)


def _with_words(draw: TaskDraw) -> _Instruction:
    count = draw.randint(20, 60)
    said = f"Write at least {count} words."
    spec = {
        "kind": "ifeval/length_constraints:number_words",
        "num_words": count,
        "relation": "at least",
    }
    return _Instruction(said, spec, lambda text: text + " The hours pass slowly there." * 12)


def _with_highlights(draw: TaskDraw) -> _Instruction:
    count = draw.randint(1, 3)
    said = f"Highlight at least {count} part{'s' * (count > 1)} in Markdown, as *this*."
    spec = {"kind": "ifeval/detectable_format:number_highlighted_sections", "num_highlights": count}
    return _Instruction(said, spec, lambda text: text + " It is *quiet there*." * count)


def _with_end(draw: TaskDraw) -> _Instruction:
    phrase = draw.choice(_ENDS)
    said = f'End with the exact phrase "{phrase}", and nothing after it.'
    spec = {"kind": "ifeval/startend:end_checker", "end_phrase": phrase}
    return _Instruction(said, spec, lambda text: f"{text.rstrip()} {phrase}")


_INSTRUCTIONS = (  # in the order in which a following text is built
    _with_title,
    _with_keywords,
    _without_words,
    _without_commas,
    _with_highlights,
    _with_words,
    _with_bullets,
    _with_end,
    _in_small_letters,
)
_KEPT_BY_SAYING_NOTHING = (_without_words, _without_commas, _in_small_letters)


def instructions(draw: TaskDraw) -> Made:
    """1 to 3 instructions, at least one of which needs more than a word; all must be followed."""
    chosen: list[int] = []
    while all(_INSTRUCTIONS[n] in _KEPT_BY_SAYING_NOTHING for n in chosen):
        chosen = sorted(draw.sample(range(len(_INSTRUCTIONS)), draw.randint(1, 3)))
    drawn = [_INSTRUCTIONS[n](draw) for n in chosen]
    gold = _BASE
    for one in drawn:
        gold = one.follow(gold)
    said = [one.said for one in drawn]
    draw.shuffle(said)
    text = " ".join([draw.choice(_ASKED).format(topic=draw.choice(_TOPICS)), *said])
    return Made(text, {"kind": "every", "specs": [one.spec for one in drawn]}, gold)
