"""Writes the page about a build of dialogs, and its tables: kept and dropped ones, with reasons.

    for table in tables(content): console().print(table)
    write(content, Path("data/cold_start/report.html"))

`content` is that of report.json (`posttrain/building/work.py`). Queries and answers in it are
strangers' texts: `page` and `pictures` escape them.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from megatron_qwen3.pages import page, pictures
from megatron_qwen3.pages.pictures import HUES, INK, MUTED, Picture
from megatron_qwen3.shown import shown
from megatron_qwen3.tables import table

_KEPT = "kept"
_DOMAINS_SHOWN = 20
_LONGEST_NAME = 40  # characters in a picture


def tables(content: Mapping[str, Any]) -> Iterator[Table]:
    """Tables for a terminal: reasons, and the dialogs by their labels."""
    for level, rows in _reason_rows(content):
        yield table(rows, f"Outcome of {level}")
    if content["dialogs"]["count"]:
        yield table(_dialog_rows(content), "Dialogs", words=("label", "value"))
    if content["problems"]:
        yield table(_problem_rows(content), "Lines that are no queries", words=("file", "problem"))


def write(content: Mapping[str, Any], out: Path) -> None:
    """A page that needs no other file, its pictures as PNG in the folder of the same name."""
    with pictures.style():
        drawn = list(_pictures(content))
    dialogs = content["dialogs"]
    tiles = [
        (f"{_total(content, 'query'):,}", "queries"),
        (f"{_kept(content, 'query'):,}", "of them asked"),
        (f"{_total(content, 'answer'):,}", "answers"),
        (f"{_kept(content, 'answer'):,}", "of them good"),
        (f"{dialogs['count']:,}", "dialogs"),
        (f"{dialogs['turns']:,}", "answers in them"),
    ]
    sections = [page.numbers(tiles), page.FIGURES]
    sections += [page.table(f"Outcome of {of}", rows) for of, rows in _reason_rows(content)]
    if dialogs["count"]:
        sections.append(page.table("Dialogs", _dialog_rows(content)))
    sections.append(page.table("Numbers", _number_rows(content)))
    if content["problems"]:
        sections.append(page.table("Lines that are no queries", _problem_rows(content)))
    sections.append(page.files("Settings", [(n, t) for n, t in _settings(content)]))
    sections.append(page.files("Dropped: examples", list(_examples(content))))
    page.write(out, content["command"], ", ".join(content["models"]), sections, drawn)


def _pictures(content: Mapping[str, Any]) -> Iterator[Picture]:
    for level, name in (("query", "queries"), ("answer", "answers")):
        if _total(content, level):
            yield _by_domain(content, level, name)
    if content["dialogs"]["count"]:
        yield _lengths(content["dialogs"]["lengths"])
        yield _make_up(content["dialogs"]["by"])


def _by_domain(content: Mapping[str, Any], level: str, name: str) -> Picture:
    """A bar for each domain, divided by the outcomes of its queries or answers."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for of, reason, domain, count in content["counts"]:
        if of == level:
            counts[domain or "none"][reason] += count
    domains = sorted(counts, key=lambda d: (-counts[d].total(), d))[:_DOMAINS_SHOWN][::-1]
    total = sum(counts.values(), Counter[str]())
    reasons = [_KEPT, *(reason for reason, _ in total.most_common() if reason != _KEPT)]
    figure = Figure(figsize=(10.4, 1.6 + 0.36 * len(domains)), layout="constrained")
    axes = figure.add_subplot()
    left = np.zeros(len(domains))
    for place, reason in enumerate(reason for reason in reasons if total[reason]):
        share = np.array([counts[d][reason] / counts[d].total() for d in domains])
        colour = HUES[place] if place < len(HUES) else MUTED
        axes.barh(_names(domains), share, left=left, color=colour, label=shown(reason), height=0.62)
        left += share
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.grid(visible=False, axis="y")
    axes.tick_params(length=0, labelcolor=INK)
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    title = f"Outcome of {name}"
    return pictures.finish(axes, f"{name}_by_domain", title, "by domain", is_wide=True)


def _lengths(lengths: Mapping[str, Sequence[Sequence[int]]]) -> Picture:
    """How long thinking and answers are, by powers of two."""
    axes = pictures.axes("characters, at least", "answers")
    lows = sorted({low for rows in lengths.values() for low, _ in rows})
    place = np.arange(len(lows))
    for number, (name, rows) in enumerate(lengths.items()):
        counts = {row[0]: row[1] for row in rows}
        heights = [counts.get(low, 0) for low in lows]
        axes.bar(place + 0.42 * number - 0.21, heights, 0.4, color=HUES[number], label=name)
    axes.set_xticks(place, [pictures.count_tick(low, None) for low in lows])
    axes.grid(visible=False, axis="x")
    axes.legend(frameon=False)
    return pictures.finish(axes, "lengths", "Lengths", "thinking and answer", is_wide=False)


def _make_up(by: Mapping[str, Mapping[str, int]]) -> Picture:
    """Dialogs by mode and by flags."""
    axes = pictures.axes("dialogs", "")
    rows = [(f"{kind}: {name}", n) for kind in ("mode", "flags") for name, n in by[kind].items()]
    names, counts = zip(*rows[::-1], strict=True)
    axes.barh(_names(names), counts, color=HUES[0], height=0.62)
    axes.grid(visible=False, axis="y")
    return pictures.finish(axes, "modes", "Modes and flags", "of dialogs", is_wide=False)


def _names(names: Sequence[str]) -> list[str]:
    """Short enough for a picture, and still as many."""
    short = [shown(name)[:_LONGEST_NAME] for name in names]
    return [f"{name} ({k})" if short.count(name) > 1 else name for k, name in enumerate(short)]


def _reason_rows(content: Mapping[str, Any]) -> Iterator[tuple[str, list[list[str]]]]:
    for level, name in (("query", "queries"), ("answer", "answers")):
        counts: Counter[str] = Counter()
        for of, reason, _, count in content["counts"]:
            if of == level:
                counts[reason] += count
        rows = [["reason", "count", "share"]]
        for reason, count in sorted(counts.items(), key=lambda r: (r[0] != _KEPT, -r[1], r[0])):
            rows.append([reason, f"{count:,}", f"{count / counts.total():.1%}"])
        if counts:
            yield name, rows


def _dialog_rows(content: Mapping[str, Any]) -> list[list[str]]:
    rows = [["label", "value", "dialogs", "share"]]
    total = content["dialogs"]["count"]
    for kind, counts in content["dialogs"]["by"].items():
        for name, count in counts.items():
            rows.append([kind, name, f"{count:,}", f"{count / total:.1%}"])
    return rows


def _problem_rows(content: Mapping[str, Any]) -> list[list[str]]:
    rows = [["file", "line", "problem"]]
    for row in content["first_problems"]:
        rows.append([row["file"], f"{row['line']:,}", f"{row['kind']}: {row['detail']}"])
    left = sum(content["problems"].values()) - len(content["first_problems"])
    return [*rows, [f"and {left:,} more", "", "all in problems.jsonl"]] if left > 0 else rows


def _number_rows(content: Mapping[str, Any]) -> list[list[str]]:
    names = ("count", "least", "median", "p90", "p99", "most")
    rows = [["", *names]]
    for name, summary in content["numbers"].items():
        rows.append([name, *(f"{summary[n]:,.4g}" for n in names)])
    return rows


def _settings(content: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    lines = [f"{name} = {value}" for name, value in content["settings"].items()]
    yield "settings", "\n".join(lines)
    for name in ("taken", "there were", "judge"):
        if content.get(name):
            yield name, "\n".join(f"{key}: {value}" for key, value in content[name].items())


def _examples(content: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for row in content["examples"]:
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in row["numbers"].items())
        parts = [row["detail"], numbers, f"— query —\n{row['query']}"]
        if row["answer"]:
            parts.append(f"— answer —\n{row['answer']}")
        yield f"{row['reason']}: {row['id']}", "\n\n".join(part for part in parts if part)


def _total(content: Mapping[str, Any], level: str) -> int:
    return sum(count for of, _, _, count in content["counts"] if of == level)


def _kept(content: Mapping[str, Any], level: str) -> int:
    return sum(n for of, reason, _, n in content["counts"] if (of, reason) == (level, _KEPT))
