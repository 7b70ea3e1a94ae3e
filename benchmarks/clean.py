"""Cleaning: MB of text per CPU second of every step and of the whole, one process, one run.

    python benchmarks/clean.py corpus.jsonl.gz more.jsonl.gz         # `text`, maybe labels
    python benchmarks/clean.py sentences.jsonl.gz --join 20          # documents of 20 lines each
    python benchmarks/clean.py books.jsonl.gz --cut 4000             # of 4,000 characters each

MB are of UTF-8 as it was read; seconds are the process's, on all its threads. Models are loaded
and tables made before the clock starts. Beside normalizing, domains and quality stands the same
work plainly written (tests/plain_text.py, tests/plain_quality.py), which gives the same to the bit:
the step's time without optimization.
"""

import argparse
import gzip
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a plain checkout

from datatrove.data import Document

from data_prep import quality
from data_prep.clean import label, plan, report, stages
from data_prep.clean.settings import CleaningInput, CleanSettings
from megatron_qwen3 import tables
from tests import plain_quality, plain_text

WARM = (
    "The river rises in the hills of the north, where rain falls on most days of the year. For the "
    "first forty miles it runs through woods; below the mill it becomes wide and slow. An old law "
    "says how much water a farmer may take: two hours in the morning, and one in the evening."
)
PLAIN = ("domain", "normalize", "quality")  # steps that have a plain form


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--join", type=int, default=1, help="lines of a file in a document; 1")
    parser.add_argument("--cut", type=int, default=0, help="cut documents into so many characters")
    parser.add_argument("--mb", type=float, default=20, help="of text at most; default: 20")
    parser.add_argument("--language-sample", type=int, default=600, help="as of a recipe; 600")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "documents.jsonl"
        size, count = write(texts(given.files, given.join, given.cut), path, given.mb * 1e6)
        settings = CleanSettings(
            (CleaningInput("here", str(path)),),
            str(Path(folder) / "out"),
            language_sample=given.language_sample,
        )
        rows = [[name, *map(shown, seconds)] for name, seconds in measured(settings, size)]
    head = ["step", "MB/CPU s", "plainly written"]
    print(f"{count:,} documents, {size:.1f} MB, {size * 1e6 / count:,.0f} bytes each in the mean")
    tables.console().print(tables.table([head, *rows], words=("step",)))


def write(documents: Iterator[str], path: Path, most: float) -> tuple[float, int]:
    """Documents of at most `most` bytes of text; MB of text, and how many."""
    size = count = 0
    with path.open("w", encoding="utf-8") as out:
        for text in documents:
            size, count = size + len(text.encode()), count + 1
            out.write(json.dumps({"id": str(count), "text": text}, ensure_ascii=False) + "\n")
            if size > most:
                break
    return size / 1e6, count


def texts(files: list[Path], join: int, cut: int) -> Iterator[str]:
    """The documents of all files; of several lines, those that follow each other; or cut."""
    for file in files:
        waiting: list[str] = []
        with gzip.open(file, "rt") if file.suffix == ".gz" else file.open() as lines:
            for row in map(json.loads, lines):
                waiting.append(row["text"])
                if len(waiting) == join:
                    text = "\n".join(waiting)
                    size = cut or len(text) or 1
                    yield from (text[at : at + size] for at in range(0, len(text), size))
                    waiting.clear()


def measured(settings: CleanSettings, size: float) -> Iterator[tuple[str, list[float]]]:
    """Of steps, stages and all: MB per CPU second, and with the plain forms, where that differs."""
    with plain_forms():
        plain = first_stage(replace(settings, out=f"{settings.out}-plain"))
    seconds = first_stage(settings)
    for name, second in seconds.items():
        yield name, [size / second] + [size / plain[name]] * (name in PLAIN)
    total = sum(seconds.values())
    yield "first stage, all of it", [size / total, size / sum(plain.values())]
    for stage in stages_of(settings)[1:]:
        start = time.process_time()
        for task in range(stage.tasks):
            run(stage, task)
        second = time.process_time() - start
        total += second
        yield f"stage {stage.name}", [size / second]
    yield "the whole", [size / total]


def stages_of(settings: CleanSettings) -> list[stages.CleaningStage]:
    """Of a cleaning that has begun."""
    files = plan.find_files(settings)
    plan.begin(settings, files)
    return stages.stages(settings, plan.input_bytes(files))


def first_stage(settings: CleanSettings) -> dict[str, float]:
    """CPU seconds of each step, while documents go through all of them one by one."""
    steps = stages_of(settings)[0].pipeline
    for step in steps:
        if isinstance(step, label.EachDocument):
            list(step.run([document()]))
    report.picture({"rows": [["here", "eng_Latn", "kept", 1, 1]]})
    with_earlier = dict.fromkeys((step.name for step in steps), 0.0)
    data: Any = None
    for step in steps:
        data = watched(step.run(data, 0, 1), step.name, with_earlier)
    assert list(data) == []
    before = [0.0, *with_earlier.values()]
    return {name: second - before[k] for k, (name, second) in enumerate(with_earlier.items())}


def watched(made: Iterator[Any], name: str, seconds: dict[str, float]) -> Iterator[Any]:
    """The results of a step, counting its CPU seconds with those of the steps before it."""
    while True:
        start = time.process_time()
        found = next(made, None)
        seconds[name] += time.process_time() - start
        if found is None:
            return
        yield found


@contextmanager
def plain_forms() -> Iterator[None]:
    """Steps do their work as it is plainly written."""
    with (
        mock.patch.object(label, "normalize", plain_text.normalized),
        mock.patch.object(label, "domain_of", plain_text.domain_of),
        mock.patch.object(quality, "judge", lambda *given: plain_quality.judge(*given[:3])),
    ):
        yield


def document() -> Document:
    names = ("source", "language", "domain", "quality", "education", "file")
    return Document(WARM, "warm", metadata=dict.fromkeys(names))


def run(stage: stages.CleaningStage, task: int) -> None:
    data: Any = None
    for step in stage.pipeline:
        data = step(data, task, stage.tasks)
    list(data)


def shown(speed: float) -> str:
    return f"{speed:,.1f}"


if __name__ == "__main__":
    main()
