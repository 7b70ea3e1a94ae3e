"""An answer that was sampled to be trained on, and what was asked: one type for all engines.

    made = engine.sample([Ask("gsm8k-17", prompt_ids, seed=3, samples=8, max_new_tokens=1024)])
    made[0][0].tokens        # ids that the engine chose: nothing is ever decoded and encoded again

Engines are `own.py` (the weights in training) and `vllm.py`; agents (`agents.py`) ask an engine
several times and make one rollout of its answers and the tools'. torch is not imported here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

STOP, LENGTH, ABORT, ERROR = "stop", "length", "abort", "error"


@dataclass(frozen=True)
class Ask:
    """Samples of one prompt. seed: of sample k it is (seed, k), whatever else is asked.

    thinking: the mode that the prompt asks for; thinking_budget: 0 is none.
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

    log_probs: of each token under the weights that sampled it, of logits divided by the sampling
    temperature, before any cut; 0.0 where it was not sampled.
    sampled: False where a thinking budget or a tool put the token: it is never trained.
    finish: "stop" after an end token, "length" at its limit, "abort" where the engine gave it up,
    "error" where it failed, `error` says how.
    versions: of the weights that wrote its first and its last token.
    turns: answers of the model in it, 1 without tools.
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
        """Whether it reached its limit before it was done."""
        return self.finish == LENGTH


class RolloutEngine(Protocol):
    """What samples. All ranks of the run call it alike."""

    def sample(self, asks: Sequence[Ask]) -> list[list[Rollout]]:
        """The samples of each ask, on the first rank, and the same or [] on the others: an engine
        is opened for all ranks where these need them. A token of a rollout takes 80 bytes, which
        are not for every rank of a machine to have. An answer that failed is in its place, with
        finish "error"; only what makes all further asking useless is raised."""
        ...

    def refit(self, version: int) -> dict[str, float]:
        """Sample by the weights of now from here on, which have this version.

        What giving them took, by name, for the row of a batch: the first rank's counts, others' may
        be other ones; {} of an engine that has them anyhow.
        """
        ...
