"""A training in one page: python tools/report.py RUN_DIR [RUN_DIR …]

Reads metrics.jsonl of one or more runs, the stages of one training in order, prints how each went,
and writes a web page that needs no other file, with the pictures beside it as PNG. Runs that are
still under way may be read at any time.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_qwen3.cli.parser import Parser
from megatron_qwen3.pages.training import stage_rows, write_report
from megatron_qwen3.shown import shown, shown_lines
from megatron_qwen3.tables import console, table
from megatron_qwen3.training.history import Run
from megatron_qwen3.training.metrics_file import MetricsError

_EXAMPLES = """examples:
  python tools/report.py runs/tiny-dense/pretrain_1_general
  python tools/report.py runs/8b/pretrain_1_general runs/8b/pretrain_2_reasoning --out 8b.html
"""


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """The command line; the exit status."""
    parser = Parser(
        prog=prog,
        description="Print how the stages of a training went and write a page about it.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN_DIR", help="run folders, in order")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("report.html"),
        help="page to write; its pictures go to the folder of the same name (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    if options.out.suffix != ".html":
        parser.error(f"--out {options.out}: the name of a page ends in .html")
    try:
        runs = [Run.read(folder) for folder in options.runs]
        console().print(table(stage_rows(runs)))
        write_report(runs, options.out)
    except (MetricsError, OSError) as error:
        print(shown_lines(f"report: {error}"), file=sys.stderr)
        return 1
    print(shown(f"wrote {options.out}, pictures in {options.out.with_suffix('')}"))
    return 0
