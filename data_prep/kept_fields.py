"""Keeps fields of documents besides their text and labels: url, date, licence, any that are short.

It stays with the document through cleaning and into the shards' provenance, so that a document can
be found by it and taken down.

    fields = KeptFields((ALL,), names)              # names: of text, id and labels in the file
    fields.of_line(b'{"text": "…", "url": "https://a.b/c"}')      # {"url": "https://a.b/c"}
    note("7", {"url": "https://a.b/c"}); parted(b'7\\xff{"url":"https://a.b/c"}')

Kept are single values: text, numbers, true and false; dates of tables in ISO 8601. Objects, lists
and values that are null, empty or not a number are passed over, and so are those that would bring a
document's fields over LARGEST_BYTES; url, date and licence come first. Nothing here is an error: a
fault of a field costs that field alone.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any

import msgspec

from data_prep.labels import LABEL_FIELDS
from data_prep.noted import BORDER, Scalar

ALL, NONE = "all", "none"
LARGEST_BYTES = 4096  # of a document's fields as JSON
FIRST = ("url", "date", "license", "licence")
_ESCAPED_BYTES = 6  # that a character takes in JSON at most
_NESTED = (ord("{"), ord("["), ord("n"))  # how an object, a list and null begin
_WHOLE = range(-(1 << 63), 1 << 64)  # integers that JSON's encoder takes
_FAULTS = (msgspec.MsgspecError, ValueError, TypeError, RecursionError)
_SMALL = 1 << 63  # any reader of JSON takes integers below it
_NUMBER_CHARACTERS = 24
_SHORT_BYTES = 1 << 20  # of a line whose values are made at once, whatever they are
_FORMS = 1000  # of objects that are remembered
_decode = msgspec.json.Decoder().decode
_raw_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def fault_of(keep: Sequence[str]) -> str:
    """Why a choice of fields is none: `all` or `none` beside names, nothing named; or ""."""
    if keep and (len(keep) == 1 or not {ALL, NONE} & set(keep)):
        return ""
    given = " ".join(keep) or "nothing"
    return f"keep-fields: {given}; valid: {ALL}, {NONE}, or names of fields"


class KeptFields:
    """Picks the fields that are kept. keep: names, or ALL or NONE alone.

    names: names of text, id, labels and metadata in the file, where they are not their own
    names. left_out: number of fields that were too large up to now.
    """

    def __init__(self, keep: Sequence[str], names: Mapping[str, str]) -> None:
        self._keep = None if tuple(keep) == (ALL,) else frozenset(keep) - {NONE}
        own = {name: names.get(name, name) for name in ("text", "id", "metadata", *LABEL_FIELDS)}
        self._metadata = own["metadata"]
        self._beside = frozenset(own.values())
        self._within = frozenset(own[name] for name in LABEL_FIELDS)
        self._chosen: dict[tuple[str, ...], list[str]] = {}  # by the names of all fields
        self.left_out = 0

    def __bool__(self) -> bool:
        """Whether anything is kept."""
        return self._keep is None or bool(self._keep)

    def is_kept(self, name: str, within: bool = False) -> bool:
        """Whether a field is kept for its name; within: in `metadata`."""
        named = self._keep is None or name in self._keep
        return named and name not in (self._within if within else self._beside)

    def of_line(self, line: bytes, loosely: Callable[[bytes], Any]) -> dict[str, Scalar]:
        """The fields of a line of JSON. loosely: reads lines that are not strict JSON."""
        try:
            if len(line) <= _SHORT_BYTES and type(values := _decode(line)) is dict:
                quick = self._quickly(values)
                return self.of_row(values) if quick is None else quick
        except _FAULTS:
            return self._of_odd_line(line, loosely)
        try:
            beside = _raw_fields(line)
            inner = beside.get(self._metadata)
            within = _raw_fields(inner) if inner is not None and _first(inner) == ord("{") else {}
        except _FAULTS:
            return self._of_odd_line(line, loosely)
        return self._fitting(
            {n: self._read(raw) for n, raw in within.items() if self.is_kept(n, within=True)},
            {n: self._read(raw) for n, raw in beside.items() if self.is_kept(n)},
        )

    def of_row(self, row: Mapping[Any, Any]) -> dict[str, Scalar]:
        """The fields of a row of a table, or of an object."""
        inner = row.get(self._metadata)
        if isinstance(inner, list) and all(isinstance(pair, tuple) for pair in inner):
            inner = dict(inner)
        within = inner if isinstance(inner, dict) else {}
        return self._fitting(
            {n: v for n, v in within.items() if isinstance(n, str) and self.is_kept(n, True)},
            {n: v for n, v in row.items() if isinstance(n, str) and self.is_kept(n)},
        )

    def _quickly(self, row: dict[str, Any]) -> dict[str, Scalar] | None:
        """The fields where all are plain and short, as they mostly are; else None."""
        if row.get(self._metadata) is not None:
            return None
        names = tuple(row)
        chosen = self._chosen.get(names)
        if chosen is None:
            chosen = self._chosen[names] = [name for name in names if self.is_kept(name)]
            if len(self._chosen) > _FORMS:
                self._chosen.clear()
        size, kept = 0, {}
        for name in chosen:
            value = row[name]
            kind = type(value)
            if kind is str:
                if not value:
                    continue
                size += len(value)
            elif kind is int:
                if not -_SMALL < value < _SMALL:
                    return None
            elif kind is not float and kind is not bool:
                return None
            size += len(name) + _NUMBER_CHARACTERS
            kept[name] = value
        return kept if size * _ESCAPED_BYTES < LARGEST_BYTES else None

    def _of_odd_line(self, line: bytes, loosely: Callable[[bytes], Any]) -> dict[str, Scalar]:
        try:
            values = loosely(line)
        except _FAULTS:
            return {}
        return self.of_row(values) if isinstance(values, dict) else {}

    def _read(self, raw: msgspec.Raw) -> Any:
        """The value; None of one that is nested, or longer than can be kept."""
        if _first(raw) in _NESTED:
            return None
        if len(memoryview(raw)) > _ESCAPED_BYTES * LARGEST_BYTES:
            self.left_out += 1
            return None
        return _read(raw)

    def _fitting(self, *places: Mapping[str, Any]) -> dict[str, Scalar]:
        """Those that are single values, the last of a name, as many as LARGEST_BYTES hold."""
        kept = {
            _text(name): value
            for found in places
            for name, given in found.items()
            if (value := scalar(given)) is not None
        }
        if len(msgspec.json.encode(kept)) <= LARGEST_BYTES:
            return kept
        order = sorted(kept, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))
        chosen, size = set(), 1
        for name in order:
            more = len(msgspec.json.encode({name: kept[name]})) - 1  # with a comma, or the bracket
            if size + more <= LARGEST_BYTES:
                chosen.add(name)
                size += more
        self.left_out += len(kept) - len(chosen)
        return {name: value for name, value in kept.items() if name in chosen}


def scalar(value: Any) -> Scalar | None:
    """A value in a form that everything can hold, or None where it is not a single one."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value) if value in _WHOLE else _digits(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, date | time):  # datetime is a date
        return value.isoformat()
    if isinstance(value, Decimal | timedelta):
        return str(value)
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeError:
            return None
    return (_text(value) or None) if isinstance(value, str) else None


def note(name: str, fields: Mapping[str, Scalar]) -> bytes:
    """A document's id and fields as its provenance holds them."""
    own = name.encode()
    return own + BORDER + msgspec.json.encode(fields) if fields else own


def notes(names: Iterable[str], fields: Sequence[Mapping[str, Scalar]]) -> list[bytes]:
    """The notes of documents; fields: [documents], or none where nothing is kept."""
    if not fields:
        return [name.encode() for name in names]
    return [note(name, brought) for name, brought in zip(names, fields, strict=True)]


def _first(raw: msgspec.Raw) -> int:
    return memoryview(raw)[0]


def _read(raw: msgspec.Raw) -> Any:
    """The value; of a text that is no strict JSON its probable meaning."""
    try:
        return msgspec.json.decode(raw)
    except _FAULTS:
        pass
    try:
        return json.loads(bytes(raw).decode("utf-8", "surrogateescape"), parse_int=str)
    except _FAULTS:
        return None


def _text(value: str) -> str:
    """The text without halves of characters and bytes that are none of UTF-8."""
    return value if value.isascii() else value.encode(errors="backslashreplace").decode()


def _digits(value: int) -> str | None:
    try:
        return str(value)
    except ValueError:  # Python writes no more than 4,300 digits
        return None
