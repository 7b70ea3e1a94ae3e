"""What a run wrote about itself, read back: metrics.jsonl as columns.

    run = Run.read("runs/tiny-dense/pretrain_1_general")
    run.column("loss")[-1], run.tokens

Kept apart from the writer (`metrics.py`) so that reports and studies read runs, finished or still
under way, with numpy alone. Columns and not dicts, since a long stage has millions of steps.
"""

import contextlib
from array import array
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_qwen3.shown import shown
from megatron_qwen3.training.metrics_file import FILE_NAME, MetricsError, read_rows


@dataclass(frozen=True)
class Run:
    """One run, with at least one training step.

    columns      per name of a training metric one float64 per step; NaN where a step lacks it
    evaluations  rows {"step", "source", "loss", "bits_per_byte", "tokens"}, in order
    config_text  the resolved configuration as TOML; "" if the folder has none
    """

    name: str
    columns: dict[str, np.ndarray]
    evaluations: list[dict[str, Any]]
    config_text: str

    @classmethod
    def read(cls, folder: str | Path) -> "Run":
        """MetricsError: the folder holds no metrics, or not one training step."""
        folder = Path(folder)
        path = folder / FILE_NAME
        if not path.is_file():
            raise MetricsError(
                f"{folder}: no {FILE_NAME} in this folder; name the folder of a run, "
                "{run.dir}/{run.name}"
            )
        columns: dict[str, array[float]] = defaultdict(lambda: array("d"))
        evaluations, steps = [], 0
        for row in read_rows(path):
            if row.pop("kind") == "eval":
                evaluations.append(row)
                continue
            for name, value in row.items():
                if value is not None:
                    missing = steps - len(columns[name])
                    columns[name].extend([np.nan] * missing + [_number(value, name, path)])
            steps += 1
        if not steps:
            raise MetricsError(f"{path}: no training step in it yet")
        config = folder / "config.toml"
        return cls(
            name=folder.resolve().name,
            columns={name: _padded(column, steps) for name, column in columns.items()},
            evaluations=evaluations,
            config_text=config.read_text(encoding="utf-8") if config.is_file() else "",
        )

    def column(self, name: str) -> np.ndarray:
        """One float64 per step; all NaN for a metric that the run does not have."""
        return self.columns.get(name, np.full(len(self.columns["step"]), np.nan))

    def median(self, name: str) -> float | None:
        """None for a metric that the run does not have."""
        return float(np.nanmedian(self.columns[name])) if name in self.columns else None

    def total(self, name: str) -> float | None:
        """Over all steps; None for a metric that the run does not have."""
        return float(np.nansum(self.columns[name])) if name in self.columns else None

    @property
    def steps(self) -> int:
        """Steps done."""
        return int(self.columns["step"][-1])

    @property
    def tokens(self) -> int:
        """Tokens trained on."""
        return int(self.columns["tokens"][-1])

    def held_out(self) -> dict[str, dict[str, Any]]:
        """The newest evaluation of each source, `ALL_SOURCES` included; {} if there was none."""
        return {row["source"]: row for row in self.evaluations}


def _number(value: Any, name: str, path: Path) -> float:
    if type(value) in (int, float):
        with contextlib.suppress(OverflowError):
            return float(value)
    raise MetricsError(f"{path}: {name} = {shown(repr(value))[:40]} is no number")


def _padded(column: "array[float]", steps: int) -> np.ndarray:
    values = np.full(steps, np.nan)
    values[: len(column)] = column
    return values
