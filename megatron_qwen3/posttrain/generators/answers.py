"""A request of a generator, and its answers: `Request(messages)`, `Answer(text, "stop")`.

Texts of endpoints are not trusted: print them through `shown`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from megatron_qwen3.chat import EMPTY_THINKING, split_thinking
from megatron_qwen3.config import ConfigError
from megatron_qwen3.generate.sampling import Sampling

OWN = -1  # a sampling setting left to its default: Qwen3's, or the endpoint's


@dataclass(frozen=True)
class Request:
    """A conversation to be answered, and how. ConfigError where a value is out of range.

    samples            answers, drawn with the same settings
    enable_thinking    False: the answer begins after an empty think block
    thinking_budget    tokens of thinking at most; None: only max_tokens limits it
    temperature, …     None: Qwen3's default for the mode; at an endpoint, its own default
    max_tokens         of an answer, thinking included
    seed               sample k draws from (seed, k), independent of other requests
    """

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None = None
    samples: int = 1
    enable_thinking: bool = True
    thinking_budget: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    max_tokens: int = 4096
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("samples", "max_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)}; valid: at least 1")
        if self.thinking_budget is not None and self.thinking_budget < 0:
            raise ConfigError(f"thinking_budget = {self.thinking_budget}; valid: at least 0")
        Sampling(**said(self, None))


def said(settings: Any, unsaid: int | None = OWN) -> dict[str, Any]:
    """The sampling settings of a table or Request that are not `unsaid`, the mark of a default."""
    values = {name: getattr(settings, name) for name in ("temperature", "top_p", "top_k")}
    return {name: value for name, value in values.items() if value != unsaid}


@dataclass(frozen=True)
class Answer:
    """One sample.

    text: as the model wrote it, with its think block; from an endpoint that returns thinking apart,
    put together as the model would write it. finish: "stop", or "length" where the limit cut it, or
    "error", with the reason in `error` and an empty `text`. ids: the tokens of the text, the stop
    token included, where the generator gives them. is_refused: the error is due to this request
    (such as one that is too long), not to the endpoint. is_locked_out: the endpoint rejects the
    key, so every other request would fail too.
    """

    text: str
    finish: Literal["stop", "length", "error"]
    ids: tuple[int, ...] | None = None
    error: str = ""
    is_refused: bool = False
    is_locked_out: bool = False

    @property
    def thinking(self) -> str:
        return split_thinking(self.text)[0]

    @property
    def content(self) -> str:
        """The text after the thinking; "" where thinking was cut off."""
        return split_thinking(self.text)[1]


def failed(request: Request, reason: str, is_refused: bool = False) -> list[Answer]:
    """Answers with an error, for a request that failed."""
    return [Answer("", "error", None, reason, is_refused)] * request.samples


def written(thinking: str, content: str, is_closed: bool = True) -> str:
    """Join thinking and content as Qwen3 writes them.

    is_closed: False where the limit of tokens cut the thinking.
    """
    if not thinking:
        return content
    if not is_closed and not content:
        return f"<think>\n{thinking}"
    opening, closing = EMPTY_THINKING.split("\n\n", 1)
    inner = thinking.strip("\n")
    return f"{opening}\n{inner}\n{closing}{content}"
