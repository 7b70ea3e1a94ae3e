"""Builds the data of off-policy distillation: a teacher's answers in both modes, as dialogs.

    rows, about = build(work, queries, teacher, (DistillSettings(), draws, flags), passages)

A small student learns both modes from a large model's texts (Qwen3 technical report, section 4.5).
Each query is answered with thinking, without, or both; answers with faults, or wrong by the query's
verifier, are left out. Flags are inserted as in `fusion.py`: without them the student could not
tell which mode is requested.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from data_prep.passages import Passages
from megatron_qwen3.fields import setting
from megatron_qwen3.posttrain import options
from megatron_qwen3.posttrain.building.candidates import DrawSettings
from megatron_qwen3.posttrain.building.fitting import fit
from megatron_qwen3.posttrain.building.flags import FlagSettings, fused
from megatron_qwen3.posttrain.building.fusion import best_of
from megatron_qwen3.posttrain.building.queries import Query
from megatron_qwen3.posttrain.building.work import BuildWork
from megatron_qwen3.posttrain.generators.opened import AnyGenerator

_MODES = {"both": (True, False), "thinking": (True,), "non-thinking": (False,)}


@dataclass(frozen=True)
class DistillSettings:
    """Settings of the teacher's answers."""

    modes: str = setting("both", "modes in which the teacher answers", choices=tuple(_MODES))
    per_query: int = setting(1, "most answers of one query in one mode", at_least=1)
    unverified: bool = setting(False, "keep answers that a query's verifier finds wrong")

    def __post_init__(self) -> None:
        options.check(self)


def build(
    work: BuildWork,
    queries: Sequence[Query],
    teacher: AnyGenerator,
    settings: tuple[DistillSettings, DrawSettings, FlagSettings],
    passages: Passages | None,
) -> tuple[Iterator[dict[str, Any]], dict[str, Any]]:
    """The rows of dialogs, and entries of the report besides `work.outcomes`."""
    of_teacher, of_draws, of_flags = settings
    left = fit(work, queries, passages, is_verified=False, is_one=False)
    for query in left:
        work.outcomes.keep("query", query)
    if of_teacher.unverified:
        left = [query.without_verifier() for query in left]
    found = [
        answer
        for thinks in _MODES[of_teacher.modes]
        for answer in best_of(work, teacher, left, of_draws, thinks, of_teacher.per_query)
    ]
    taken = {
        mode: sum(answer.mode == mode for answer in found) for mode in ("thinking", "non-thinking")
    }
    return fused(found, of_flags), {"taken": taken}
