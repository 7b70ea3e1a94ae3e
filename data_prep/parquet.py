"""Reads rows of Parquet as plain values, some MB at a time, however far a file expands.

    with ParquetTable(path, longest=1 << 26) as table:        # bytes that a row may have
        table.names                                    # of all columns
        for rows in table.rows(table.labelled("metadata", ["language"]) + ["text"]): ...

Only the wanted columns are read: no other one can do harm. A kilobyte of
Parquet can stand for gigabytes (one long text, and a number that says that it comes again). So
texts stay numbers of entries of a dictionary, as they lie in the file, until their lengths are
known.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

from data_prep.damaged import DamagedFile
from data_prep.remote import is_url, opened
from megatron_qwen3.config import ConfigError

ROWS = 256  # at a time, at most
BATCH_BYTES = 1 << 22
_LONGEST_SINGLE = 1 << 16  # bytes of a text of a column that is read besides
_WIDEST_SINGLE = 16  # bytes of a number that is none of Arrow's own: Parquet's decimals


class LongRow(Exception):
    """Stands for a row of more bytes than one may have."""

    def __str__(self) -> str:
        return "the row is too long"


class ParquetTable:
    """A file's columns by their dotted paths: `text`, `metadata.language`.

    OSError where the file cannot be read, DamagedFile where it makes no sense.
    """

    def __init__(self, path: str, longest: int) -> None:
        self._parquet, self._path, self._longest = import_parquet(), path, longest
        with damage():
            self._file = self._parquet.ParquetFile(_source(path))
            self._schema = self._file.schema_arrow
            leaves = self._file.schema
            self._leaves = [leaves.column(k) for k in range(len(leaves))]
        self.names: list[str] = list(self._schema.names)
        self.num_rows: int = self._file.metadata.num_rows

    def labelled(self, column: str, labels: Sequence[str]) -> list[str]:
        """Where a column holds labels: within a struct, or all of a map of texts or numbers."""
        from pyarrow import types

        kind = self._schema.field(column).type if self.names.count(column) == 1 else None
        if kind is None or not types.is_nested(kind):
            return []
        if types.is_map(kind):
            is_odd = types.is_nested(kind.item_type) or types.is_temporal(kind.item_type)
            return [] if is_odd else [column]
        inside = {field.name for field in kind} if types.is_struct(kind) else set()
        return [f"{column}.{label}" for label in labels if label in inside]

    def texts(self) -> list[str]:
        """All columns of text, those within others too."""
        return [leaf.path for leaf in self._leaves if leaf.physical_type == "BYTE_ARRAY"]

    def single(self, column: str, is_wanted: Callable[[str, bool], bool]) -> list[str]:
        """Columns of single values, and those within the struct `column`, that are wanted.

        is_wanted: of a name, and whether it stands within `column`.
        """
        found = []
        for leaf in self._leaves:
            above, _, name = leaf.path.rpartition(".")
            is_flat = leaf.max_repetition_level == 0 and above in ("", column)
            is_known = self.names.count(above or name) == 1
            fixed = leaf.physical_type == "FIXED_LEN_BYTE_ARRAY" and leaf.length > _WIDEST_SINGLE
            if is_flat and is_known and not fixed and is_wanted(name, bool(above)):
                found.append(leaf.path)
        return found

    def rows(self, columns: Sequence[str], more: Sequence[str] = ()) -> Iterator[list[Any]]:
        """Lists of rows, each a dict of values; an exception is in place of a value that Python
        cannot hold, a LongRow in place of a row that is too long.

        more: columns as `single` gives them, in which None is in place of a text of over 64 KiB.
        """
        wanted = [*columns, *(name for name in more if not _is_within(name, columns))]
        chosen = [k for k, leaf in enumerate(self._leaves) if _is_within(leaf.path, wanted)]
        paths = [self._leaves[k].path for k in chosen]
        texts = [path for path in self.texts() if path in paths]
        source = _source(self._path)
        with damage(), self._parquet.ParquetFile(source, read_dictionary=texts) as file:
            for group in range(file.metadata.num_row_groups):
                about = file.metadata.row_group(group)
                size = sum(about.column(k).total_uncompressed_size for k in chosen)
                widest = max((self._leaves[k].length for k in chosen), default=0)
                size = max(1, size, widest * about.num_rows)
                at_once = max(1, min(ROWS, BATCH_BYTES * about.num_rows // size))
                for batch in file.iter_batches(at_once, [group], paths):
                    yield from self._parts(_without_long(batch, more))

    def _parts(self, batch: Any) -> Iterator[list[Any]]:
        """The rows in lists that are not much larger than a batch may be."""
        size = sum(map(_expanded_bytes, batch.columns))
        if len(batch) > 1 and size > BATCH_BYTES:
            half = len(batch) // 2
            yield from self._parts(batch.slice(0, half))
            yield from self._parts(batch.slice(half))
        elif size > self._longest and len(batch) == 1:
            yield [LongRow()]
        else:
            yield _values(_written_out(batch))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _source(path: str) -> Any:
    """A path or file that Arrow can open: it takes names in UTF-8 alone."""
    if is_url(path):
        return opened(path)
    try:
        path.encode()
    except UnicodeEncodeError:
        return open(path, "rb")  # noqa: SIM115 -- Arrow's file keeps it
    return path


def _without_long(batch: Any, names: Sequence[str]) -> Any:
    """None in place of the long texts of some columns, before anything writes them out."""
    for k, column in enumerate(batch.columns):
        name = batch.schema.names[k]
        within = [path.partition(".")[2] for path in names if path.startswith(f"{name}.")]
        if name in names or within:
            batch = batch.set_column(k, name, _short(column, within))
    return batch


def _short(column: Any, within: Sequence[str] = ()) -> Any:
    """The column, or of a struct those fields of it, with None in place of long texts."""
    import pyarrow
    from pyarrow import compute, types

    if types.is_struct(column.type):
        parts = {f.name: column.field(f.name) for f in column.type}
        short = {name: _short(part) if name in within else part for name, part in parts.items()}
        return pyarrow.StructArray.from_arrays(
            list(short.values()), list(short), mask=column.is_null()
        )
    if not types.is_dictionary(column.type):
        return column
    lengths = compute.binary_length(column.dictionary)
    if (compute.max(lengths).as_py() or 0) <= _LONGEST_SINGLE:
        return column
    is_long = compute.greater(lengths.take(column.indices), _LONGEST_SINGLE)
    indices = compute.if_else(is_long, None, column.indices)
    return pyarrow.DictionaryArray.from_arrays(indices, column.dictionary)


def _written_out(batch: Any) -> Any:
    """Texts as texts: quicker to take out than entries of a dictionary."""
    for k, column in enumerate(batch.columns):
        if hasattr(column, "dictionary_decode"):
            batch = batch.set_column(k, batch.schema.names[k], column.dictionary_decode())
    return batch


def _values(batch: Any) -> list[Any]:
    try:
        return list(batch.to_pylist())
    except (MemoryError, OSError):
        raise
    except Exception:  # a value that Python cannot hold: then cell by cell
        names, columns = batch.schema.names, batch.columns
        return [
            {name: _value(column[k]) for name, column in zip(names, columns, strict=True)}
            for k in range(len(batch))
        ]


def _value(cell: Any) -> Any:
    try:
        return cell.as_py()
    except (MemoryError, OSError):
        raise
    except Exception as error:
        return error


def _is_within(path: str, columns: Sequence[str]) -> bool:
    return any(path == column or path.startswith(f"{column}.") for column in columns)


def _expanded_bytes(array: Any) -> int:
    """How many bytes an array's values have when each is written out."""
    from pyarrow import compute, types

    kind = array.type
    if types.is_dictionary(kind) and array.dictionary.type in _texts():
        lengths = compute.binary_length(array.dictionary).take(array.indices)
        return int(compute.sum(lengths).as_py() or 0)
    if types.is_struct(kind):
        return sum(map(_expanded_bytes, array.flatten()))
    if types.is_map(kind) or types.is_list(kind) or types.is_large_list(kind):
        first, last = array.offsets[0].as_py(), array.offsets[-1].as_py()
        inner = [array.keys, array.items] if types.is_map(kind) else [array.values]
        return sum(_expanded_bytes(part.slice(first, last - first)) for part in inner)
    return int(array.nbytes)


def _texts() -> tuple[Any, ...]:
    import pyarrow

    return pyarrow.string(), pyarrow.binary(), pyarrow.large_string(), pyarrow.large_binary()


@contextmanager
def damage() -> Iterator[None]:
    """Raise Arrow's errors on a file that makes no sense as one exception."""
    import pyarrow

    try:
        yield
    except OSError as error:
        if error.errno is not None:
            raise
        raise DamagedFile(str(error)) from None
    except (ValueError, pyarrow.ArrowException) as error:
        raise DamagedFile(str(error)) from None


def import_parquet() -> Any:
    """pyarrow.parquet, which loads slowly; ConfigError where it is not installed."""
    try:
        from pyarrow import parquet
    except ImportError:
        raise ConfigError(
            "Parquet needs pyarrow, which is not installed: pip install 'megatron_qwen3[data]'"
        ) from None
    return parquet
