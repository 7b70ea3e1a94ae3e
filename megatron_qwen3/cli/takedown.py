"""The commands of inspect_shards that find documents and take them out: `find` and `remove`."""

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from data_prep.finding import DocumentQuery, FoundDocument, as_text, find, paths_of
from data_prep.in_use import mapping
from data_prep.indexed import IndexedReader
from data_prep.inventory import read_inventory
from data_prep.removal import INTERRUPTED, Removal, is_interrupted, removed_from, removing
from megatron_qwen3.bar import duration
from megatron_qwen3.config import ConfigError
from megatron_qwen3.cores import cores
from megatron_qwen3.pretrain.times_read import Ranges, Reader, readers
from megatron_qwen3.shown import counted, shown

MOST, LISTED = 100, 20


def add_commands(commands: Any, text: dict[str, Any]) -> None:
    """Add both to the parser of inspect_shards; text: description of all its commands."""
    finding = commands.add_parser("find", help="documents by url, id or any kept field", **text)
    finding.set_defaults(run=_find)
    _add_query(finding)
    finding.add_argument("--json", action="store_true", help="print a JSON object a line")
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
    remove.add_argument("--json", action="store_true", help="print one JSON object")
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
    if is_interrupted(given.folder):
        print(shown(INTERRUPTED), file=sys.stderr)
    tally = _Tally(given)
    for one, removal in tally.found():
        if given.json:
            print(json.dumps(_as_json(one) | {"removed": removal}))
        else:
            print(shown(_line(one) + (_told(removal) if removal else "")))
    if not given.json:
        print(shown(tally.told()))
    return 0 if tally.documents else 1


class _Tally:
    """Goes through what a search finds, document by document, and counts it."""

    def __init__(self, given: argparse.Namespace) -> None:
        if given.workers is not None and given.workers < 1:
            raise ConfigError(f"--workers = {given.workers}; valid: 1 or more")
        self._query, self._workers = _query(given), given.workers or cores()
        self._inventory, self._start = read_inventory(given.folder), time.monotonic()
        self.documents, self.shards = 0, 0

    def found(self) -> Iterator[tuple[FoundDocument, dict[str, Any] | None]]:
        """Each document, and when and why it was removed, if it was."""
        all_found = find(self._inventory, self._query, self._workers)
        for path, some in groupby(all_found, lambda one: one.path):
            self.shards += 1
            gone = removed_from(self._inventory.folder / path)
            for one in some:
                self.documents += 1
                yield one, gone.get(one.document)

    def told(self) -> str:
        told = f"{counted(self.documents, 'document')} in {counted(self.shards, 'shard')}"
        of = len(paths_of(self._inventory))
        return f"{told} of {of:,}, in {duration(time.monotonic() - self._start)}"


def _remove(given: argparse.Namespace) -> int:
    """A dry run takes no lock and writes nothing."""
    if given.dry_run:
        return _take(given, Removal.of(given.folder))
    with removing(given.folder) as removal:
        return _take(given, removal)


def _take(given: argparse.Namespace, removal: Removal) -> int:
    say = _silent if given.json else _say
    _end_interrupted(given, removal, say)
    tally = _Tally(given)
    todo, before = _picked(given, tally)
    say(tally.told())
    for one in todo[:LISTED]:
        say(_line(one))
    if (count := tally.documents - before) > LISTED:
        say(f"… and {count - LISTED:,} more")
    if before:
        say(f"{counted(before, 'document')} removed before")
    if count > given.most:
        raise ConfigError(
            f"{count:,} documents match, --most = {given.most:,}: nothing was removed; "
            f"--most {count} removes them"
        )
    ranges, used = _ranges(given.folder, _by_path(todo)), []
    if todo:
        used = _check_unused(given, ranges, say)
        if not given.dry_run:
            removal.take(_by_path(todo), given.reason)
        say(_outcome(given, count, ranges))
    if given.json:
        told = {"documents": [_as_json(one) for one in todo], "removed_before": before}
        numbers = {"shards": len(ranges), "tokens": _tokens(ranges), "dry_run": given.dry_run}
        of_runs = [vars(reader) | {"path": str(reader.path)} for reader in used]
        print(json.dumps(told | numbers | {"readers": of_runs}))
    return 0 if tally.documents else 1


def _say(text: str) -> None:
    print(shown(text))


def _silent(_: str) -> None:
    """JSON is all that is printed."""


def _end_interrupted(
    given: argparse.Namespace, removal: Removal, say: Callable[[str], None]
) -> None:
    """What was begun before comes first, unless somebody reads those shards."""
    if pending := removal.pending():
        of = counted(sum(map(len, pending.values())), "document")
        say(f"a removal of {of} was interrupted: it {'would be' if given.dry_run else 'is'} ended")
        _check_unused(given, _ranges(given.folder, pending), say)
    if not given.dry_run:
        removal.end()


def _picked(given: argparse.Namespace, tally: _Tally) -> tuple[list[FoundDocument], int]:
    """What is to be removed, as far as one run may, and how many documents were before."""
    todo, before = [], 0
    for one, removed in tally.found():
        before += bool(removed)
        if not removed and len(todo) < max(given.most, LISTED):
            todo.append(one)
    return todo, before


def _outcome(given: argparse.Namespace, count: int, ranges: Ranges) -> str:
    of = f"{counted(count, 'document')}, {_tokens(ranges):,} tokens"
    if given.dry_run:
        return f"--dry-run: {of} would be removed"
    return (
        f"removed {of}, from {counted(len(ranges), 'shard')}; their text still stands in the "
        "inputs named above, in the sources of these, and in copies of the shards"
    )


def _check_unused(
    given: argparse.Namespace, ranges: Ranges, say: Callable[[str], None]
) -> list[Reader]:
    """The readers of the documents. ConfigError where a run or process reads their shards now."""
    for process in mapping([f"{prefix}.bin" for prefix in ranges]):
        raise ConfigError(
            f"process {process.number} ({process.command[:80]}) reads {process.path}; "
            "nothing was removed: let it end, or stop it"
        )
    found = list(readers(given.runs, ranges))
    for reader in found:
        say(_read_by(reader))
    if active := [reader for reader in found if reader.at_work]:
        raise ConfigError(
            f"{active[0].path} is at work ({active[0].at_work}) and reads these shards; "
            "nothing was removed: let it end, or stop it"
        )
    if not given.runs:
        say("no run or curriculum was named (--runs): their readers are not known")
    elif not found:
        say(f"no run or curriculum below {', '.join(map(str, given.runs))} reads these shards")
    return found


def _by_path(found: Iterable[FoundDocument]) -> dict[str, list[int]]:
    documents: dict[str, list[int]] = defaultdict(list)
    for one in found:
        documents[one.path].append(one.document)
    return documents


def _ranges(folder: Path, documents: Mapping[str, Sequence[int]]) -> Ranges:
    """By prefix of a shard: the tokens of its documents."""
    found = {}
    for path, numbers in documents.items():
        starts = IndexedReader(folder / path).document_offsets
        found[str(folder / path)] = [(int(starts[n]), int(starts[n + 1])) for n in numbers]
    return found


def _tokens(ranges: Ranges) -> int:
    return sum(last - first for some in ranges.values() for first, last in some)


def _read_by(reader: Reader) -> str:
    times = f"{reader.least} to {reader.most} times" if reader.least < reader.most else ""
    often = times or ("once" if reader.most == 1 else f"{reader.most} times")
    return f"{reader.path}: {reader.what}: {reader.verb} them {often}"


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
