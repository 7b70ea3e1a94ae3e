"""Turns crawled pages (WARC) into documents for a cleaning: JSON lines with text, id, url and date.

    python -m pip install -e '.[data,warc]'
    python examples/data/read_warc.py crawl/ --out data/crawl --tasks 64 --workers 8
    mq3 data clean run --out data/clean web=data/crawl

datatrove reads the archives (also of s3://… with s3fs), trafilatura finds the text of each page:
menus, headers and comments go. A page that takes over --seconds is left out. A task reads whole
files; one that is done is not done again, so the same command goes on.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # runs from a plain checkout

from megatron_qwen3.shown import shown_lines

_NEEDED = ("trafilatura", "warcio", "cchardet", "magic")


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0 done, 2 a package is missing or a folder is none."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="of .warc, .warc.gz; or a URL that fsspec knows")
    parser.add_argument("--out", type=Path, required=True, help="folder of the documents")
    parser.add_argument("--tasks", type=int, default=1, help="parts, of whole files; default: 1")
    parser.add_argument("--workers", type=int, default=1, help="processes; default: 1")
    parser.add_argument("--seconds", type=float, default=5, help="for a page at most; default: 5")
    given = parser.parse_args(arguments)
    try:
        missing = [name for name in _NEEDED if not _is_here(name)]
        if missing:
            raise ImportError(f"{', '.join(missing)} cannot be imported")
        _run(given)
    except (ImportError, OSError, ValueError) as error:
        told = f"error: {error}; packages: python -m pip install -e '.[data,warc]'"
        print(shown_lines(told), file=sys.stderr)
        return 2
    return 0


def _run(given: argparse.Namespace) -> None:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.extractors import Trafilatura
    from datatrove.pipeline.readers import WarcReader
    from datatrove.pipeline.writers import JsonlWriter

    steps: list[Any] = [
        WarcReader(given.folder, glob_pattern="*.warc*"),
        Trafilatura(favour_precision=True, timeout=given.seconds, deduplicate=False),
        JsonlWriter(str(given.out), expand_metadata=True),
    ]
    LocalPipelineExecutor(
        pipeline=steps,
        tasks=given.tasks,
        workers=given.workers,
        logging_dir=str(given.out.with_name(f"{given.out.name}_logs")),
        skip_completed=True,
    ).run()


def _is_here(name: str) -> bool:
    try:
        __import__(name)
    except ImportError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
