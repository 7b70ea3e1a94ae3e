"""The claims of Qwen3's report, reproduced with tiny models on this machine, as a page.

    python -m examples.reproduce                       # one seed
    python -m examples.reproduce --seeds 3             # three seeds, the numbers of the README
    python -m examples.reproduce --size quick --parts general_1

What is done is not done again: a stopped run goes on by the same command. --parts runs some parts
and those that they need. The page is OUT/report.html, its numbers OUT/report.json.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from examples.reproduce.claims import CLAIMS, page
from examples.reproduce.parts import parts
from examples.reproduce.plan import SIZES
from examples.reproduce.running import Part, done, run
from megatron_qwen3.cli.ending import ending
from megatron_qwen3.config import ConfigError
from megatron_qwen3.pages import pictures
from megatron_qwen3.shown import shown
from megatron_qwen3.storage.lock import owned

ROOT = Path(__file__).resolve().parents[2]


@ending(goes_on=True)
def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0 all parts are done, 1 some failed, 2 something that was given is wrong."""
    given = _parser().parse_args(arguments)
    os.chdir(ROOT)  # commands name the stage files of this checkout
    out = given.out or Path("runs/reproduce") / given.size
    seeds = range(1, given.seeds + 1)
    every = parts(SIZES[given.size], out, seeds)
    asked = _asked(every, given.parts)
    out.mkdir(parents=True, exist_ok=True)
    with owned(out, "reproduce.lock"):
        failed = run(asked, out, given.at_once, lambda line: print(shown(line), flush=True))
        tell(out, list(seeds), _notes(out, every), given.size)
    print(shown(f"{out}/report.html"))
    return 1 if failed else 0


def tell(out: Path, seeds: Sequence[int], notes: dict[str, Any], size: str) -> None:
    """Write the page of what is there: a claim of which a seed lacks a part is not measured."""
    folders = {seed: out / f"seed_{seed}" for seed in seeds}
    with pictures.style():
        found = [(claim, claim.found(folders, notes)) for claim in CLAIMS]
    page.write(found, notes, size, out)


def _notes(out: Path, every: Sequence[Part]) -> dict[str, Any]:
    """Of the parts that are done, also before; not of those that other commands made."""
    notes = {}
    for part in every:
        with suppress(ConfigError):
            notes[part.name] = done(out, part)
    return {name: note for name, note in notes.items() if note}


def _asked(every: Sequence[Part], names: Sequence[str]) -> list[Part]:
    """The named parts and those that they need; all where none is named."""
    by_name = {part.name: part for part in every}
    if unknown := [name for name in names if name not in by_name]:
        raise ConfigError(f"--parts {unknown[0]}: no part; valid: {', '.join(by_name)}")
    wanted = set(names or by_name)
    for part in reversed(every):
        if part.name in wanted:
            wanted |= set(part.needs)
    return [part for part in every if part.name in wanted]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m examples.reproduce",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    add = parser.add_argument
    add("--size", choices=SIZES, default="full", help="how long runs are (full)")
    add("--seeds", type=_positive, default=1, metavar="N", help="of all that is drawn (1)")
    add("--parts", nargs="+", default=[], metavar="PART", help="these and what they need (all)")
    add("--at-once", type=_positive, default=2, metavar="N", help="parts beside each other (2)")
    add("--out", type=Path, metavar="FOLDER", help="of all results (runs/reproduce/SIZE)")
    return parser


def _positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; valid: whole numbers from 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
