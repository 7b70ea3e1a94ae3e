"""Reads the runs of a ladder: size, tokens and loss of each, from run folders or a CSV.

    runs, left_out = read(["runs/ladder/general", "published.csv"])

A folder is a run, or holds runs at any depth. A CSV has the columns parameters, tokens, loss and
may have compute, lr, batch_tokens, name, stage.

N, the size of a model, counts the weights that multiply a token: all matrices, of experts those a
token is sent to, and the output layer; the embedding is looked up and does not count. So the
compute C of a run is 6 N D and attention's part (`model/flops.py`).
"""

import csv
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_qwen3 import config as settings
from megatron_qwen3.config import ConfigError
from megatron_qwen3.model.flops import flops_per_token
from megatron_qwen3.settings import ModelConfig
from megatron_qwen3.studies.levels import levels
from megatron_qwen3.training.history import RunHistory
from megatron_qwen3.training.metrics_file import ALL_SOURCES, FILE_NAME, MetricsError

_REQUIRED = ("parameters", "tokens", "loss")
_COLUMNS = (*_REQUIRED, "compute", "lr", "batch_tokens", "name", "stage")


@dataclass(frozen=True)
class Measurement:
    """One finished run.

    parameters    N, weights that multiply a token
    tokens        D, trained on
    loss          L, nats per token: held-out where the run evaluated, else the end of training
    compute       C, floating point operations of the whole run
    lr            highest learning rate; NaN if unknown, as is batch_tokens, tokens of one step
    """

    name: str
    stage: str
    parameters: float
    tokens: float
    loss: float
    compute: float
    lr: float = math.nan
    batch_tokens: float = math.nan


def matrix_parameters(model: ModelConfig) -> float:
    """N: weights that multiply one token."""
    return flops_per_token(model, sequence_length=0) / 6


class Unfinished(ConfigError):
    """A run that has not done all its steps: its loss is not that of the whole run."""


def read(paths: Sequence[str | Path]) -> tuple[list[Measurement], list[str]]:
    """All finished runs of folders and CSV files, and a line on each run that is not finished.

    ConfigError: a path has no finished run, or a broken one.
    """
    runs: list[Measurement] = []
    left_out: list[str] = []
    for path in map(Path, paths):
        if path.suffix.lower() == ".csv":
            runs += _read_csv(path)
            continue
        folders = sorted(file.parent for file in path.rglob(FILE_NAME))
        if not folders:
            raise ConfigError(f"{path}: neither a CSV nor a folder with a run ({FILE_NAME}) in it")
        for folder in folders:
            try:
                runs.append(read_run(folder))
            except Unfinished as error:
                left_out.append(str(error))
    if not runs:
        raise ConfigError("\n".join(left_out) or "no run in the files")
    for run in runs:
        _check(run)
    return runs, left_out


def _check(run: Measurement) -> None:
    numbers = (run.parameters, run.tokens, run.loss, run.compute)
    if not all(math.isfinite(x) and x > 0 for x in numbers):
        raise ConfigError(
            f"{run.name}: parameters, tokens, loss and compute must be finite and above 0, "
            f"not {', '.join(f'{x:g}' for x in numbers)}"
        )
    for name, value in (("lr", run.lr), ("batch_tokens", run.batch_tokens)):
        if not math.isnan(value) and not 0 < value < math.inf:
            raise ConfigError(f"{run.name}: {name} = {value:g} must be finite and above 0")


def read_run(folder: Path) -> Measurement:
    """The run of one folder; Unfinished where steps are missing, ConfigError where all is."""
    try:
        run = RunHistory.read(folder)
    except (MetricsError, OSError) as error:
        raise ConfigError(str(error)) from None
    config = settings.load([folder / "config.toml"])
    if run.steps < config.steps:
        raise Unfinished(f"{folder}: {run.steps} of {config.steps} steps are done")
    losses = [float(loss) for loss in run.column("loss")[-max(1, run.steps // 50) :]]
    loss = run.held_out().get(ALL_SOURCES, {}).get("loss") or statistics.fmean(losses)
    return Measurement(
        name=run.name,
        stage=Path(config.run.dir).name,
        parameters=matrix_parameters(config.model),
        tokens=run.tokens,
        loss=loss,
        compute=flops_per_token(config.model, config.data.sequence_length) * run.tokens,
        lr=config.optim.lr,
        batch_tokens=config.step_tokens,
    )


def _read_csv(path: Path) -> Iterator[Measurement]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ConfigError(f"{path}: cannot be read ({reason})") from None
    rows = csv.DictReader(lines)
    rows.fieldnames = [name.strip() for name in rows.fieldnames or ()]
    missing = [name for name in _REQUIRED if name not in rows.fieldnames]
    if missing:
        raise ConfigError(
            f"{path}: no column {', '.join(missing)}; columns are {', '.join(_COLUMNS)}"
        )
    for row in rows:
        yield _from_row({name: (row.get(name) or "").strip() for name in _COLUMNS}, path, rows)


def _from_row(row: dict[str, str], path: Path, rows: "csv.DictReader[str]") -> Measurement:
    place = f"{path}, line {rows.line_num}"

    def number(name: str, default: float) -> float:
        if not row[name] and name not in _REQUIRED:
            return default
        try:
            return float(row[name])
        except ValueError:
            raise ConfigError(f"{place}: {name} = {row[name]!r} is not a number") from None

    parameters, tokens = number("parameters", 0), number("tokens", 0)
    return Measurement(
        name=row["name"] or place,
        stage=row["stage"],
        parameters=parameters,
        tokens=tokens,
        loss=number("loss", 0),
        compute=number("compute", 6 * parameters * tokens),
        lr=number("lr", math.nan),
        batch_tokens=number("batch_tokens", math.nan),
    )


def best(runs: Sequence[Measurement]) -> list[Measurement]:
    """Of runs alike in stage, size and tokens the one with the lowest loss.

    A law of loss is about well-tuned runs; the others say how to tune.
    """
    found: dict[tuple[str, float, int], Measurement] = {}
    for run, length in zip(runs, levels([run.tokens for run in runs]).tolist(), strict=True):
        key = (run.stage, run.parameters, length)
        if key not in found or run.loss < found[key].loss:
            found[key] = run
    return list(found.values())
