"""Writes the page about a training, and its table for a terminal: a line for each stage.

    table = stage_rows(runs)
    write_report(runs, Path("report.html"))

`runs` are the stages of one training in order (`training/history.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from megatron_qwen3.bar import duration
from megatron_qwen3.pages import page, rollouts
from megatron_qwen3.training.console import count
from megatron_qwen3.training.history import RunHistory
from megatron_qwen3.training.metrics_file import ALL_SOURCES

if TYPE_CHECKING:
    from megatron_qwen3.pages.pictures import Picture

KeptOf = Mapping[int, rollouts.KeptRollouts]
_OF_SOURCES = {"loss": "loss", "bits_per_byte": "bits per byte", "accuracy": "ranked as given"}
_OF_SOURCES |= {"reward": "reward", "pass_rate": "right", "length": "length", "truncated": "cut"}


def stage_rows(runs: Sequence[RunHistory]) -> list[list[str]]:
    """A line of headers and one line per stage; columns that no stage has numbers for are left out.

    The last loss is the mean of the last 2 % of steps, since that of one step is mostly noise.
    """
    header = ["stage", "steps", "tokens", "trained tokens", "first loss", "last loss"]
    header += ["held-out loss", "bits per byte", "ranked as given", "tok/s", "MFU", "time"]
    lines = []
    for number, run in enumerate(runs, 1):
        loss, held_out = run.column("loss"), run.held_out().get(ALL_SOURCES, {})
        mfu, rate = run.median("mfu"), run.median("tokens_per_second")
        trained = run.total("trained_tokens")  # of dialogs, where the rest is given
        lines.append(
            [
                f"{number} {run.name}" if len(runs) > 1 else run.name,
                f"{run.steps:,}",
                count(run.tokens),
                "" if trained is None else count(trained),
                f"{loss[0]:.3f}",
                f"{loss[-max(1, len(loss) // 50) :].mean():.3f}",
                _number(held_out.get("loss"), 3),
                _number(held_out.get("bits_per_byte"), 3),
                _number(held_out.get("accuracy"), 3),
                "" if rate is None else count(rate),
                "" if mfu is None else f"{100 * mfu:.1f}%",
                duration(run.seconds),
            ]
        )
    known = [i for i in range(len(header)) if any(line[i] for line in lines)]
    return [[line[i] for i in known] for line in [header, *lines]]


def held_out_rows(runs: Sequence[RunHistory]) -> tuple[list[tuple[str, int]], list[list[str]]]:
    """Every source's newest held-out loss in each stage, one line per source below the headers.

    With it, for the line above the headers, names of stages and how many columns each has.
    """
    newest = [run.held_out() for run in runs]
    sources = list(dict.fromkeys(source for rows in newest for source in rows))
    sources.sort(key=lambda source: source == ALL_SOURCES)  # it stands last
    groups, header, lines = [("", 1)], ["source"], [[source] for source in sources]
    for run, rows in zip(runs, newest, strict=True):
        columns = 0
        for key, name in _OF_SOURCES.items():
            cells = [_number(rows.get(source, {}).get(key)) for source in sources]
            if any(cells):
                columns += 1
                header.append(name)
                lines = [[*line, cell] for line, cell in zip(lines, cells, strict=True)]
        if columns:
            groups.append((run.name, columns))
    return groups, [header, *lines]


def write_report(runs: Sequence[RunHistory], out: Path, kept: KeptOf | None = None) -> None:
    """Write the page to `out` and its pictures as PNG to the folder of the same name.

    kept: files in the folders of runs that sample answers, by their places among the runs.
    """
    from megatron_qwen3.pages.training_pictures import draw_all  # matplotlib loads slowly

    names = " → ".join(run.name for run in runs)
    pictures = draw_all(runs)
    sampling = {n: run for n, run in enumerate(runs) if run.rollouts}
    body = [_key_numbers(runs)]
    for n, run in sampling.items():
        body.append(page.numbers(rollouts.tiles(run)))
        pictures += _of_rollouts(run, f"{n + 1}" if len(runs) > 1 else "")
    body += [page.table("Stages", stage_rows(runs)), page.FIGURES]
    for n, run in sampling.items():
        name = run.name if len(runs) > 1 else ""
        if kept:
            body += rollouts.sections(run, kept[n], name)
    stages, held_out = held_out_rows(runs)
    if len(held_out) > 1:
        what = {"tasks" if run.rollouts else "text" for run in runs if run.held_out()}
        title = f"Held-out {' and '.join(sorted(what, reverse=True))} by source"
        body.append(page.table(title, held_out, stages))
    settings = [(run.name, run.config_text) for run in runs if run.config_text]
    if settings:
        body.append(page.files("Configuration", settings))
    page.write(out, "Training report", names, body, pictures)


def _of_rollouts(run: RunHistory, number: str) -> list[Picture]:
    """Pictures of a stage; number: of it, where there are several, and files need other names."""
    from megatron_qwen3.pages import rollout_pictures

    drawn = rollout_pictures.draw_all(run)
    if not number:
        return drawn
    return [
        replace(p, name=f"{number}_{p.name}", title=f"{number} {run.name}: {p.title}")
        for p in drawn
    ]


def _key_numbers(runs: Sequence[RunHistory]) -> Markup:
    """The training in a few large numbers."""
    header, *lines = stage_rows(runs)
    last = dict(zip(header, lines[-1], strict=True))
    first_loss = dict(zip(header, lines[0], strict=True))["first loss"]
    seconds = sum(run.seconds for run in runs)
    tiles = [
        (count(sum(run.tokens for run in runs)), "tokens trained on"),
        (f"{first_loss} → {last['last loss']}", "training loss, first to last"),
        (last.get("bits per byte", ""), "held-out bits per byte"),
        (last.get("ranked as given", ""), "of held-out pairs ranked as given"),
        (last.get("tok/s", ""), "tokens per second, last stage"),
        (duration(seconds), "training time"),
    ]
    return page.numbers(tiles)


def _number(value: float | None, decimals: int = 4) -> str:
    return "" if value is None else f"{value:.{decimals}f}"
