"""Settings of verification, and the interface of `Verifiers` for callers: `Judges`.

settings = options.taken(VerifySettings, given)
with settings.verifiers() as judges:                 # a `Verifiers`
    judges.judge([(spec, text), …])
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from megatron_qwen3.cores import cores
from megatron_qwen3.fields import setting
from megatron_qwen3.posttrain import options
from megatron_qwen3.posttrain.verifiers.kinds import Verdict
from megatron_qwen3.posttrain.verifiers.pool import Verifiers


class Judges(Protocol):
    """The interface of `Verifiers`, and of a test's double."""

    def judge(self, pairs: Iterable[tuple[Any, str]]) -> list[Verdict]: ...

    def alarm(self) -> str: ...


@dataclass(frozen=True)
class VerifySettings:
    """How answers are verified."""

    verify_workers: int = setting(cores(), "processes that verify", at_least=1)
    verify_seconds: float = setting(30.0, "seconds that one answer may take", above=0)

    def __post_init__(self) -> None:
        options.check(self)

    def verifiers(self) -> Verifiers:
        """The pool of verifiers, to be used in a `with` block."""
        return Verifiers(self.verify_workers, self.verify_seconds)
