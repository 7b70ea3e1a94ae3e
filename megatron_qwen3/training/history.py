"""Reads a run's metrics.jsonl back, as columns.

    run = RunHistory.read("runs/tiny-dense/pretrain_1_general")
    run.column("loss")[-1], run.tokens

Separate from the writer (`metrics.py`), so that reports and studies read runs, finished or still
running, with numpy alone. Columns rather than dicts, since a long stage has millions of steps.
"""

import contextlib
from array import array
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from megatron_qwen3.shown import shown
from megatron_qwen3.training.metrics_file import FILE_NAME, MetricsError, read_rows


@dataclass(frozen=True)
class RunHistory:
    """One run, with at least one training step.

    columns      per name of a training metric one float64 per step; NaN where a step lacks it
    rollouts     the same per batch of rollouts; {} where the run samples none
    evaluations  rows {"step", "source", "loss", "bits_per_byte", "tokens"}, in order
    config_text  the resolved configuration as TOML; "" if the folder has none
    """

    name: str
    columns: dict[str, np.ndarray]
    evaluations: list[dict[str, Any]]
    config_text: str
    rollouts: dict[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: str | Path) -> "RunHistory":
        """Read a run's folder. MetricsError: it has no metrics, or no training step."""
        folder = Path(folder)
        path = folder / FILE_NAME
        if not path.is_file():
            raise MetricsError(
                f"{folder}: no {FILE_NAME} in this folder; name the folder of a run, "
                "{run.dir}/{run.name}"
            )
        of_steps, of_batches, evaluations = _Columns(path), _Columns(path), []
        for row in read_rows(path):
            kind = row.pop("kind")
            if kind == "eval":
                evaluations.append(row)
            else:
                (of_batches if kind == "rollouts" else of_steps).add(row)
        if not of_steps.rows:
            sampled = f", though {of_batches.rows:,} batches of rollouts" if of_batches.rows else ""
            where = "; rollouts/*/samples.jsonl there has answers" if sampled else ""
            raise MetricsError(f"{path}: no training step in it yet{sampled}{where}")
        config = folder / "config.toml"
        return cls(
            name=folder.resolve().name,
            columns=of_steps.padded(),
            evaluations=evaluations,
            config_text=config.read_text(encoding="utf-8") if config.is_file() else "",
            rollouts=of_batches.padded(),
        )

    def column(self, name: str) -> np.ndarray:
        """One float64 per step; all NaN for an unknown metric."""
        return self.columns.get(name, np.full(len(self.columns["step"]), np.nan))

    def median(self, name: str) -> float | None:
        """The median over steps; None for an unknown metric."""
        return float(np.nanmedian(self.columns[name])) if name in self.columns else None

    def total(self, name: str) -> float | None:
        """The sum over all steps; None for an unknown metric."""
        return float(np.nansum(self.columns[name])) if name in self.columns else None

    @property
    def steps(self) -> int:
        """Number of steps done."""
        return int(self.columns["step"][-1])

    @property
    def tokens(self) -> int:
        """Number of trained tokens."""
        return int(self.columns["tokens"][-1])

    @property
    def seconds(self) -> float:
        """Seconds of all steps and rollouts."""
        sampled = self.rollouts.get("seconds", np.zeros(1))
        return float(self.column("step_seconds").sum() + np.nansum(sampled))

    def held_out(self) -> dict[str, dict[str, Any]]:
        """The newest evaluation of each source, `ALL_SOURCES` included; {} without one."""
        return {row["source"]: row for row in self.evaluations}


class _Columns:
    """Collects rows of a metrics file as columns by name."""

    def __init__(self, path: Path) -> None:
        self.rows, self._path = 0, path
        self._columns: dict[str, array[float]] = defaultdict(lambda: array("d"))

    def add(self, row: dict[str, Any]) -> None:
        for name, value in row.items():
            if value is not None:
                missing = self.rows - len(self._columns[name])
                number = _number(value, name, self._path)
                self._columns[name].extend([np.nan] * missing + [number])
        self.rows += 1

    def padded(self) -> dict[str, np.ndarray]:
        """The columns, one float64 per row, NaN where a row lacks the metric."""
        return {name: _padded(column, self.rows) for name, column in self._columns.items()}


def _number(value: Any, name: str, path: Path) -> float:
    if type(value) in (int, float):
        with contextlib.suppress(OverflowError):
            return float(value)
    raise MetricsError(f"{path}: {name} = {shown(repr(value))[:40]} is no number")


def _padded(column: "array[float]", steps: int) -> np.ndarray:
    values = np.full(steps, np.nan)
    values[: len(column)] = column
    return values
