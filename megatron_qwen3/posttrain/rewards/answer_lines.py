"""Reads JSON lines with answers to be scored: `for asked in read_answers(path, chat): …`

    {"messages": […, {"role": "assistant", …}]}              # the last message: "score"
    {"messages": […], "answer": ANSWER}                      # "score"
    {"messages": […], "answers": [ANSWER, …]}                # "scores", in order
    {"messages": […], "chosen": ANSWER, "rejected": ANSWER}  # "scores", of these two

ANSWER is a text, an assistant's message, or a list of messages that ends with one. A line may have
`tools`; other fields are kept. Each answer becomes the token ids of the whole conversation up to
the `<|im_end|>` that ends it, where the reward is read, as in training. No torch.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from megatron_qwen3.chat import ChatTokenizer
from megatron_qwen3.chat_check import ChatError
from megatron_qwen3.config import ConfigError
from megatron_qwen3.storage.inside import parse_json

Ids = npt.NDArray[np.int32]
SCORE, SCORES = "score", "scores"  # keys that are added to a line
_SAID_BY = (("answer",), ("answers",), ("chosen", "rejected"))
_KINDS = ", ".join(" and ".join(f'"{name}"' for name in names) for names in _SAID_BY)


class AskedLine(NamedTuple):
    """One line, and the ids of each of its answers."""

    line: dict[str, Any]
    answers: list[Ids]

    @property
    def is_pair(self) -> bool:
        return "chosen" in self.line

    def scored(self, scores: list[float]) -> dict[str, Any]:
        """The line with the scores of its answers."""
        is_one = "answers" not in self.line and not self.is_pair
        return self.line | ({SCORE: scores[0]} if is_one else {SCORES: scores})


def read_answers(path: Path, chat: ChatTokenizer) -> Iterator[AskedLine]:
    """Yields a file's lines, without empty ones. ConfigError names a line without answers."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, text in enumerate(file, 1):
                if text.strip():
                    yield _asked(f"{path}, line {number}", text, chat)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None


def _asked(place: str, text: str, chat: ChatTokenizer) -> AskedLine:
    try:
        line = parse_json(text)
        json.dumps(line, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise ConfigError(f"{place}: {half!r} in it is no character") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{place}: not JSON ({error})") from None
    if not isinstance(line, dict) or not isinstance(line.get("messages"), list):
        raise ConfigError(f'{place}: needs "messages", a list')
    for key in (SCORE, SCORES):
        if key in line:
            raise ConfigError(f'{place}: has "{key}" already, where scores are put; rename it')
    try:
        return AskedLine(line, [_ids(messages, line, chat) for messages in _conversations(line)])
    except ChatError as error:
        raise ConfigError(f"{place}: {error}") from None


def _conversations(line: Mapping[str, Any]) -> Iterator[list[Any]]:
    """Yields each answer's whole conversation. ChatError where the line has no answers."""
    said = [names for names in _SAID_BY if any(name in line for name in names)]
    if len(said) > 1 or any(name not in line for names in said for name in names):
        found = ", ".join(f'"{name}"' for names in _SAID_BY for name in names if name in line)
        raise ChatError(f"has {found}; valid: one of {_KINDS}, or messages that end with an answer")
    if not said:
        yield line["messages"]
    for name in said[0] if said else ():
        answers = line[name] if name == "answers" else [line[name]]
        if not isinstance(answers, list) or not answers:
            raise ChatError(f'"{name}" = {answers!r:.80}; valid: a list of answers, 1 at least')
        yield from ([*line["messages"], *_messages(answer, name)] for answer in answers)


def _messages(answer: Any, name: str) -> list[Any]:
    if isinstance(answer, str):
        return [{"role": "assistant", "content": answer}]
    if isinstance(answer, Mapping):
        return [answer]
    if isinstance(answer, list) and answer:
        return answer
    raise ChatError(f'"{name}" = {answer!r:.80}; valid: a text, a message or a list of messages')


def _ids(messages: list[Any], line: Mapping[str, Any], chat: ChatTokenizer) -> Ids:
    last = messages[-1] if messages else None
    if not isinstance(last, Mapping) or last.get("role") != "assistant":
        raise ChatError(f"the last message, {last!r:.80}, is no assistant's: there is no answer")
    ids = np.array(chat.encode_conversation(messages, line.get("tools")).ids, np.int32)
    return ids[: 1 + int(np.flatnonzero(ids == chat.turn_end)[-1])]
