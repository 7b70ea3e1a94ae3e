"""Encodes the command line's prompts as requests of ids.

    encoder = Encoder(tokenizer, options)
    requests = encoder.encode_all(read_lines(path))

A line is {"prompt": text} or {"messages": […], "tools": […]}; its other fields are kept, but it may
have no `completion`, where the generated text will be put. All lines are encoded, and their faults
reported, before a model is loaded: nothing here imports torch.
"""

import argparse
import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from megatron_qwen3.chat import ChatError, ChatTokenizer, thinks
from megatron_qwen3.config import ConfigError
from megatron_qwen3.generate.sampling import NOT_THINKING, THINKING, Sampling
from megatron_qwen3.generate.template import FolderTemplate

Line = dict[str, Any]
RESULT = "completion"  # the key that is added to a line
SAMPLING_OPTIONS = tuple(f.name for f in dataclasses.fields(Sampling) if f.name != "seed")


@dataclasses.dataclass(frozen=True)
class PromptRequest:
    """A prompt's ids, its sampling, and its line."""

    line: Line
    prompt: list[int]
    sampling: Sampling


class Encoder:
    """Lines to requests, under the command line's options for sampling and thinking.

    template: the folder's, used in place of Qwen3's format.
    """

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        options: argparse.Namespace,
        template: FolderTemplate | None = None,
    ) -> None:
        self._tokenizer, self._template = tokenizer, template
        self._enable_thinking = not options.no_think
        values = {name: getattr(options, name) for name in (*SAMPLING_OPTIONS, "seed")}
        self._said = {name: value for name, value in values.items() if value is not None}

    def encode_all(self, lines: Iterable[tuple[str, Line]]) -> list[PromptRequest]:
        """Requests of lines, given with their places, which a ConfigError names."""
        placed, requests = list(lines), []
        for place, line in placed:
            check_characters(line, f"{place}: ")
        talks = [line for _, line in placed if "messages" in line]
        prompts = self._conversations(talks) if talks else iter(())
        for place, line in placed:
            try:
                requests.append(self._request(line, prompts))
            except (ConfigError, ChatError) as error:
                raise ConfigError(f"{place}: {error}") from None
        return requests

    def encode(self, line: Line) -> PromptRequest:
        """ConfigError for an empty prompt or a value out of range, ChatError for bad messages."""
        check_characters(line)
        return self._request(line, self._conversations([line] if "messages" in line else []))

    def _request(self, line: Line, conversations: Iterator[Any]) -> PromptRequest:
        """conversations: yields the line's ids next, or the reason why there are none."""
        ids = next(conversations) if "messages" in line else None
        if isinstance(ids, Exception):
            raise ids
        if ids is not None:
            thinking = thinks(line["messages"], self._enable_thinking)
            base = THINKING if thinking else NOT_THINKING
        else:
            ids = self._tokenizer.encode(line["prompt"], add_special_tokens=False).ids
            base = Sampling()
        if not ids:
            raise ConfigError("a prompt is empty; it needs at least one character")
        return PromptRequest(line, ids, dataclasses.replace(base, **self._said))

    def _conversations(self, lines: Sequence[Line]) -> Iterator[list[int] | Exception]:
        """The ids of each line's messages, or why it has none."""
        if self._template and lines:
            for text in self._template.render(lines, self._enable_thinking):
                if isinstance(text, str):
                    yield self._tokenizer.encode(text, add_special_tokens=False).ids
                else:
                    yield text
            return
        chat = ChatTokenizer(self._tokenizer) if lines else None
        for line in lines if chat else ():
            try:
                yield chat.encode_prompt(
                    line["messages"], line.get("tools"), enable_thinking=self._enable_thinking
                )
            except ChatError as error:
                yield error


def both_modes(
    tokenizer: tokenizers.Tokenizer, options: argparse.Namespace, template: FolderTemplate | None
) -> dict[bool, Encoder]:
    """Encoders for answers with thinking (True), and without."""
    modes = {
        thinking: argparse.Namespace(**vars(options) | {"no_think": not thinking})
        for thinking in (True, False)
    }
    return {mode: Encoder(tokenizer, given, template) for mode, given in modes.items()}


def batches(requests: Sequence[PromptRequest], size: int) -> Iterator[Sequence[PromptRequest]]:
    """Batches of at most `size` neighbours with equal sampling."""
    start = 0
    for place in range(1, len(requests) + 1):
        is_end = place == len(requests) or requests[place].sampling != requests[start].sampling
        if is_end or place - start == size:
            yield requests[start:place]
            start = place


def read_lines(path: Path) -> list[tuple[str, Line]]:
    """The objects of a JSONL file, each with its place.

    ConfigError names a line without a prompt.
    """
    try:
        texts = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--file {path}: cannot be read ({error})") from None
    places = ((f"{path}, line {number}", text) for number, text in enumerate(texts, start=1))
    return [(place, _line(place, text)) for place, text in places if text.strip()]


def _line(place: str, text: str) -> Line:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{place}: not JSON ({error})") from None
    if isinstance(line, dict) and RESULT in line:
        raise ConfigError(
            f'{place}: has "{RESULT}" already, where the generated text is put; rename it'
        )
    if isinstance(line, dict) and (
        isinstance(line.get("prompt"), str) or isinstance(line.get("messages"), list)
    ):
        return line
    raise ConfigError(f'{place}: needs "prompt" (text) or "messages" (list)')


def check_characters(line: Line, place: str = "") -> None:
    """ConfigError for half a surrogate pair, which JSON can hold but no file or tokenizer takes."""
    try:
        json.dumps(line, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise ConfigError(f"{place}{half!r} in it is no character") from None
