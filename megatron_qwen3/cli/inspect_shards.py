"""What a folder of shards holds, where a document came from, and whether all is as it was written.

    python tools/inspect_shards.py table data/tokens --by language length
    python tools/inspect_shards.py show data/tokens/source=web/…/00000-00000 17
    python tools/inspect_shards.py verify data/tokens

table adds up the inventory by one or more labels. show prints a document's input file, line and id,
and its text, from its tokens. verify reads every shard and compares it with its checksums.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from data_prep.indexed import IndexedReader
from data_prep.labels import Labels
from data_prep.shards import Shard, faults, folder_of, origin, read_inventory
from data_prep.tokenizer import load
from megatron_qwen3 import tables
from megatron_qwen3.cli.parser import Parser
from megatron_qwen3.config import ConfigError
from megatron_qwen3.shown import plain, shown, shown_lines, shown_text

ROWS_SHOWN = 200


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """The exit status: 0 all is well, 1 a shard is not what was written, 2 a wrong file or name."""
    given = _parser(prog).parse_args(arguments)
    try:
        status: int = given.run(given)
        return status
    except (ConfigError, OSError) as error:
        print(shown_lines(f"error: {error}"), file=sys.stderr)
        return 2


def _parser(prog: str | None) -> Parser:
    parser = Parser(prog=prog, description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    text: dict[str, Any] = {"description": __doc__}
    table = commands.add_parser("table", help="the inventory, added up by labels", **text)
    table.add_argument("folder", type=Path)
    table.add_argument(
        "--by",
        nargs="+",
        choices=Labels._fields,
        metavar="LABEL",
        default=["source", "language"],
        help=f"of {', '.join(Labels._fields)}; default: source language",
    )
    table.set_defaults(run=_table)
    show = commands.add_parser("show", help="a document: where it came from, and its text", **text)
    show.add_argument("prefix", type=Path, help="a shard, without .bin or .idx")
    show.add_argument("document", type=int, help="its number there, from 0")
    show.set_defaults(run=_show)
    verify = commands.add_parser("verify", help="compare all shards with their checksums", **text)
    verify.add_argument("folder", type=Path)
    verify.set_defaults(run=_verify)
    return parser


def _table(given: argparse.Namespace) -> int:
    print_table(read_inventory(given.folder).shards, given.by, ROWS_SHOWN)
    return 0


def _show(given: argparse.Namespace) -> int:
    place = origin(given.prefix, given.document)
    reader = IndexedReader(given.prefix)
    start, end = reader.document_offsets[given.document : given.document + 2]
    tokenizer = load(folder_of(given.prefix) / "tokenizer")
    text = tokenizer.decode(reader.tokens[start : end - 1].tolist(), skip_special_tokens=False)
    name = place.id or "(none)"
    print(shown(f"{place.file}:{place.line}  id {name}  {end - start:,} tokens"))
    print(f"\n{shown_text(text)}")
    return 0


def _verify(given: argparse.Namespace) -> int:
    inventory, wrong = read_inventory(given.folder), 0
    for shard in inventory.shards:
        for fault in faults(inventory.folder, shard):
            print(shown(fault))
            wrong += 1
    print(f"{len(inventory.shards):,} shards, {wrong:,} faults")
    return 1 if wrong else 0


def print_table(shards: Iterable[Shard], by: Sequence[str], most: int) -> None:
    """Documents, text and tokens by some labels, the largest first, `most` rows of them."""
    groups: dict[tuple[str, ...], Counter[str]] = {}
    for shard in shards:
        row = groups.setdefault(tuple(getattr(shard.labels, name) for name in by), Counter())
        row.update(documents=shard.documents, tokens=shard.tokens, bytes=shard.bytes, shards=1)
    rows = sorted(groups.items(), key=lambda item: -item[1]["tokens"])
    lines = [[*by, "documents", "MB of text", "tokens", "bytes/token", "shards"]]
    lines += [[*labels, *_cells(row)] for labels, row in rows[:most]]
    empty = [""] * (len(by) - 1)
    if len(rows) > most:
        hidden = _sum(row for _, row in rows[most:])
        lines.append([f"{len(rows) - most} more", *empty, *_cells(hidden)])
    table = tables.table(lines, words=by)
    table.add_section()
    table.add_row(*map(plain, ["all", *empty, *_cells(_sum(groups.values()))]))
    tables.console().print(table)


def _sum(rows: Iterable[Counter[str]]) -> Counter[str]:
    total = Counter[str]()
    for row in rows:
        total.update(row)
    return total


def _cells(row: Counter[str]) -> list[str]:
    return [
        f"{row['documents']:,}",
        f"{row['bytes'] / 1e6:,.1f}",
        f"{row['tokens']:,}",
        f"{row['bytes'] / row['tokens']:.2f}" if row["tokens"] else "–",
        f"{row['shards']:,}",
    ]
