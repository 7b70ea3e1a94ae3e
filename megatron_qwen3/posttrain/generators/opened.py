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

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from megatron_qwen3.config import ConfigError
from megatron_qwen3.posttrain.generators.answers import Answer, Request
from megatron_qwen3.posttrain.generators.settings import EndpointLimits, Local


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


def open_generator(
    name: str, limits: EndpointLimits | None = None, local: Local | None = None
) -> AbstractContextManager[AnyGenerator]:
    """A generator by its name: an address ending in /v1, maybe with #MODEL, else a model's folder.

    ConfigError, at once or on entering, where there is none of that name or several models are
    served. A folder is a run of ours, a checkpoint, or one of Hugging Face's format.
    """
    if "://" in name:
        from megatron_qwen3.posttrain.generators.endpoint import Endpoint

        return Endpoint(name, limits or EndpointLimits())
    if not Path(name).is_dir():
        raise ConfigError(
            f"{name} is neither a folder with a model nor an address such as "
            "http://localhost:8000/v1"
        )
    from megatron_qwen3.posttrain.generators.own_generator import OwnGenerator

    return OwnGenerator(Path(name), local or Local())
