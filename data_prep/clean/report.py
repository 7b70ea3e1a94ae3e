"""Reports kept and dropped documents by reason: tables for people, report.json, report.png.

    content = read_report(Path("runs/clean"))
    print_report(content, tables.console())

Counts come from each task; lines of problems are counted from the beginning of their file, although
several tasks may have read it.
"""

import io
import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from rich.console import Console
from rich.table import Table

from data_prep.clean import recipe
from data_prep.clean.dedup.numbering import write_index
from data_prep.clean.files import cut_short, read_json
from data_prep.clean.settings import REPORT, CleanSettings
from data_prep.clean.write import KEPT
from data_prep.json_files import write_json
from data_prep.languages import LANGUAGES
from megatron_qwen3.config import ConfigError
from megatron_qwen3.shown import shown
from megatron_qwen3.storage.whole import write_whole
from megatron_qwen3.tables import table

PICTURE = "report.png"
SCORES, HEURISTIC = ("quality", "education"), "heuristic"
_PROBLEMS_SHOWN = 10
_LANGUAGES_SHOWN = 40


class WriteReport(PipelineStep):  # type: ignore[misc]
    """The last stage. report.json marks a whole result; intermediate files can go then."""

    name, type = "Report", "📊 - REPORT"

    def __init__(self, settings: CleanSettings) -> None:
        super().__init__()
        self.settings = settings

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        try:
            if not self.settings.folder(REPORT).exists():
                self._write()
        except FileNotFoundError:
            if not self.settings.folder(REPORT).exists():
                raise  # else another copy of this task was faster, and removed the files
        shutil.rmtree(self.settings.folder("work"), ignore_errors=True)
        yield from ()

    def _write(self) -> None:
        content = collect(self.settings)
        write_whole(self.settings.folder(PICTURE), [picture(content)])
        problems = (msgspec.json.encode(row) + b"\n" for row in _problems(self.settings))
        write_whole(self.settings.folder("problems.jsonl"), problems)
        hits = _task_files(self.settings, "work/contamination", ".jsonl")
        write_whole(
            self.settings.folder("contamination.jsonl"), (path.read_bytes() for path in hits)
        )
        if self.settings.keep_index:
            write_index(self.settings)
        write_json(self.settings.folder(REPORT), content)


def collect(settings: CleanSettings) -> dict[str, Any]:
    """All counts. rows: source, language, outcome, documents, bytes of text; recipe: as TOML;
    scores: the models that scored documents without scores of their own."""
    documents: Counter[tuple[str, str, str]] = Counter()
    sizes: Counter[tuple[str, str, str]] = Counter()
    for stage in ("work/counts/label", "work/counts/write"):
        for path in _task_files(settings, stage, ".json"):
            for *key, count, size in read_json(path):
                documents[key[0], key[1], key[2]] += count
                sizes[key[0], key[1], key[2]] += size
    kinds, first = Counter[str](), list[dict[str, Any]]()
    for row in _problems(settings):
        kinds[row["kind"]] += 1
        if len(first) < _PROBLEMS_SHOWN:
            first.append(row)
    return {
        "version": 1,
        "rows": [[*key, documents[key], sizes[key]] for key in sorted(documents)],
        "problems": dict(kinds),
        "first_problems": first,
        "recipe": recipe.text(settings),
        "scores": {name: settings.models.get(name, HEURISTIC) for name in SCORES},
    }


def read_report(out: Path) -> dict[str, Any]:
    """What `collect` found, and how many documents and bytes that is; ConfigError where the
    cleaning has not ended."""
    path = out / REPORT
    if not path.exists():
        raise ConfigError(f"{path} does not exist: the cleaning has not ended, or is elsewhere")
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
    except ValueError:
        raise cut_short(path) from None
    kept = [row for row in content["rows"] if row[2] == KEPT]
    return content | {
        "read": sum(row[3] for row in content["rows"]),
        "kept": sum(row[3] for row in kept),
        "kept_bytes": sum(row[4] for row in kept),
    }


def check_kept(out: Path, content: dict[str, Any]) -> None:
    """ConfigError where not one document was kept."""
    if not content["kept"]:
        raise ConfigError(
            f"{shown(out)}: not one of {content['read']:,} documents was kept{_why(content)}"
        )


def print_report(content: dict[str, Any], console: Console) -> None:
    """The tables of what `read_report` read."""
    rows = content["rows"]
    console.print(_by_outcome(rows, content["read"]))
    console.print(_by_language(rows))
    if content["problems"]:
        console.print(_problem_table(content))
    if scored := [name for name, by in content.get("scores", {}).items() if by == HEURISTIC]:
        console.print(
            f"{shown(' and '.join(scored))}: heuristics of characters and words, where documents "
            "brought none; they do not judge the content of a text"
        )
    size = content["kept_bytes"] / 1e6
    console.print(
        f"{content['kept']:,} of {content['read']:,} documents kept, {size:,.1f} MB of text"
    )


def _why(content: dict[str, Any]) -> str:
    for row in content["first_problems"]:
        return f"; the first problem: {shown(row['file'])}:{row['line']}: {shown(row['detail'])}"
    return ""


def _by_outcome(rows: list[Any], total: int) -> Table:
    documents, sizes = Counter[str](), Counter[str]()
    for _, _, outcome, count, size in rows:
        documents[outcome] += count
        sizes[outcome] += size
    lines = [["outcome", "documents", "share", "MB"]]
    for outcome, count in documents.most_common():
        share, size = count / max(1, total), sizes[outcome] / 1e6
        lines.append([outcome, f"{count:,}", f"{share:.1%}", f"{size:,.1f}"])
    return table(lines, "Outcome of documents")


def _by_language(rows: list[Any]) -> Table:
    lines = [["language", "name", "read", "kept", "MB kept", "dropped most for"]]
    counts = _outcomes(rows)
    for code in list(counts)[:_LANGUAGES_SHOWN]:
        outcomes = counts[code]
        dropped = [(name, n) for name, n in outcomes.most_common() if name != KEPT]
        size = sum(row[4] for row in rows if row[1] == code and row[2] == KEPT)
        lines.append(
            [
                code,
                LANGUAGES[code].name if code in LANGUAGES else "undetermined",
                f"{outcomes.total():,}",
                f"{outcomes[KEPT]:,}",
                f"{size / 1e6:,.1f}",
                ", ".join(f"{name} {n:,}" for name, n in dropped[:2]),
            ]
        )
    if len(counts) > _LANGUAGES_SHOWN:
        lines.append([f"… {len(counts) - _LANGUAGES_SHOWN} more in {REPORT}"])
    return table(lines, "By language", words=("language", "name", "dropped most for"))


def _outcomes(rows: list[Any]) -> dict[str, Counter[str]]:
    """Documents by outcome, per language, that with most documents first."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for _, language, outcome, count, _ in rows:
        counts[language][outcome] += count
    return dict(sorted(counts.items(), key=lambda item: -item[1].total()))


def _problem_table(content: dict[str, Any]) -> Table:
    lines = [["file", "line", "problem"]]
    for row in content["first_problems"]:
        lines.append([row["file"], str(row["line"]), f"{row['kind']}: {row['detail']}"])
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in content["problems"].items())
    title = f"Unreadable: {kinds}; all in problems.jsonl"
    return table(lines, title, words=("file", "problem"))


def picture(content: dict[str, Any]) -> bytes:
    """A PNG: per language the shares that were kept and dropped for each reason."""
    import matplotlib

    with matplotlib.rc_context({"text.parse_math": False}):  # a $ in a label is a $
        return _draw(content)


def _draw(content: dict[str, Any]) -> bytes:
    from matplotlib.figure import Figure

    counts = {code: c for code, c in _outcomes(content["rows"]).items() if c.total()}
    codes = list(counts)[:_LANGUAGES_SHOWN][::-1]
    total: Counter[str] = sum(counts.values(), Counter())
    reasons = [KEPT, *(name for name, _ in total.most_common() if name != KEPT)]
    figure = Figure(figsize=(9, 1.5 + 0.2 * len(codes)), layout="constrained")
    axes = figure.add_subplot()
    left = [0.0] * len(codes)
    for number, reason in enumerate(reasons):
        shares = [counts[code][reason] / counts[code].total() for code in codes]
        color = "#0072b2" if reason == KEPT else f"C{number % 9 + 1}"
        axes.barh([*map(shown, codes)], shares, 0.8, left, color=color, label=shown(reason))
        left = [a + b for a, b in zip(left, shares, strict=True)]
    axes.set_xlim(0, 1)
    axes.set_ylim(-0.6, len(codes) - 0.4)
    axes.set_xlabel("share of the documents read")
    axes.tick_params(labelsize=7)
    figure.legend(loc="outside right upper", fontsize=7, frameon=False)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=150)
    return png.getvalue()


def _problems(settings: CleanSettings) -> Iterator[dict[str, Any]]:
    """Unreadable lines, in the order of files; lines are counted from the file's first."""
    before: Counter[str] = Counter()
    for path in _task_files(settings, "work/problems", ".jsonl"):
        with path.open("rb") as file:
            for row in map(json.loads, file):
                if "lines" in row:  # the end of a part: the next one of the file begins there
                    before[row["file"]] += row["lines"]
                    continue
                number = row["line"] + before[row["file"]]
                yield {"file": row["file"], "line": number} | {
                    name: row[name] for name in ("kind", "detail")
                }


def _task_files(settings: CleanSettings, folder: str, suffix: str) -> list[Path]:
    """The files of all tasks by their names, so that a missing one is an error."""
    return [settings.file(folder, task, suffix) for task in range(settings.tasks)]
