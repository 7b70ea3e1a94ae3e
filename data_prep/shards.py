"""Shards: token files whose documents lie in the order of their labels.

A shard is three files with one beginning: PREFIX.bin and PREFIX.idx in Megatron's format, and
PREFIX.docs, written last, which says where each document came from and ends with the seal
(`seal.py`) of a whole shard: its cells (`cells.py`), what lies where under which labels, and the
documents that were taken out since (`removal.py`). The inventory of a folder (`inventory.py`) names
all cells of all shards.

    cells = write_shard(folder, "shards/00000/00000", dtype, [(cell, chunks, ()), …])
    reader = IndexedReader(folder / cells[0].path)
    origin("data/tokens/shards/00000/00000", document=17)  # input file, line and id

The .docs file, little-endian, for D documents: magic (8 bytes); of each document the number of its
file among the inventory's inputs (u32), its line there from 1, or its row in Parquet (u64), and
where its id ends (u64); then the ids in UTF-8, each with the fields that are kept of the document
(`kept_fields.note`), end to end. Of a packed shard (`lay_out.py`) a
"document" there and in the .idx is a piece: a document, what of one is in its rows, or filler.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from tempfile import TemporaryFile
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from data_prep.cells import Cell, laid_out
from data_prep.fingerprint import file_sha256
from data_prep.indexed import IndexedReader, IndexedWriter
from data_prep.inventory import read_inventory
from data_prep.noted import Scalar, parted
from data_prep.seal import provenance_sha256, read_seal, unseal, write_sealed
from megatron_qwen3.config import ConfigError

DOCS_MAGIC = b"QWENDOCS"
ORIGIN = np.dtype([("file", "<u4"), ("line", "<u8"), ("id_end", "<u8")])
NO_FILE = 0xFFFFFFFF  # of filler
_BLOCK_BYTES = 1 << 20


Note = tuple[str, dict[str, Scalar]]  # id and fields


class Origin(NamedTuple):
    """Where a document came from. line: from 1; of a Parquet file the row. Of filler: "", 0, "".

    fields: what else it brought, by name.
    """

    file: str
    line: int
    id: str
    fields: Mapping[str, Scalar] = MappingProxyType({})


class DocumentChunk(NamedTuple):
    """Some documents of a shard: ids end to end, their lengths [documents], where they came from.

    origins: [documents] of ORIGIN, `id_end` counted within this chunk; ids: the documents' ids
    and fields.
    """

    tokens: npt.NDArray[Any]
    lengths: npt.NDArray[np.int64]
    origins: npt.NDArray[Any]
    ids: bytes


class Content(NamedTuple):
    """A cell and the documents in it. text_R: where they are packed, tokens of text of each row."""

    cell: Cell
    chunks: Iterable[DocumentChunk]
    text_R: npt.ArrayLike = ()


def write_shard(
    folder: Path, path: str, dtype: npt.DTypeLike, contents: Iterable[Content]
) -> tuple[Cell, ...]:
    """Write the files of a shard in `folder`, its seal last. An older shard is replaced.

    The cells of the contents say what is in them; those that are returned, where it lies, too.
    """
    prefix = folder / path
    prefix.parent.mkdir(parents=True, exist_ok=True)
    unseal(prefix)
    given: list[Cell] = []
    texts: list[npt.NDArray[Any]] = []
    origins: list[bytes] = []
    # Ids and fields wait on the disk: of a shard of 10⁹ tokens they are hundreds of MB.
    with TemporaryFile(dir=prefix.parent) as notes:
        with IndexedWriter(prefix, dtype) as writer:
            for content in contents:
                given.append(content.cell)
                texts.append(np.asarray(content.text_R, np.int64))
                for chunk in content.chunks:
                    writer.add_documents(chunk.tokens, chunk.lengths)
                    moved = chunk.origins.copy()
                    moved["id_end"] += notes.tell()
                    origins.append(moved.tobytes())
                    notes.write(chunk.ids)
            if given and (packed := given[0].packed):
                writer.pack(packed.row_length, np.concatenate(texts))
        cells = tuple(laid_out(path, given))
        notes.seek(0)
        blocks = iter(partial(notes.read, _BLOCK_BYTES), b"")
        write_sealed(prefix, cells, chain([DOCS_MAGIC], origins, blocks))
    return cells


def origin(prefix: str | os.PathLike[str], document: int) -> Origin:
    """Where a document of a shard came from; needs the inventory, which names the input files."""
    prefix = os.path.abspath(prefix)
    cells = read_seal(prefix).cells
    in_files = sum(cell.in_files for cell in cells)
    if not 0 <= document < in_files:
        kind = "pieces" if cells[0].packed else "documents"
        raise ConfigError(f"{prefix} has {kind} 0 to {in_files - 1}, not {document}")
    with open(f"{prefix}.docs", "rb") as file:
        place = len(DOCS_MAGIC) + document * ORIGIN.itemsize
        before = 1 if document else 0  # its id begins where that of the document before ends
        file.seek(place - before * ORIGIN.itemsize)
        found = file.read((1 + before) * ORIGIN.itemsize)
        if len(found) < (1 + before) * ORIGIN.itemsize:
            raise ConfigError(f"{prefix}.docs is cut short: it ends before document {document}")
        rows = np.frombuffer(found, ORIGIN)
        start = int(rows[0]["id_end"]) if before else 0
        file.seek(len(DOCS_MAGIC) + in_files * ORIGIN.itemsize + start)
        note = note_of(file.read(max(0, int(rows[-1]["id_end"]) - start)), document, prefix)
    if rows[-1]["file"] == NO_FILE:
        return Origin("", 0, "")
    return origin_of(rows[-1], note, read_inventory(folder_of(prefix)).inputs, prefix)


def note_of(content: bytes, document: int, prefix: str | os.PathLike[str]) -> Note:
    """ConfigError where it is none."""
    try:
        return parted(content)
    except ValueError as error:
        raise ConfigError(
            f"{os.fspath(prefix)}.docs is damaged: document {document} has no id and fields "
            f"({error}); give back the file"
        ) from None


def origin_of(
    row: Any, note: Note, inputs: Sequence[str], prefix: str | os.PathLike[str]
) -> Origin:
    """What a row of ORIGIN and a note say. ConfigError where there is no such input."""
    if not row["file"] < len(inputs):
        raise ConfigError(
            f"{os.fspath(prefix)}.docs is damaged, or of another folder: a document of input "
            f"{row['file']} of {len(inputs)}"
        )
    return Origin(inputs[int(row["file"])], int(row["line"]), *note)


def folder_of(prefix: str | os.PathLike[str]) -> Path:
    """The folder of the inventory that a shard belongs to."""
    absolute = os.path.abspath(prefix)
    return Path(absolute.removesuffix(read_seal(absolute).cells[0].path))


def faults(folder: Path, cells: Sequence[Cell]) -> Iterator[str]:
    """What is not as the inventory, which has these cells of a shard, and the shard's seal say.

    Reads all of the shard.
    """
    prefix = folder / cells[0].path
    packed = cells[0].packed
    try:
        seal = read_seal(prefix)
        if seal.cells != tuple(cells):
            yield f"{prefix} is not the shard of the inventory: its seal says other cells"
        digests = {name: file_sha256(f"{prefix}.{name}") for name in ("bin", "idx")}
        digests["docs"] = provenance_sha256(prefix)
        for name, digest in digests.items():
            if digest != seal.sha256[name]:
                yield f"{prefix}.{name} is not what was written: its sha256 differs"
        reader = IndexedReader(prefix)
        sizes = sum(cell.in_files for cell in cells), sum(cell.tokens for cell in cells)
        if (reader.num_documents, len(reader.tokens)) != sizes:
            yield f"{prefix} has other numbers of documents and tokens than the inventory"
        if reader.row_length != (packed.row_length if packed else 0):
            yield f"{prefix} is packed otherwise than the inventory says"
    except (ConfigError, OSError) as error:
        yield str(error)
