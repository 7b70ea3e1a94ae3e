"""The commands of inspect_shards that find documents and take them out: `find` and `remove`."""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_prep.finding import DocumentQuery, FoundDocument, as_text, find, paths_of
from data_prep.in_use import mapping
from data_prep.indexed import IndexedReader
from data_prep.inventory import Inventory, read_inventory
from data_prep.removal import is_interrupted, removed_from, removing
from megatron_qwen3.bar import duration
from megatron_qwen3.config import ConfigError
from megatron_qwen3.cores import cores
from megatron_qwen3.pretrain.times_read import Reader, readers
from megatron_qwen3.shown import counted, shown

MOST, LISTED = 100, 20


def add_commands(commands: Any, text: dict[str, Any]) -> None:
    """Add both to the parser of inspect_shards; text: description of all its commands."""
    finding = commands.add_parser("find", help="documents by url, id or any kept field", **text)
    finding.set_defaults(run=_find)
    _add_query(finding)
    finding.add_argument("--json", action="store_true", help="one object a line")
    remove = commands.add_parser("remove", help="take documents out of their shards", **text)
    remove.set_defaults(run=_remove)
    _add_query(remove)
    remove.add_argument("--reason", required=True, metavar="TEXT", help="kept with the shard")
    remove.add_argument(
        "--runs",
        nargs="+",
        type=Path,
        default=[],
        metavar="PATH",
        help="runs, curricula, or folders of them: those that read the documents are named",
    )
    remove.add_argument("--dry-run", action="store_true", help="list the documents, change nothing")
    remove.add_argument(
        "--most", type=int, default=MOST, metavar="N", help=f"documents at once; default: {MOST}"
    )


def _add_query(command: argparse.ArgumentParser) -> None:
    command.add_argument("folder", type=Path, help="of shards")
    command.add_argument("values", nargs="*", metavar="VALUE", help="value to look for")
    kept: dict[str, Any] = {"dest": "field", "default": "", "metavar": "NAME"}
    command.add_argument("--kept-field", "--field", help="url, id, …; default: any", **kept)
    command.add_argument("--contains", action="store_true", help="VALUE is a part of it")
    command.add_argument("--values", type=Path, metavar="FILE", dest="list", help="one a line")
    command.add_argument(
        "--line", nargs=2, metavar=("INPUT", "LINE"), help="of an input, as `show` prints it"
    )
    command.add_argument("--workers", type=int, metavar="N", help="processes; default: cores")


def _find(given: argparse.Namespace) -> int:
    inventory, found = _search(given)
    if is_interrupted(given.folder):
        print("a removal of documents is at work or was interrupted: the next `remove` ends it")
    gone = {path: removed_from(given.folder / path) for path in {one.path for one in found}}
    for one in found:
        removal = gone[one.path].get(one.document)
        if given.json:
            print(json.dumps(_as_json(one) | {"removed": removal}))
        else:
            print(shown(_line(one) + (_told(removal) if removal else "")))
    return 0 if found else 1


def _remove(given: argparse.Namespace) -> int:
    with removing(given.folder) as removal:
        _, found = _search(given)
        gone = {path: removed_from(given.folder / path) for path in {one.path for one in found}}
        todo = [one for one in found if one.document not in gone[one.path]]
        for one in todo[:LISTED]:
            print(shown(_line(one)))
        if len(todo) > LISTED:
            print(f"… and {len(todo) - LISTED:,} more")
        if len(found) > len(todo):
            print(shown(f"{counted(len(found) - len(todo), 'document')} removed before"))
        if not todo:
            return 0 if found else 1
        documents: dict[str, list[int]] = defaultdict(list)
        for one in todo:
            documents[one.path].append(one.document)
        if len(todo) > given.most:
            raise ConfigError(
                f"{len(todo):,} documents match, --most = {given.most:,}: nothing was removed; "
                f"--most {len(todo)} removes them"
            )
        _check_unused(given, documents)
        if given.dry_run:
            print(shown(f"--dry-run: {counted(len(todo), 'document')} would be removed"))
            return 0
        tokens = removal.take(documents, given.reason)
    taken = f"{counted(len(todo), 'document')}, {tokens:,} tokens, from"
    print(
        shown(
            f"removed {taken} {counted(len(documents), 'shard')}; their text still stands in the "
            "inputs named above, in the sources of these, and in copies of the shards"
        )
    )
    return 0


def _check_unused(given: argparse.Namespace, documents: dict[str, list[int]]) -> None:
    """Print who read the documents. ConfigError where a run or process reads their shards now."""
    files = [f"{given.folder / path}.bin" for path in documents]
    for process in mapping(files):
        raise ConfigError(
            f"process {process.number} ({process.command[:80]}) reads {process.path}; "
            "nothing was removed: let it end, or stop it"
        )
    ranges = {
        str(given.folder / path): _ranges(given.folder / path, numbers)
        for path, numbers in documents.items()
    }
    found = list(readers(given.runs, ranges))
    for reader in found:
        print(shown(_read_by(reader)))
    if active := [reader for reader in found if reader.at_work]:
        raise ConfigError(
            f"{active[0].path} is at work ({active[0].at_work}) and reads these shards; "
            "nothing was removed: let it end, or stop it"
        )
    if not given.runs:
        print("no run or curriculum was named (--runs): their readers are not known")
    elif not found:
        below = ", ".join(map(str, given.runs))
        print(shown(f"no run or curriculum below {below} reads these shards"))


def _ranges(prefix: Path, numbers: Sequence[int]) -> list[tuple[int, int]]:
    starts = IndexedReader(prefix).document_offsets
    return [(int(starts[n]), int(starts[n + 1])) for n in numbers]


def _read_by(reader: Reader) -> str:
    times = f"{reader.least} to {reader.most} times" if reader.least < reader.most else ""
    often = times or ("once" if reader.most == 1 else f"{reader.most} times")
    return f"{reader.path}: {reader.what}: {reader.verb} them {often}"


def _search(given: argparse.Namespace) -> tuple[Inventory, list[FoundDocument]]:
    inventory = read_inventory(given.folder)
    query = _query(given)
    if given.workers is not None and given.workers < 1:
        raise ConfigError(f"--workers = {given.workers}; valid: 1 or more")
    start = time.monotonic()
    found = list(find(inventory, query, given.workers or cores()))
    shards = len({one.path for one in found})
    if not getattr(given, "json", False):
        told = f"{counted(len(found), 'document')} in {counted(shards, 'shard')}"
        took = duration(time.monotonic() - start)
        print(shown(f"{told} of {len(paths_of(inventory)):,}, in {took}"))
    return inventory, found


def _query(given: argparse.Namespace) -> DocumentQuery:
    values = set(given.values)
    if given.list:
        try:
            lines = given.list.read_text(encoding="utf-8").splitlines()
        except UnicodeError as error:
            raise ConfigError(f"{given.list} is not UTF-8: {error}") from None
        values |= {line for line in map(str.strip, lines) if line}
    if not given.line:
        return DocumentQuery(frozenset(values), given.field, given.contains)
    name, number = given.line
    if values or given.field or given.contains:
        raise ConfigError(
            "--line names a document by itself: leave out values, --field, --contains"
        )
    if not number.isdecimal():
        raise ConfigError(f"--line {name} {number}: the line is a number, from 1")
    return DocumentQuery(line=(name, int(number)))


def _line(one: FoundDocument) -> str:
    place = one.origin
    parts = [f"{one.path} {one.document}", f"{place.file}:{place.line}", f"id {place.id or '–'}"]
    parts += [f"{name} {as_text(value)}" for name, value in place.fields.items()]
    return "  ".join(parts)


def _as_json(one: FoundDocument) -> dict[str, Any]:
    place = one.origin
    where = {"shard": one.path, "document": one.document, "file": place.file, "line": place.line}
    return where | {"id": place.id, "fields": dict(place.fields)}


def _told(removal: dict[str, Any]) -> str:
    return f"  removed {removal['date']}: {removal['reason']}"
