"""Tokenize dialogs into a set to train on: ids, and which of them the model has to learn to emit.

    mq3 data dialogs data/chat.jsonl --out runs/data/chat --tokenizer data/tokenizer
    mq3 data dialogs data/chat/ --out runs/data/chat --tokenizer data/tokenizer \\
        --train-on last --max-tokens 32768 --too-long cut --default source=web mode=non-thinking
    mq3 data dialogs pairs.jsonl.gz --out runs/data/pairs --kind pairs \\
        --tokenizer data/tokenizer

A dialog is a line of JSON with "messages" in OpenAI's form, and maybe "tools", "weight" (above 0),
"id", "source" and "mode". A pair has "messages" up to a query, "chosen" and "rejected", each a
text, a message or a list of messages, and maybe "margin".

The trained tokens are those that the model has to emit: of an answer all from the think block to
<|im_end|>. A new query drops the thinking of earlier answers from the text, so a dialog
of several queries becomes a sample for each (--train-on all), or for the last one. mode is
"thinking" or "non-thinking"; in the second the empty think block is part of the prompt, unless
/no_think asks the model for it; without a mode it is trained. Of a pair the place is marked from
which a reward is read, the last <|im_end|>.

PREFIX.json, written last, says that the set is whole. A line that cannot be trained on is counted
and stands, with file, line and reason, in PREFIX.problems.jsonl. The same files and choices give
the same bytes, with any number of workers; a run that was stopped goes on where it was when the
same command is run again.
"""

import time
from collections.abc import Sequence
from pathlib import Path

from data_prep.engines import AUTO, ENGINES
from megatron_qwen3 import tables
from megatron_qwen3.bar import duration
from megatron_qwen3.cli.ending import ending
from megatron_qwen3.cli.parser import Parser
from megatron_qwen3.cli.tokenize_corpus import pairs
from megatron_qwen3.config import ConfigError
from megatron_qwen3.cores import cores
from megatron_qwen3.posttrain.dialogs.dialog_set import KINDS
from megatron_qwen3.posttrain.dialogs.samples import TOO_LONG, TRAIN_ON, Choices
from megatron_qwen3.posttrain.dialogs.tokenizing import DialogOptions, DialogReport, tokenize
from megatron_qwen3.shown import plain, shown

DEFAULTED = ("source", "mode")
ROWS_SHOWN = 20


@ending(goes_on=True)
def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """The exit status: 0 done, 2 something is wrong, 130 or 143 stopped."""
    given = _parser(prog).parse_args(arguments)
    start = time.monotonic()
    choices = Choices(
        kind=given.kind,
        train_on=given.train_on,
        max_tokens=given.max_tokens,
        too_long=given.too_long,
        **_defaults(given.default),
    )
    options = DialogOptions(given.workers, given.engine, given.on_error == "stop")
    report = tokenize(given.inputs, given.out, given.tokenizer, choices, options)
    _print(report, given.out, given.kind)
    print(shown(f"{given.out}.json: done in {duration(time.monotonic() - start)}"))
    return 0


def _parser(prog: str | None) -> Parser:
    parser = Parser(prog=prog, description=__doc__)
    add = parser.add_argument
    add("inputs", nargs="+", type=Path, help="files or folders of JSON lines, also .gz and .zst")
    add("--out", type=Path, required=True, metavar="PREFIX", help="how the set's files begin")
    text = "of the tokenizer, its tokenizer.json, or its name on Hugging Face's hub"
    add("--tokenizer", required=True, metavar="FOLDER", help=text)
    add("--kind", choices=KINDS, default="dialogs", help="content of a line (dialogs)")
    add("--train-on", choices=TRAIN_ON, default="all", help="the answers to which queries (all)")
    add(
        "--max-tokens",
        type=int,
        metavar="N",
        help="of a sample; as data.sequence_length (no limit)",
    )
    add("--too-long", choices=TOO_LONG, default="drop", help="treatment of a longer one (drop)")
    add(
        "--default",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help=f"{' and '.join(DEFAULTED)} of lines that do not say",
    )
    add("--on-error", choices=("skip", "stop"), default="skip", help="at a bad line (skip)")
    text = "processes, of about 0.7 GB each (cores)"
    add("--workers", type=int, default=cores(), metavar="N", help=text)
    add("--engine", choices=(AUTO, *ENGINES), default=AUTO, help="all give the same ids")
    return parser


def _defaults(words: Sequence[str]) -> dict[str, str]:
    found = pairs(words, "--default")
    for name in found:
        if name not in DEFAULTED:
            valid = ", ".join(DEFAULTED)
            raise ConfigError(f"--default: {name} is unknown; valid: {valid}")
    return found


def _print(report: DialogReport, out: Path, kind: str) -> None:
    """Print the contents of the set, changes to lines, and lines left out."""
    rows = sorted(report.table, key=lambda row: -row[3])
    lines = [["source", "mode", "samples", "tokens", "trained tokens", "trained", "mean length"]]
    lines += [_cells(*row) for row in rows[:ROWS_SHOWN]]
    if len(rows) > ROWS_SHOWN:
        lines.append(_cells(f"{len(rows) - ROWS_SHOWN} more", "", *_sums(rows[ROWS_SHOWN:])))
    last = _cells("all", "", *_sums(rows))
    if kind == "pairs":  # which have no mode
        lines, last = [[row[0], *row[2:]] for row in lines], [last[0], *last[2:]]
    table = tables.table(lines, words=("source", "mode"))
    table.add_section()
    table.add_row(*map(plain, last))
    tables.console().print(table)
    for name, count in report.counts.most_common():
        print(shown(f"{count:>12,} {name}"))
    for name, count in report.problems.most_common():
        print(shown(f"{count:>12,} lines left out: {name}"))
    if report.problems:
        print(shown(f"left out of {report.lines:,} lines; see {out}.problems.jsonl"))


def _sums(rows: Sequence[tuple[str, str, int, int, int]]) -> tuple[int, int, int]:
    return (
        sum(row[2] for row in rows),
        sum(row[3] for row in rows),
        sum(row[4] for row in rows),
    )


def _cells(source: str, mode: str, samples: int, tokens: int, trained: int) -> list[str]:
    counts = [f"{samples:,}", f"{tokens:,}", f"{trained:,}"]
    return [source, mode, *counts, f"{trained / tokens:.0%}", f"{tokens / samples:,.0f}"]
