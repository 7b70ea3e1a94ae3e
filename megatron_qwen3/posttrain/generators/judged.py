"""Reads a judge model's replies, and accepts only those of the form that the prompt asks for.

    word = word_of({"query": query, "answer": answer})       # the reply has to repeat it
    read(answers, error, word, take)         # take(the reply's JSON object), or a Failed

A reply is one JSON object, in a fence of Markdown or without, that repeats the word. The word is
a digest of the judged texts, so that none of them can contain it. No torch.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from megatron_qwen3.posttrain.generators.answers import Answer

_FENCED = re.compile(r"\A```(?:json)?\s*\n(.*)\n```\Z", re.DOTALL)


class Failed(NamedTuple):
    """No usable verdict; is_reply: the judge did reply, so a retry may give a usable one."""

    reason: str
    is_reply: bool = True


def word_of(quoted: Mapping[str, str]) -> str:
    """A word that the quoted texts cannot contain: it is a digest of them."""
    return hashlib.sha256(json.dumps(dict(quoted), sort_keys=True).encode()).hexdigest()[:12]


def read(
    answers: Sequence[Answer],
    error: str,
    word: str,
    take: Callable[[Mapping[str, Any]], Any],
) -> Any:
    """`take` of the first answer's JSON object, or a Failed with the reason.

    error: why there is no answer. take: returns None for an object of another form.
    """
    if not answers:
        return Failed(f"no reply: {error}"[:200], is_reply=False)
    if answers[0].finish != "stop":
        return Failed("the reply was cut off")
    content = answers[0].content.strip()
    if not content:
        return Failed("the reply is empty")
    if fenced := _FENCED.match(content):
        content = fenced.group(1)
    try:
        row = json.loads(content, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        return Failed("the reply is no JSON object")
    if row.get("word") != word:
        return Failed("the reply does not repeat the word")
    made = take(row)
    return Failed("the reply is not of the form asked for") if made is None else made


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object's dict; ValueError for a repeated key, whose meaning is unclear."""
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("a key stands there twice")
    return dict(pairs)
