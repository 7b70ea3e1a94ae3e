"""Shards: token files of documents that share their labels, and the inventory of a folder of them.

A shard is four files with one beginning: PREFIX.bin and PREFIX.idx in Megatron's format,
PREFIX.docs, which says where each document came from, and PREFIX.json, written last: the mark of a
whole shard. `inventory.json` at the top names all shards and appears when all are whole.

    inventory = read_inventory("data/tokens")
    for shard in inventory.shards:          # path, labels, documents, tokens, bytes of text
        reader = IndexedReader(inventory.folder / shard.path)
    origin("data/tokens/source=web/…/00000-000", document=17)  # input file, line and id

The .docs file, little-endian, for D documents: magic (8 bytes); of each document the number of its
file among the inventory's inputs (u32), its line there from 1, or its row in Parquet (u64), and
where its id ends (u64); then the ids in UTF-8, each with the fields that are kept of the document
(`kept_fields.note`), end to end. Of a packed shard (`packed.py`) a
"document" there and in the .idx is a piece: a document, what of one is in its rows, or filler.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from data_prep.indexed import IndexedReader, IndexedWriter
from data_prep.kept_fields import Scalar, parted
from data_prep.labels import Labels
from data_prep.packed import Packed
from megatron_qwen3.config import ConfigError
from megatron_qwen3.storage.whole import write_whole

INVENTORY = "inventory.json"
VERSION = 1
_MAGIC = b"QWENDOCS"
ORIGIN = np.dtype([("file", "<u4"), ("line", "<u8"), ("id_end", "<u8")])
NO_FILE = 0xFFFFFFFF  # of filler


@dataclass(frozen=True)
class Shard:
    """What the inventory says of one shard.

    path: PREFIX, relative to the inventory's folder; bytes: of the documents' text in UTF-8;
    tokens: each document's last one, <|endoftext|>, included, and filler. packed: None where texts
    simply follow each other; otherwise documents counts those that begin here, cut those of them
    that are longer than a row, and pieces what the files have as documents.
    """

    path: str
    labels: Labels
    documents: int
    tokens: int
    bytes: int
    packed: Packed | None = None
    cut: int = 0
    pieces: int = 0

    @property
    def in_files(self) -> int:
        """How many documents the .idx and .docs have."""
        return self.pieces if self.packed else self.documents

    def as_json(self) -> dict[str, Any]:
        counts = {"documents": self.documents, "tokens": self.tokens, "bytes": self.bytes}
        row = {"path": self.path, **self.labels._asdict(), **counts}
        if self.packed:
            row |= {"packed": self.packed.as_json(), "cut": self.cut, "pieces": self.pieces}
        return row


@dataclass(frozen=True)
class Inventory:
    """A folder of shards that is whole. tokenizer: its path there, sha256 and end_of_document."""

    folder: Path
    tokenizer: dict[str, Any]
    vocab_size: int
    inputs: tuple[str, ...]
    shards: tuple[Shard, ...]


Buffer = bytes | bytearray | memoryview


class Origin(NamedTuple):
    """Where a document came from. line: from 1; of a Parquet file the row. Of filler: "", 0, "".

    fields: what else it brought, by name.
    """

    file: str
    line: int
    id: str
    fields: Mapping[str, Scalar] = MappingProxyType({})


class Chunk(NamedTuple):
    """Some documents of a shard: ids end to end, their lengths [documents], where they came from.

    origins: [documents] of ORIGIN, `id_end` counted within this chunk; ids: the documents' ids
    and fields.
    """

    tokens: npt.NDArray[Any]
    lengths: npt.NDArray[np.int64]
    origins: npt.NDArray[Any]
    ids: bytes


def write_shard(
    folder: Path,
    shard: Shard,
    dtype: npt.DTypeLike,
    chunks: Iterable[Chunk],
    text_R: npt.ArrayLike = (),
) -> None:
    """Write the four files of a shard in `folder`, its mark last. An older shard is replaced.

    text_R: of a packed shard, how many tokens of each row are text.
    """
    prefix = folder / shard.path
    prefix.parent.mkdir(parents=True, exist_ok=True)
    mark = Path(f"{prefix}.json")
    mark.unlink(missing_ok=True)
    origins: list[bytes] = []
    ids = bytearray()
    with IndexedWriter(prefix, dtype) as writer:
        for chunk in chunks:
            writer.add_documents(chunk.tokens, chunk.lengths)
            moved = chunk.origins.copy()
            moved["id_end"] += len(ids)
            origins.append(moved.tobytes())
            ids += chunk.ids
        if shard.packed:
            writer.pack(shard.packed.row_length, text_R)
    write_whole(Path(f"{prefix}.docs"), [_MAGIC, *origins, ids])
    digests = {suffix: file_sha256(f"{prefix}.{suffix}") for suffix in ("bin", "idx", "docs")}
    write_json(mark, {"version": VERSION, **shard.as_json(), "sha256": digests})


def write_inventory(inventory: Inventory) -> None:
    """Make the shards visible to who reads the folder."""
    content = {
        "version": VERSION,
        "tokenizer": inventory.tokenizer,
        "vocab_size": inventory.vocab_size,
        "inputs": inventory.inputs,
        "shards": [shard.as_json() for shard in inventory.shards],
    }
    write_json(inventory.folder / INVENTORY, content)


def read_inventory(folder: str | os.PathLike[str]) -> Inventory:
    """ConfigError where there is none, or it is not one."""
    path = Path(folder) / INVENTORY
    content = read_json(path, "the folder of tokenized documents is not whole yet, or another one")
    try:
        return Inventory(
            folder=Path(folder),
            tokenizer=content["tokenizer"],
            vocab_size=content["vocab_size"],
            inputs=tuple(content["inputs"]),
            shards=tuple(shard_from_json(row) for row in content["shards"]),
        )
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{path} is not an inventory: {error!r}") from None


def read_shard(prefix: str | os.PathLike[str]) -> Shard:
    """What the mark beside a shard says; ConfigError where the shard is not whole."""
    path = Path(f"{os.fspath(prefix)}.json")
    return shard_from_json(read_json(path, "the shard is not whole, or no shard"))


def origin(prefix: str | os.PathLike[str], document: int) -> Origin:
    """Where a document of a shard came from; needs the inventory, which names the input files."""
    prefix = os.path.abspath(prefix)
    shard = read_shard(prefix)
    if not 0 <= document < shard.in_files:
        kind = "pieces" if shard.packed else "documents"
        raise ConfigError(f"{prefix} has {kind} 0 to {shard.in_files - 1}, not {document}")
    with open(f"{prefix}.docs", "rb") as file:
        place = len(_MAGIC) + document * ORIGIN.itemsize
        before = 1 if document else 0  # its id begins where that of the document before ends
        file.seek(place - before * ORIGIN.itemsize)
        rows = np.frombuffer(file.read((1 + before) * ORIGIN.itemsize), ORIGIN)
        start = int(rows[0]["id_end"]) if before else 0
        file.seek(len(_MAGIC) + shard.in_files * ORIGIN.itemsize + start)
        name, fields = parted(file.read(int(rows[-1]["id_end"]) - start))
    if rows[-1]["file"] == NO_FILE:
        return Origin("", 0, "")
    inputs = read_inventory(folder_of(prefix)).inputs
    return Origin(inputs[int(rows[-1]["file"])], int(rows[-1]["line"]), name, fields)


def folder_of(prefix: str | os.PathLike[str]) -> Path:
    """The folder of the inventory that a shard belongs to."""
    absolute = os.path.abspath(prefix)
    return Path(absolute.removesuffix(read_shard(absolute).path))


def faults(folder: Path, shard: Shard) -> Iterator[str]:
    """What is not as the inventory and the shard's mark say; reads all of the shard."""
    prefix = folder / shard.path
    try:
        mark = read_json(Path(f"{prefix}.json"), "the shard is not whole")
        if shard_from_json(mark) != shard:
            yield f"{prefix}.json is not the shard of the inventory"
        for suffix, expected in mark["sha256"].items():
            if file_sha256(f"{prefix}.{suffix}") != expected:
                yield f"{prefix}.{suffix} is not what was written: its sha256 differs"
        reader = IndexedReader(prefix)
        if (reader.num_documents, len(reader.tokens)) != (shard.in_files, shard.tokens):
            yield f"{prefix} has other numbers of documents and tokens than the inventory"
        if reader.row_length != (shard.packed.row_length if shard.packed else 0):
            yield f"{prefix} is packed otherwise than the inventory says"
    except (ConfigError, OSError) as error:
        yield str(error)


def write_json(path: Path, content: Any) -> None:
    """A JSON file that is there whole or not at all."""
    write_whole(path, [json_bytes(content, indent=1) + b"\n"])


def json_bytes(content: Any, indent: int | None = None) -> bytes:
    """JSON in UTF-8; a byte of a file's name that is none of it is escaped, and read back as it was
    (PEP 383)."""
    text = json.dumps(content, ensure_ascii=False, indent=indent)
    return text.encode("utf-8", "backslashreplace")


def shard_from_json(row: dict[str, Any]) -> Shard:
    labels = Labels(*(row[name] for name in Labels._fields))
    packed = Packed.from_json(row["packed"]) if "packed" in row else None
    counts = (row["documents"], row["tokens"], row["bytes"])
    return Shard(row["path"], labels, *counts, packed, row.get("cut", 0), row.get("pieces", 0))


def read_json(path: Path, otherwise: str, version: int = VERSION) -> dict[str, Any]:
    """A file that `write_json` wrote; ConfigError, which ends in `otherwise`, where it is none."""
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist: {otherwise}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} is not an object of JSON: {otherwise}")
    if content.get("version") != version:
        raise ConfigError(f"{path} is of version {content.get('version')}; known: {version}")
    return content


def file_sha256(path: str) -> str:
    """The hex digest of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
