"""List the contents of a folder of shards, trace a document's origin, and verify checksums.

    mq3 data inspect table data/tokens --by language length
    mq3 data inspect show data/tokens/shards/00000/00000 17
    mq3 data inspect verify data/tokens
    mq3 data inspect show data/post/chat 17 --tokenizer data/tokenizer

table adds up the inventory by one or more labels; a cell is a stretch of a shard whose documents
have the same labels. show prints a document's input file, line and id,
and its text, from its tokens; of a set of dialogs a sample, in which ⟦ and ⟧ enclose the
trained part. verify reads every shard, or the files of a set, and compares them with their
checksums.

    mq3 data inspect find data/tokens https://example.org/page --field url
    mq3 data inspect remove data/tokens https://example.org/page --field url \\
        --reason "asked for by the author" --runs runs
    mq3 data inspect remove data/tokens --values urls.txt --field url \\
        --reason "request 12" --dry-run --json

find reads the provenance of all shards. remove writes end-of-text over the documents that it finds:
lengths, places and so all runs stay, and no run trains on them any more. It names the runs and
curricula below --runs that have read them, and refuses while one of them, or a process of this
machine, reads their shards. Killed, it goes on with the next `remove`. --dry-run writes nothing;
--json prints the removed documents as one object, and those of find as one a line.
"""

import argparse
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from data_prep.fingerprint import file_sha256
from data_prep.indexed import IndexedReader
from data_prep.inventory import Inventory, read_inventory, totals
from data_prep.labels import Labels
from data_prep.removal import INTERRUPTED, is_interrupted, removed_from
from data_prep.shards import faults, folder_of, origin
from data_prep.tokenizer import load
from data_prep.tokenizer_file import tokenizer_json
from megatron_qwen3 import tables
from megatron_qwen3.cli import takedown
from megatron_qwen3.cli.ending import ending
from megatron_qwen3.cli.parser import Parser
from megatron_qwen3.config import ConfigError
from megatron_qwen3.posttrain.dialogs.dialog_set import MODES, DialogSet
from megatron_qwen3.shown import as_json, counted, plain, shown, shown_text

ROWS_SHOWN = 200


@ending()
def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """The exit status: 0 all is well, 1 a shard differs from its checksums, 2 a wrong file or
    name."""
    given = _parser(prog).parse_args(arguments)
    return int(given.run(given))


def _parser(prog: str | None) -> Parser:
    parser = Parser("table", prog=prog, description=__doc__)
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
    show.add_argument("prefix", type=Path, help="a shard or set, without .bin or .idx")
    show.add_argument("document", type=int, help="its number there, from 0")
    show.add_argument(
        "--tokenizer", metavar="FOLDER", help="of a set of dialogs: its folder or tokenizer.json"
    )
    show.set_defaults(run=_show)
    verify = commands.add_parser("verify", help="compare all shards with their checksums", **text)
    verify.add_argument("folder", type=Path, help="of shards; or a set, without .bin or .idx")
    verify.set_defaults(run=_verify)
    for command in (table, show, verify):
        command.add_argument("--json", action="store_true", help="print JSON instead of text")
    takedown.add_commands(commands, text)
    return parser


def _print_json(content: Any) -> None:
    print(as_json(content))


def _table(given: argparse.Namespace) -> int:
    if given.json:
        groups = totals(read_inventory(given.folder), given.by)
        rows = [
            dict(zip(given.by, labels, strict=True)) | dict(row) for labels, row in groups.items()
        ]
        _print_json(sorted(rows, key=lambda row: -row["tokens"]))
        return 0
    print_table(read_inventory(given.folder), given.by, ROWS_SHOWN)
    return 0


def _show(given: argparse.Namespace) -> int:
    if _is_dialogs(given.prefix):
        return _show_sample(given)
    place = origin(given.prefix, given.document)
    reader = IndexedReader(given.prefix)
    start, end = reader.document_offsets[given.document : given.document + 2]
    if not place.line:
        if given.json:
            _print_json({"filler": True, "tokens": int(end - start)})
            return 0
        print(f"filler at the end of a row, never trained on  {end - start:,} tokens")
        return 0
    tokenizer = load(folder_of(given.prefix) / "tokenizer")
    ids = reader.tokens[start:end].tolist()
    if ids[-1] == read_inventory(folder_of(given.prefix)).tokenizer["end_of_document"]:
        ids.pop()  # of a document that was cut its first rows do not end with it
    text = tokenizer.decode(ids, skip_special_tokens=False)
    removal = removed_from(given.prefix).get(given.document)
    if given.json:
        about = {"file": place.file, "line": place.line, "id": place.id, "fields": place.fields}
        shown_of = {"removed": removal} if removal else {"text": text}
        _print_json(about | {"tokens": int(end - start)} | shown_of)
        return 0
    name = place.id or "(none)"
    print(shown(f"{place.file}:{place.line}  id {name}  {end - start:,} tokens"))
    for field, value in place.fields.items():
        print(shown(f"{field}: {value}"))
    if removal:
        print(shown(f"removed {removal['date']}: {removal['reason']}"))
        return 0
    print(f"\n{shown_text(text)}")
    return 0


def _is_dialogs(prefix: Path) -> bool:
    return Path(f"{prefix}.samples.npy").exists()


def _show_sample(given: argparse.Namespace) -> int:
    dialogs, n = DialogSet(given.prefix), given.document
    if not 0 <= n < len(dialogs):
        raise ConfigError(f"{given.prefix} has samples 0 to {len(dialogs) - 1}, not {n}")
    if given.tokenizer is None:
        raise ConfigError(f"{given.prefix} is a set of dialogs: --tokenizer names its tokenizer")
    digest = file_sha256(str(tokenizer_json(given.tokenizer)))
    if digest != dialogs.tokenizer:
        raise ConfigError(
            f"{given.tokenizer} is not the tokenizer of {given.prefix}: its sha256 is {digest}, "
            f"not {dialogs.tokenizer}"
        )
    file, line = dialogs.origin(n)
    ids, trained = dialogs.read(n)
    source, mode = dialogs.sources[dialogs.sources_N[n]], MODES[dialogs.modes_N[n]]
    text = _marked(load(given.tokenizer), ids, trained)
    if given.json:
        about = {"file": file, "line": line, "source": source, "mode": mode}
        numbers = {"tokens": len(ids), "trained": int(np.count_nonzero(trained))}
        _print_json(about | numbers | {"weight": float(dialogs.weights_N[n]), "text": text})
        return 0
    counts = f"{len(ids):,} tokens, {np.count_nonzero(trained):,} of them trained"
    print(shown(f"{file}:{line}  {source}, {mode}, weight {dialogs.weights_N[n]:g}  {counts}"))
    print(f"\n{shown_text(text)}")
    return 0


def _marked(tokenizer: tokenizers.Tokenizer, ids: Any, trained: Any) -> str:
    """The text of a sample, with its trained parts between ⟦ and ⟧."""
    borders = [0, *(np.flatnonzero(np.diff(trained)) + 1).tolist(), len(ids)]
    runs = [(ids[a:b].tolist(), trained[a]) for a, b in pairwise(borders)]
    texts = [(tokenizer.decode(run, skip_special_tokens=False), learnt) for run, learnt in runs]
    return "".join(f"⟦{text}⟧" if learnt else text for text, learnt in texts)


def _verify(given: argparse.Namespace) -> int:
    is_set = _is_dialogs(given.folder)
    unit, of_each = ("set", _faults_of_set) if is_set else ("shard", _faults_of_shards)
    count, wrong = 0, []
    for found in of_each(given.folder):
        count += 1
        for fault in found:
            wrong.append(fault)
            if not given.json:
                print(shown(fault))
    if given.json:
        _print_json({f"{unit}s": count, "faults": wrong})
    else:
        print(shown(f"{counted(count, unit)}, {counted(len(wrong), 'fault')}"))
    return 1 if wrong else 0


def _faults_of_set(prefix: Path) -> Iterator[Iterable[str]]:
    yield DialogSet(prefix).faults()


def _faults_of_shards(folder: Path) -> Iterator[Iterable[str]]:
    """Of each shard in turn; of cells no more than its own are held."""
    inventory = read_inventory(folder)
    interrupted = [INTERRUPTED] if is_interrupted(inventory.folder) else []
    for _, cells in groupby(inventory.cells, lambda cell: cell.path):
        yield chain(interrupted, faults(inventory.folder, list(cells)))
        interrupted = []


def print_table(inventory: Inventory, by: Sequence[str], most: int) -> None:
    """Documents, text and tokens by some labels, the largest first, `most` rows of them."""
    groups = totals(inventory, by)
    rows = sorted(groups.items(), key=lambda item: -item[1]["tokens"])
    header = [*by, "documents", "MB of text", "tokens", "bytes/token", "cells"]
    lines = [[*header, "filler"] if _sum(groups.values())["packed"] else header]
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
    text = row["tokens"] - row["filler"]
    cells = [
        f"{row['documents']:,}",
        f"{row['bytes'] / 1e6:,.1f}",
        f"{row['tokens']:,}",
        f"{row['bytes'] / text:.2f}" if text else "–",
        f"{row['cells']:,}",
    ]
    return [*cells, f"{100 * row['filler'] / row['tokens']:.2g} %"] if row["packed"] else cells
