"""Writes the page about an evaluation, and its tables.

    for table in tables(content): console().print(table)
    write(content, examples, Path("runs/eval/report.html"))

`content` is that of results.json, and examples are a few answers by their score
(`posttrain/evaluation/evaluate.py`). Names, reasons and answers are strangers' texts, which `page`
and `pictures` escape.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from rich.table import Table

from megatron_qwen3.pages import page, pictures
from megatron_qwen3.pages.pictures import HUES, INK, Picture, count_tick
from megatron_qwen3.shown import shown
from megatron_qwen3.tables import table

Row = Mapping[str, Any]
_ALL = "all"
_WHOLE = (-3, 103)  # percent: values at either end are not on the frame
_EXAMPLES = {"Answers that nobody could judge": None, "Wrong answers": 0.0, "Right answers": 1.0}


def tables(content: Mapping[str, Any]) -> Iterator[Table]:
    """For a terminal: rates, lengths, obedience."""
    yield table(_rate_rows(content), "Right answers, with 95 % intervals", ("asked", "set"))
    yield table(_length_rows(content), "Lengths", ("asked", "set"))
    if content["obedience"]:
        yield table(_obedience_rows(content), "Flags in dialogs", ("dialogs",))
    if content["problems"]:
        yield table(_counted(content["problems"]), "Lines that are no tasks", ("why", "first"))
    if content["failures"]:
        yield table(_failure_rows(content), "Requests without an answer")


def write(
    content: Mapping[str, Any], examples: Mapping[float | None, Sequence[Row]], out: Path
) -> None:
    """A page that needs no other file, its pictures as PNG in the folder of the same name."""
    with pictures.style():
        drawn = list(_pictures(content))
    whole = _whole(content)
    tiles = [(f"{sum(content['tasks'].values()):,}", "tasks")]
    tiles += [(_percent(row["pass"].get("1")), f"right, {row['condition']}") for row in whole]
    if content["obedience"]:
        everything = content["obedience"]["groups"].get(_ALL)
        tiles.append((_percent(everything and everything["obeys"]), "flags obeyed"))
    sections = [page.numbers(tiles)]
    if notes := [line for line in (content["alarm"], *content["notes"]) if line]:
        sections.append(page.text("To be looked at", notes))
    sections += [page.FIGURES, page.table("Right answers", _rate_rows(content))]
    sections.append(page.table("Lengths", _length_rows(content)))
    if content["obedience"]:
        sections.append(page.table("Flags in dialogs", _obedience_rows(content)))
    if content["problems"]:
        sections.append(page.table("Lines that are no tasks", _counted(content["problems"])))
    if content["failures"]:
        sections.append(page.table("Requests without an answer", _failure_rows(content)))
    settings = "\n".join(f"{name} = {value}" for name, value in content["settings"].items())
    sections.append(page.files("Settings", [("settings", settings)]))
    for title, score in _EXAMPLES.items():
        if found := examples.get(score):
            sections.append(page.files(f"{title}: examples", list(_examples(found))))
    page.write(out, "Evaluation", content["model"], sections, drawn)


def _whole(content: Mapping[str, Any]) -> list[Row]:
    """The rows of all sets together, one for each condition."""
    return [row for row in content["conditions"] if row["set"] == _ALL]


def _percent(found: Row | None) -> str:
    return "" if not found else f"{100 * found['value']:.1f} %"


def _with_interval(found: Row | None) -> str:
    if not found:
        return "–"
    low, high = 100 * found["low"], 100 * found["high"]
    return f"{100 * found['value']:.1f} ({low:.1f}–{high:.1f})"


def _ks(content: Mapping[str, Any]) -> list[str]:
    found = {k for row in content["conditions"] for k in row["pass"]}
    return sorted(found, key=int)


def _rate_rows(content: Mapping[str, Any]) -> list[list[str]]:
    ks = _ks(content)
    header = ["asked", "set", "tasks", "answers", *(f"pass@{k} %" for k in ks)]
    lines = [[*header, "cut %", "not judged", "not answered"]]
    for row in content["conditions"]:
        rates = [_with_interval(row["pass"].get(k)) for k in ks]
        cut = row["truncated"]
        counts = [f"{row['tasks']:,}", f"{row['samples']:,}"]
        missing = [f"{row['not_judged']:,}", f"{row['unanswered']:,}"]
        share = f"{100 * cut['value']:.1f}" if cut else "–"
        lines.append([row["condition"], row["set"], *counts, *rates, share, *missing])
    return lines


def _length_rows(content: Mapping[str, Any]) -> list[list[str]]:
    unit = content["unit"]
    parts = ("thinking", "answer")
    names = [f"{part}: {name}" for part in parts for name in ("median", "mean", "90 %")]
    lines = [["asked", "set", *names, "unit"]]
    for row in content["conditions"]:
        cells = []
        for part in parts:
            found = row[part]
            keys = ("median", "mean", "p90")
            cells += [f"{found[key]:,.0f}" if found else "–" for key in keys]
        lines.append([row["condition"], row["set"], *cells, unit])
    return lines


def _obedience_rows(content: Mapping[str, Any]) -> list[list[str]]:
    lines = [["dialogs", "number", "mode as asked %", "block well-formed %"]]
    for name, found in content["obedience"]["groups"].items():
        number = f"{found['obeys']['tasks']:,}"
        rates = [_with_interval(found["obeys"]), _with_interval(found["well_formed"])]
        lines.append([name, number, *rates])
    return lines


def _failure_rows(content: Mapping[str, Any]) -> list[list[str]]:
    rows = [[reason, f"{count:,}"] for reason, count in content["failures"].items()]
    return [["why", "requests"], *rows]


def _counted(problems: Sequence[Row]) -> list[list[str]]:
    """How many lines are no tasks, by kind, with the first of each."""
    lines = [["why", "lines", "first"]]
    for kind in dict.fromkeys(problem["kind"] for problem in problems):
        mine = [problem for problem in problems if problem["kind"] == kind]
        first = f"{mine[0]['file']}:{mine[0]['line']}: {mine[0]['detail']}"
        lines.append([kind, f"{len(mine):,}", first])
    return lines


def _examples(examples: Sequence[Row]) -> Iterator[tuple[str, str]]:
    for one in examples:
        yield shown(one["name"])[:200], f"{one['asked']}\n\n--- answer ---\n{one['text']}"


def _pictures(content: Mapping[str, Any]) -> Iterator[Picture]:
    whole = _whole(content)
    if any(len(row["pass"]) > 1 for row in whole):
        yield _pass_over_k(whole)
    if any(row["budget"] is not None and row["pass"] for row in whole):
        yield _right_over_budget(whole)
    if any(row["thinking"] for row in whole):
        yield _thinking_lengths(whole, content["unit"])
    if content["obedience"] and content["obedience"]["groups"]:
        yield _obedience(content["obedience"]["groups"])


def _errors(found: Sequence[Row]) -> list[list[float]]:
    """Distances of the intervals' ends from the values, in percent, as matplotlib takes them."""
    return [
        [100 * (one["value"] - one["low"]) for one in found],
        [100 * (one["high"] - one["value"]) for one in found],
    ]


def _values(found: Sequence[Row]) -> list[float]:
    return [100 * one["value"] for one in found]


def _pass_over_k(rows: Sequence[Row]) -> Picture:
    """Conditions stand beside each other at each k: lines that are equal would hide one another."""
    axes = pictures.axes("k: answers of which one is right", "tasks, %")
    every = sorted({int(k) for row in rows for k in row["pass"]})
    for number, row in enumerate(rows):
        ks = sorted(map(int, row["pass"]))
        found = [row["pass"][str(k)] for k in ks]
        beside = (number - (len(rows) - 1) / 2) * min(0.12, 0.6 / len(rows))
        axes.errorbar(
            [every.index(k) + beside for k in ks],
            _values(found),
            yerr=_errors(found),
            marker="o",
            markersize=3,
            capsize=2,
            color=HUES[number % len(HUES)],
            label=row["condition"],
        )
    axes.set_xticks(range(len(every)), [count_tick(k, None) for k in every])
    axes.set_ylim(*_WHOLE)
    _legend_above(axes)
    return pictures.finish(
        axes, "pass_at_k", "pass@k", "with 95 % intervals over tasks", is_wide=False
    )


def _right_over_budget(rows: Sequence[Row]) -> Picture:
    axes = pictures.axes("tokens of thinking at most", "right, %")
    budgets = [row for row in rows if row["budget"] is not None and row["pass"]]
    names = sorted({row["budget"] for row in budgets})
    xs = [names.index(row["budget"]) for row in budgets]
    found = [row["pass"]["1"] for row in budgets]
    axes.errorbar(
        xs, _values(found), yerr=_errors(found), marker="o", markersize=3, capsize=2, color=HUES[0]
    )
    for row in rows:
        if row["budget"] is None and row["pass"]:
            height = 100 * row["pass"]["1"]["value"]
            hue = HUES[1] if row["mode"] == "thinking" else HUES[2]
            axes.axhline(height, color=hue, linestyle="--", label=f"{row['condition']}, no budget")
    axes.set_xticks(range(len(names)), [count_tick(budget, None) for budget in names])
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_ylim(*_WHOLE)
    if axes.get_legend_handles_labels()[0]:
        _legend_above(axes)
    return pictures.finish(
        axes, "budgets", "Thinking budgets", "right answers by budget", is_wide=False
    )


def _thinking_lengths(rows: Sequence[Row], unit: str) -> Picture:
    axes = pictures.axes(f"{unit} of thinking, from a power of two up to the next", "answers, %")
    for number, row in enumerate(rows):
        if not row["thinking"]:
            continue
        ranges = _without_gaps(row["thinking"]["ranges"])
        total = max(1, row["samples"])
        hue = HUES[number % len(HUES)]
        xs, ys = [low for low, _ in ranges], [100 * count / total for _, count in ranges]
        axes.plot(xs, ys, marker="o", markersize=3, color=hue, label=row["condition"])
    if any(low > 0 for row in rows for low, _ in (row["thinking"] or {"ranges": []})["ranges"]):
        pictures.make_logarithmic(axes, "x", count_tick)
    axes.set_ylim(bottom=0)
    _legend_above(axes)
    return pictures.finish(
        axes, "thinking_lengths", "Length of thinking", "answers without any left out", False
    )


def _without_gaps(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """(lower bound, count) of ranges in order, with a 0 for empty ranges between them and for the
    one on either side; without answers of no length."""
    counts = {low: count for low, count in ranges if low}
    if not counts:
        return []
    least, most = min(counts).bit_length() - 1, max(counts).bit_length() - 1
    powers = range(max(0, least - 1), most + 2)
    return [(1 << power, counts.get(1 << power, 0)) for power in powers]


def _legend_above(axes: Axes) -> None:
    """Where it hides no point: above the axes."""
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2)


def _obedience(groups: Mapping[str, Row]) -> Picture:
    axes = pictures.axes("dialogs whose mode is as asked, %", "")
    names = list(groups)[::-1]
    found = [groups[name]["obeys"] for name in names]
    axes.barh(names, _values(found), color=HUES[0], height=0.6)
    axes.errorbar(
        _values(found), names, xerr=_errors(found), fmt="none", ecolor=INK, capsize=2, linewidth=0.8
    )
    axes.set_xlim(0, 100)
    return pictures.finish(
        axes, "obedience", "Flags in dialogs", "the last /think or /no_think decides", False
    )
