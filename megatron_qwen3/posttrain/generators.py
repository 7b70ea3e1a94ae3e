"""One call for answers, from a model of ours or any endpoint that speaks OpenAI's protocol.

    with open_generator("runs/post_2_reasoning") as generator:          # a run, checkpoint, folder
        for number, answers in generator.answers(requests):             # as they finish
            ...
    open_generator("http://localhost:8000/v1")                          # the model that is served
    open_generator("https://api.example.com/v1#qwen3-32b")              # one of several

A request that still fails after its retries yields answers with an error; a caller of many requests
goes on and retries it later. Texts of endpoints are not trusted: print them through `shown`. The
key of an endpoint stands in an environment variable.

With several ranks, all but the first of a model of ours only serve it:
`if not generator.leads: generator.follow()`, and then leave the block.

Nothing here imports torch; a model of ours does when it is opened (`own_generator.py`).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from megatron_qwen3.chat import EMPTY_THINKING, split_thinking
from megatron_qwen3.config import ConfigError
from megatron_qwen3.fields import setting
from megatron_qwen3.generate.sampling import Sampling
from megatron_qwen3.posttrain import options

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


class AnyGenerator(Protocol):
    """The type of `open_generator`: a context manager that answers requests.

    label: names the model, wherever it runs. leads: whether this rank sends the requests. notes:
    lines for the user, such as a setting that an endpoint does not support.
    """

    label: str
    leads: bool
    notes: list[str]

    def answers(self, requests: Iterable[Request]) -> Iterator[tuple[int, list[Answer]]]:
        """Yields (number of the request, its `samples` answers) as they finish, in any order."""

    def follow(self) -> None:
        """Do another rank's share, until the first rank leaves."""


@dataclass(frozen=True)
class EndpointLimits:
    """Load, retries and time limits of requests to an endpoint."""

    concurrency: int = setting(16, "requests that are open at a time", at_least=1)
    tries: int = setting(6, "times that a request is sent before it counts as failed", at_least=1)
    seconds: float = setting(600.0, "seconds that each try may take", above=0)
    first_wait: float = setting(
        1.0, "seconds before the second try; then twice as long", at_least=0
    )
    longest_wait: float = setting(60.0, "seconds between two tries, at most", at_least=0)
    per_minute: float = setting(0.0, "requests a minute, at most; 0 is any number", at_least=0)
    most_bytes: int = setting(32 << 20, "bytes of a reply; a longer one is refused", at_least=1)
    key_variable: str = setting("OPENAI_API_KEY", "environment variable that holds the key")

    def __post_init__(self) -> None:
        options.check(self)


@dataclass(frozen=True)
class Local:
    """How a model of ours is run."""

    rows: int = setting(64, "answers that a model of ours writes at a time", at_least=1)
    local: tuple[str, ...] = setting(
        (), "settings of a model of ours, such as parallel.tensor=2", metavar="KEY=VALUE"
    )

    def __post_init__(self) -> None:
        options.check(self)


def open_generator(
    name: str, limits: EndpointLimits | None = None, local: Local | None = None
) -> AbstractContextManager[AnyGenerator]:
    """A generator by its name: an address ending in /v1, maybe with #MODEL, else a model's folder.

    ConfigError, at once or on entering, where there is none of that name or several models are
    served. A folder is a run of ours, a checkpoint, or one of Hugging Face's format.
    """
    if "://" in name:
        from megatron_qwen3.posttrain.endpoint import Endpoint

        return Endpoint(name, limits or EndpointLimits())
    if not Path(name).is_dir():
        raise ConfigError(
            f"{name} is neither a folder with a model nor an address such as "
            "http://localhost:8000/v1"
        )
    from megatron_qwen3.posttrain.own_generator import OwnGenerator

    return OwnGenerator(Path(name), local or Local())
