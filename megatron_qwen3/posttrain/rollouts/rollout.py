"""A sampled answer, and the request for it: the types that all engines share.

    made = engine.sample([Ask("gsm8k-17", prompt_ids, seed=3, samples=8, max_new_tokens=1024)])
    made[0][0].tokens        # ids that the engine chose: nothing is ever decoded and encoded again

Engines are `own.py` (the model in training) and `vllm.py`; agents (`agents.py`) call an engine
several times and join its answers and the tools' to one rollout. torch is not imported here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

STOP, LENGTH, ABORT, ERROR = "stop", "length", "abort", "error"


@dataclass(frozen=True)
class Ask:
    """A request for samples of one prompt. seed: sample k draws from (seed, k), whatever else is
    asked.

    thinking: the mode that the prompt asks for; thinking_budget: 0 means no budget.
    """

    task: str
    prompt: tuple[int, ...]
    seed: int
    samples: int
    max_new_tokens: int
    thinking: bool
    thinking_budget: int = 0


@dataclass(frozen=True)
class Rollout:
    """One answer, token by token.

    log_probs: of each token under the sampling weights, of logits divided by the sampling
    temperature, before any cut; 0.0 where the token was not sampled.
    sampled: False where a thinking budget or a tool put the token: it is never trained.
    finish: "stop" after an end token, "length" at its limit, "abort" where the engine gave it up,
    "error" where it failed, for the reason in `error`.
    versions: of the weights that wrote its first and its last token.
    turns: turns of the model in it, 1 without tools.
    """

    task: str
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]
    sampled: tuple[bool, ...]
    finish: str
    versions: tuple[int, int]
    thinking: bool
    seed: int
    turns: int = 1
    error: str = ""

    def __post_init__(self) -> None:
        if not len(self.tokens) == len(self.log_probs) == len(self.sampled):
            raise ValueError(
                f"task {self.task}: {len(self.tokens)} tokens, {len(self.log_probs)} log-probs and "
                f"{len(self.sampled)} marks of a rollout; valid: as many of each"
            )

    @property
    def is_truncated(self) -> bool:
        """Whether it reached its limit before an end token."""
        return self.finish == LENGTH


class RolloutEngine(Protocol):
    """Samples answers. All ranks of the run call it alike."""

    def sample(self, asks: Sequence[Ask]) -> list[list[Rollout]]:
        """The samples of each ask on the first rank; on the others the same or [], as the engine
        was opened, since a token of a rollout takes 80 bytes, too much for every rank of a machine.
        A failed answer is returned in its place with finish "error"; only errors that make further
        asking useless are raised."""
        ...

    def refit(self, version: int) -> dict[str, float]:
        """Sample by the current weights, which have this version, from now on.

        Returns metrics of the transfer, by name, for the batch's log; the first rank's count. {}
        for an engine that uses the weights in place.
        """
        ...
