"""Reports on a run whose model samples answers, beside its pictures.

    rows = source_rows(run)                        # a table for a terminal, too
    body = sections(run, KeptRollouts(samples.newest(folder, 8), hacking.report(folder)))

`run` has batches of rollouts (`training/history.py`).
"""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from megatron_qwen3.bar import duration
from megatron_qwen3.pages import answers, page
from megatron_qwen3.pages.rollout_pictures import seconds_by_kind
from megatron_qwen3.posttrain.rewards import hacking
from megatron_qwen3.posttrain.watching.samples import SHOWN_GROUPS, KeptAnswer, of_line
from megatron_qwen3.training.history import RunHistory

SHOWN = 3  # answers of a kind
KEPT = (
    f"Kept are the best and the worst answer to each of the first {SHOWN_GROUPS} tasks of a batch, "
    "and here those of the newest batches: better and worse ones may have been among the others."
)


class KeptRollouts(NamedTuple):
    """Files in a run's folder besides its metrics. samples: answers of the newest batches;
    hacking: the report of `rewards/hacking.py`."""

    samples: Sequence[KeptAnswer]
    hacking: Mapping[str, Any]


_OF_SOURCES = {"reward": "reward", "pass_rate": "right %", "length": "tokens", "truncated": "cut %"}
_PERCENT = ("pass_rate", "truncated")


def tiles(run: RunHistory) -> list[tuple[str, str]]:
    """The run in a few large numbers."""
    columns = run.rollouts
    return [
        (f"{len(columns['step']):,}", "batches of rollouts"),
        (_change(columns, "reward"), "reward, first to last"),
        (_change(columns, "pass_rate"), "share right, first to last"),
        (_change(columns, "length"), "tokens of an answer"),
        (_percent(_last(columns.get("truncated"))), "of the newest answers cut"),
    ]


def sections(run: RunHistory, kept: KeptRollouts, name: str = "") -> list[Markup]:
    """Tables and answers to read. name: of the run, where a page has several."""
    of = f", {name}" if name else ""
    samples = kept.samples
    body = [page.table(f"Rewards by source and mode{of}", source_rows(run))]
    if len(rows := time_rows(run)) > 1:
        body.append(page.table(f"Where the time goes{of}", rows))
    if belongs_to_rewards(run):
        body.append(page.text(f"Signs of reward hacking{of}", hacking.lines(kept.hacking)))
    for title, found in (examples(samples) | suspects(kept.hacking)).items():
        body.append(answers.section(f"{title}{of}", found))
    if samples:
        body.append(page.text("How to read answers", [KEPT, answers.MARKS]))
    return body


def source_rows(run: RunHistory) -> list[list[str]]:
    """Of each source and mode, below the headers, its first and its last answers: means over the
    first and the last tenth of the batches."""
    # Sources without rewards, as in distillation, have lengths all the same.
    names = [name.removeprefix("length/") for name in run.rollouts if name.startswith("length/")]
    header = ["source", "mode"]
    for label in _OF_SOURCES.values():
        header += [f"{label}, first", "last"]
    lines = [header]
    for name in ["", *names]:
        cells = []
        for key in _OF_SOURCES:
            column = run.rollouts.get(f"{key}/{name}" if name else key)
            cells += [_cell(key, _first(column)), _cell(key, _last(column))]
        source, _, mode = name.rpartition("/") if name else ("all", "", "")
        lines.append([source, mode, *cells])
    return lines


def time_rows(run: RunHistory) -> list[list[str]]:
    """Time of the batches and of their updates, by purpose."""
    lines = [["spent on", "time", "share"]]
    seconds = {name: float(spent.sum()) for name, spent in seconds_by_kind(run).items()}
    total = sum(seconds.values())
    for name, spent in sorted(seconds.items(), key=lambda item: -item[1]):
        if total:
            lines.append([name, duration(spent), f"{100 * spent / total:.1f} %"])
    return lines


def examples(samples: Sequence[KeptAnswer]) -> dict[str, list[KeptAnswer]]:
    """Of the answers that were kept the best and the worst, and those that differ most from the
    others of their task."""
    scored = [sample for sample in samples if sample.reward is not None]
    best = sorted(scored, key=lambda s: (-(s.reward or 0.0), -s.batch))
    surprising = sorted(scored, key=lambda s: (-abs(s.advantage), -s.batch))
    unscored = [sample for sample in samples if sample.reward is None][-SHOWN:]
    found = {
        "Best of the kept answers": best[:SHOWN],
        "Worst of the kept answers": best[::-1][:SHOWN],
        "Most surprising of the kept answers": [s for s in surprising if s.advantage][:SHOWN],
        "Kept answers without a reward": unscored,
    }
    return {title: own for title, own in found.items() if own}


def belongs_to_rewards(run: RunHistory) -> bool:
    """Whether its answers have rewards: those of distillation have none."""
    return "reward" in run.rollouts


def suspects(found: Mapping[str, Any]) -> dict[str, list[KeptAnswer]]:
    """The answers that a person should read according to the report on hacking, by reason."""
    by_why: dict[str, list[KeptAnswer]] = {}
    for row in found["samples"]:
        with contextlib.suppress(ValueError):  # a line that somebody changed
            sample = of_line(int(row["batch"]), row)
            by_why.setdefault(f"To be read: {row['why']}", []).append(sample)
    return by_why


def _part(column: np.ndarray | None, is_last: bool) -> float | None:
    """The mean of a tenth of the batches at one end."""
    if column is None:
        return None
    known = column[~np.isnan(column)]
    size = max(1, len(known) // 10)
    part = known[-size:] if is_last else known[:size]
    return float(part.mean()) if len(part) else None


def _first(column: np.ndarray | None) -> float | None:
    return _part(column, is_last=False)


def _last(column: np.ndarray | None) -> float | None:
    return _part(column, is_last=True)


def _cell(key: str, value: float | None) -> str:
    if value is None:
        return "–"
    if key in _PERCENT:
        return f"{100 * value:.1f}"
    return f"{value:.3f}" if key == "reward" else f"{value:,.0f}"


def _change(columns: dict[str, np.ndarray], key: str) -> str:
    first, last = _first(columns.get(key)), _last(columns.get(key))
    if first is None:
        return ""
    percent = " %" if key in _PERCENT else ""
    return f"{_cell(key, first)} → {_cell(key, last)}{percent}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"
