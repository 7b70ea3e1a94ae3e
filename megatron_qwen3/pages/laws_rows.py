"""Formats scaling laws as tables for a terminal, as rows for a page, and as JSON."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

from rich.table import Table

from megatron_qwen3.studies.laws import Recommendation, StageLaws
from megatron_qwen3.studies.tuning import TuningLaw
from megatron_qwen3.tables import table
from megatron_qwen3.training.console import count

Rows = list[list[str]]
_TRIED = 1000.0  # compute of the largest prediction that was checked, over that of the ladder


def lines(found: Sequence[StageLaws], advice: Sequence[Recommendation]) -> Iterator[str | Table]:
    """Lines for a terminal, from top to bottom."""
    for laws in found:
        yield f"stage {laws.stage or '–'}: {len(laws.runs)} runs, {len(laws.best)} sizes × tokens"
        for title, rows in tables(laws):
            yield table(rows, title)
        yield from (f"missing: {reason}" for reason in laws.missing)
        yield from (f"doubtful: {reason}" for reason in laws.doubts)
    if advice:
        yield table(advice_rows(advice), "How to train the target")
        yield from (f"doubtful: {reason}" for reason in far(advice))


def tables(laws: StageLaws) -> Iterator[tuple[str, Rows]]:
    """(title, header and rows) of everything that a stage's runs determine."""
    if laws.loss_law:
        yield "Loss = E + A / N^α + B / D^β, with 5–95 % of resampled fits", law_rows(laws)
    if laws.held_out:
        yield "Largest runs predicted from the smaller ones", held_out_rows(laws)
    if laws.valleys:
        yield "Best size per compute budget", valley_rows(laws)
    if laws.optima:
        yield "Best learning rate and batch of each sweep", optimum_rows(laws)
    if laws.lr_laws or laws.batch_laws:
        yield "Laws of learning rate and batch, the best first", tuning_rows(laws)


def law_rows(laws: StageLaws) -> Rows:
    """One row per number of the law of loss."""
    law = laws.loss_law
    assert law
    rows = [["", "value", "from", "to"]]
    for name, of in (
        ("E, nats per token", "E"),
        ("A", "A"),
        ("α", "alpha"),
        ("B", "B"),
        ("β", "beta"),
        ("a in N* ∝ C^a", "size_exponent"),
    ):
        ends = ["", ""]
        if laws.resampled:
            values = [getattr(one, of) for one in laws.resampled]
            ends = [f"{x:.4g}" for x in laws.interval(values)]
        rows.append([name, f"{getattr(law, of):.4g}", *ends])
    return rows


def held_out_rows(laws: StageLaws) -> Rows:
    """One row per predicted run, and the means."""
    held_out = laws.held_out
    assert held_out
    rows = [["run", "N", "D", "measured", "predicted", "error"]]
    for one in held_out.predictions:
        rows.append(
            [
                one.run.name,
                count(one.run.parameters),
                count(one.run.tokens),
                f"{one.run.loss:.4f}",
                f"{one.predicted:.4f}",
                f"{100 * one.error:+.2f} %",
            ]
        )
    rows.append(["mean of |error|", "", "", "", "", f"{100 * held_out.mean_error:.2f} %"])
    guess = f"{100 * held_out.guess_error:.2f} %"
    rows.append(["lowest loss of the smaller runs, as a guess", "", "", "", "", guess])
    return rows


def valley_rows(laws: StageLaws) -> Rows:
    """One row per budget, with the best size by the law of loss beside it."""
    rows = [["FLOP", "sizes", "best N", "best D", "loss", "best N by the law of loss"]]
    for valley in laws.valleys:
        cells = [f"outside: {valley.bottom}", "", ""]
        if valley.bottom == "inside":
            cells = [count(valley.parameters), count(valley.tokens), f"{valley.loss:.4f}"]
        size = laws.loss_law.allocation(valley.compute)[0] if laws.loss_law else math.nan
        by_law = "" if math.isnan(size) else count(size)
        rows.append([f"{valley.compute:.3g}", str(len(valley.sizes)), *cells, by_law])
    if laws.best_size:
        law = laws.best_size
        rows.append([f"N* = {law.factor:.3g} · C^{law.exponent:.3f}", "", "", "", "", ""])
    return rows


def optimum_rows(laws: StageLaws) -> Rows:
    """One row per sweep."""
    rows = [["N", "D", "lr", "batch, tokens", "loss", "note"]]
    for optimum in laws.optima:
        rows.append(
            [
                count(optimum.parameters),
                count(optimum.tokens),
                _number(optimum.lr, ".3g"),
                _number(optimum.batch_tokens, ",.0f"),
                f"{optimum.loss:.4f}",
                optimum.at_edge,
            ]
        )
    return rows


def tuning_rows(laws: StageLaws) -> Rows:
    """One row per form that the optima determine."""
    rows = [["of", "law", "optima", "misses an optimum left out by"]]
    for what, found in (("learning rate", laws.lr_laws), ("batch, tokens", laws.batch_laws)):
        for law in found:
            miss = f"× {law.left_out_error:.3g}" if math.isfinite(law.left_out_error) else "–"
            rows.append([what, formula(law), str(law.points), miss])
    return rows


def formula(law: TuningLaw) -> str:
    """`0.312 · C^-0.125`."""
    names = law.form.split(", ") if law.exponents else []
    powers = [f"{name}^{x:.3f}" for name, x in zip(names, law.exponents, strict=True)]
    return " · ".join([f"{math.exp(law.constant):.4g}", *powers])


def advice_rows(advice: Sequence[Recommendation]) -> Rows:
    """One row per stage."""
    header = ["stage", "N", "D", "× ladder's FLOP", "loss", "from", "to", "lr", "global_batch"]
    rows = [[*header, "best N for its FLOP"]]
    for one in advice:
        rows.append(
            [
                one.stage or "–",
                count(one.parameters),
                count(one.tokens),
                f"{one.extrapolation:.3g}",
                _number(one.loss, ".4f"),
                _number(one.low, ".4f"),
                _number(one.high, ".4f"),
                _number(one.lr, ".3g"),
                _number(one.global_batch, "d"),
                "" if one.best_parameters is None else count(one.best_parameters),
            ]
        )
    return rows


def far(advice: Sequence[Recommendation]) -> list[str]:
    """A line on each target that is further from the ladder than published laws were tried."""
    return [
        f"the target has {one.extrapolation:.3g} times the compute of the largest run; DeepSeek's "
        "laws were tried over 1,000 times (arXiv 2401.02954, section 3)"
        for one in advice
        if one.extrapolation > _TRIED
    ]


def as_dict(found: Sequence[StageLaws], advice: Sequence[Recommendation]) -> dict[str, Any]:
    """All numbers for programs; unknown ones are null."""
    stages = [
        {
            "stage": laws.stage,
            "runs": [dataclasses.asdict(run) for run in laws.runs],
            "loss_law": laws.loss_law and dataclasses.asdict(laws.loss_law),
            "resampled": [dataclasses.asdict(law) for law in laws.resampled],
            "held_out": laws.held_out
            and {
                "mean_abs_error": laws.held_out.mean_error,
                "guess_error": laws.held_out.guess_error,
                "rows": [
                    {**dataclasses.asdict(one), "error": one.error}
                    for one in laws.held_out.predictions
                ],
            },
            "valleys": [dataclasses.asdict(valley) for valley in laws.valleys],
            "best_size": laws.best_size and dataclasses.asdict(laws.best_size),
            "optima": [dataclasses.asdict(optimum) for optimum in laws.optima],
            "lr_laws": [dataclasses.asdict(law) for law in laws.lr_laws],
            "batch_laws": [dataclasses.asdict(law) for law in laws.batch_laws],
            "missing": laws.missing,
            "doubts": laws.doubts,
        }
        for laws in found
    ]
    whole = {"stages": stages, "advice": [dataclasses.asdict(one) for one in advice]}
    known: dict[str, Any] = _without_nan(whole)
    return known


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: float | None, form: str) -> str:
    return "" if value is None or not math.isfinite(value) else format(value, form)
