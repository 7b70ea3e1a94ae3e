"""Reads and checks the table of a checkpoint in torch's format (DCP): `read_table(folder)`.

`.metadata` has the place of every chunk of every tensor. It is a pickle, and the chunks and the few
objects between them are torch.save files, with pickles of their own. torch and megatron-core never
unpickle any of them: `pickles.py` reads them without running them, and the rest of the project sees
a checkpoint only through this `CheckpointTable`. It holds only numbers and text; every chunk lies
within its tensor and its file, and no two overlap in either. Types have torch's names; nothing here
imports torch.
"""

from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, Final, NamedTuple

from megatron_qwen3.settings import ConfigError
from megatron_qwen3.shown import shown
from megatron_qwen3.storage import boxes, pickles
from megatron_qwen3.storage.inside import check_links, inside, read_small
from megatron_qwen3.storage.pickles import Inert, kind

TABLE_FILE, COMMON_FILE = ".metadata", "common.pt"
_TABLE_BYTES = 1 << 30  # about 200 bytes per chunk
_OBJECT_BYTES = 1 << 20  # ours are empty, or have a few words
_FRAME_BYTES = 1 << 16  # around the bytes of one tensor in torch.save's files: about 1,000
ITEM_BYTES: Final = {
    **{"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4},
    **{"uint8": 1, "bool": 1, "float8_e4m3fn": 1, "float8_e5m2": 1},
}
_DTYPES = {kind(name): name for name in ITEM_BYTES}
_STORAGES = {
    kind("DoubleStorage"): "float64",
    kind("FloatStorage"): "float32",
    kind("HalfStorage"): "float16",
    kind("BFloat16Storage"): "bfloat16",
    kind("LongStorage"): "int64",
    kind("IntStorage"): "int32",
    kind("ByteStorage"): "uint8",
    kind("BoolStorage"): "bool",
}

Index = tuple[int, ...]


class FileRange(NamedTuple):
    """Bytes [start, start + length) of a file of the checkpoint."""

    path: Path
    start: int
    length: int


@dataclass(frozen=True)
class StoredChunk:
    """One stored archive: `shape` elements in row-major order, `offsets` in the whole tensor."""

    path: Path
    start: int
    length: int
    offsets: Index
    shape: Index
    dtype: str

    @cached_property
    def data_start(self) -> int:
        """The file offset of its first element. ConfigError where another tensor lies there."""
        try:
            archive = pickles.Archive(self.path, self.start, self.length)
            found = pickles.layout(archive.value)
            if found is None:
                raise ValueError("no tensor lies there")
            start, size = archive.record(found.key)
        except Exception as error:  # damaged archives fail in every way
            raise ConfigError(
                f"{shown(self.path)}: damaged at byte {self.start}: {shown(error)[:200]}"
            ) from None
        item = ITEM_BYTES[self.dtype]
        dtype = dtype_of(found)
        if (found.shape, dtype) != (self.shape, self.dtype) or not _is_row_major(found):
            raise ConfigError(
                f"{shown(self.path)}: byte {self.start} holds another tensor than {TABLE_FILE} says"
            )
        if size < (found.offset + prod(self.shape)) * item:
            raise ConfigError(f"{shown(self.path)}: truncated, or damaged at byte {self.start}")
        return start + found.offset * item


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a checkpoint: its shape and type, and the chunks that it lies in."""

    shape: Index
    dtype: str
    chunks: tuple[StoredChunk, ...]


class CheckpointTable(NamedTuple):
    """The content of a checkpoint: tensors and plain objects, by key."""

    tensors: dict[str, StoredTensor]
    objects: dict[str, FileRange]


def read_table(folder: Path) -> CheckpointTable:
    """Read the table. ConfigError where `.metadata` is no table of a checkpoint, or holds more.

    An object that is not plain data is an error, too: it was made to run code.
    """
    path = folder / TABLE_FILE
    try:
        check_links(folder)
        inside(folder, TABLE_FILE)
        value = pickles.read_large(read_small(path, _TABLE_BYTES))
        metadata = _state(value, "Metadata")
        entries, places = metadata["state_dict_metadata"], metadata["storage_data"]
        if type(entries) is not dict or type(places) is not dict or not places:
            raise ValueError("it has no table")
        stored = {_key(index): _Info.of(info) for index, info in places.items()}
        table = _table(folder, entries, stored)
    except ConfigError:
        raise
    except OSError as error:
        raise ConfigError(
            f"{shown(path)}: cannot be read ({error.strerror}); is this a checkpoint?"
        ) from None
    except Exception as error:  # damaged pickles fail in every way
        raise ConfigError(
            f"{shown(path)}: not the metadata of a checkpoint, refused: {shown(error)[:200]}"
        ) from None
    _check_objects(folder, table)
    return table


class _Info(NamedTuple):
    """The place of a chunk or an object in `.metadata`."""

    file: str
    start: int
    length: int

    @classmethod
    def of(cls, value: Any) -> "_Info":
        state = _state(value, "_StorageInfo")
        encoding = state.get("transform_descriptors")
        if encoding is not None and encoding != ():
            raise ValueError(f"a chunk has an encoding of its own, {encoding!r:.80}")
        info = cls(state["relative_path"], state["offset"], state["length"])
        is_place = pickles.is_count(info.start) and pickles.is_count(info.length)
        if type(info.file) is not str or not is_place:
            raise ValueError("a chunk has no place in a file")
        return info


def _key(value: Any) -> tuple[str, Index]:
    """The key of a place, and the offsets of its chunk, () for an object."""
    state = _state(value, "MetadataIndex")
    offset = state.get("offset")
    return _text(state["fqn"]), () if offset is None else _sizes(offset)


def _table(
    folder: Path, entries: dict[Any, Any], places: dict[tuple[str, Index], _Info]
) -> CheckpointTable:
    files = {name: _file(folder, name) for name in {info.file for info in places.values()}}
    _check_files(files, places)
    tensors: dict[str, StoredTensor] = {}
    objects: dict[str, FileRange] = {}
    for name, entry in entries.items():
        key = _text(name)
        if type(entry) is kind("BytesStorageMetadata"):
            info = places[key, ()]
            objects[key] = FileRange(files[info.file][0], info.start, info.length)
        else:
            tensors[key] = _stored(folder, key, entry, places, files)
    return CheckpointTable(tensors, objects)


def _stored(
    folder: Path,
    key: str,
    entry: Any,
    places: dict[tuple[str, Index], _Info],
    files: dict[str, tuple[Path, int]],
) -> StoredTensor:
    state = _state(entry, "TensorStorageMetadata")
    whole = _sizes(state["size"])
    dtype = _of_kind(_DTYPES, _properties(state["properties"])[0])
    if dtype is None or type(state["chunks"]) is not list:
        raise ValueError(f"{key!r:.80} is no tensor of a known type")
    chunks = []
    for value in state["chunks"]:
        box = _state(value, "ChunkStorageMetadata")
        offsets, shape = _sizes(box["offsets"]), _sizes(box["sizes"])
        info = places.get((key, offsets))
        if info is None:
            raise ConfigError(f"{shown(folder / TABLE_FILE)}: not said where {shown(key)} lies")
        size = prod(shape) * ITEM_BYTES[dtype]
        if not size <= info.length <= size + _FRAME_BYTES:
            raise ValueError(f"a chunk of {key!r:.80} has another size than its shape")
        chunks.append(
            StoredChunk(files[info.file][0], info.start, info.length, offsets, shape, dtype)
        )
    _check_boxes(key, whole, chunks)
    return StoredTensor(whole, dtype, tuple(chunks))


def _check_boxes(key: str, whole: Index, chunks: list[StoredChunk]) -> None:
    for chunk in chunks:
        ends = zip(chunk.offsets, chunk.shape, whole, strict=True)
        if any(first + count > size for first, count, size in ends):
            raise ValueError(f"a chunk of {key!r:.80} is not within it")
    if not boxes.apart([(chunk.offsets, chunk.shape) for chunk in chunks]):
        raise ValueError(f"two chunks of {key!r:.80} overlap")


def _file(folder: Path, name: str) -> tuple[Path, int]:
    """The path and the size of a file that the table names."""
    if Path(name).name != name:
        raise ConfigError(
            f"{shown(folder / TABLE_FILE)}: {shown(name)!r} is no file of this folder; refused"
        )
    try:
        path = inside(folder, name)
        return path, path.stat().st_size
    except OSError as error:
        raise ConfigError(f"{shown(folder / name)}: cannot be read ({error.strerror})") from None


def _check_files(
    files: dict[str, tuple[Path, int]], places: dict[tuple[str, Index], _Info]
) -> None:
    """ConfigError where a chunk is not within its file; ValueError where two share bytes."""
    end, before = 0, ""
    for info in sorted(places.values()):
        path, size = files[info.file]
        if info.start + info.length > size:
            raise ConfigError(
                f"{shown(path)}: truncated, it ends at byte {size} of {info.start + info.length}"
            )
        if info.file == before and info.start < end:
            raise ValueError(f"two chunks share bytes of {info.file!r:.80}")
        end, before = info.start + info.length, info.file


def _check_objects(folder: Path, table: CheckpointTable) -> None:
    """ConfigError where an object is more than plain data.

    An extra state is given to its module, and Transformer Engine's own is a tensor with a pickle in
    it, which it would unpickle: so no object may be a tensor.
    """
    common = folder / COMMON_FILE
    try:
        if common.exists() or common.is_symlink():
            place = FileRange(inside(folder, COMMON_FILE), 0, common.stat().st_size)
            _check_object(COMMON_FILE, place)
        for key, place in table.objects.items():
            _check_object(key, place)
    except OSError as error:
        raise ConfigError(f"{shown(common)}: cannot be read ({error.strerror})") from None


def _check_object(key: str, place: FileRange) -> None:
    try:
        if place.length > _OBJECT_BYTES:
            raise ValueError(f"it is as large as {place.length:,} bytes")
        value = pickles.Archive(*place).value
        if "_extra_state" in key and not _is_state(value):
            raise ValueError(f"the extra state {key!r:.120} is no plain data, or a tensor")
    except OSError:
        raise
    except Exception as error:
        raise ConfigError(
            f"{shown(place.path)}: refused, {shown(key)} is damaged or holds more than plain data: "
            f"{shown(error)[:200]}"
        ) from None


def _is_state(value: Any) -> bool:
    """Whether a module may be given it. A tensor may not: Transformer Engine would unpickle it."""
    items = value if type(value) is list else [value]
    found = [pickles.layout(item) for item in items]
    return all(map(_is_plain, items)) and all(not at or 0 in at.shape for at in found)


def _is_plain(value: Any) -> bool:
    if type(value) in (list, tuple):
        return all(map(_is_plain, value))
    if type(value) is dict:
        return all(map(_is_plain, value.values()))
    return type(value) in (type(None), bool, int, float, str) or pickles.layout(value) is not None


def _state(value: Any, name: str) -> dict[str, Any]:
    if type(value) is not kind(name) or type(value.state) is not dict:
        raise ValueError(f"it has no {name} where one belongs")
    return value.state


def _properties(value: Any) -> tuple[Any, ...]:
    """(dtype, …) of a TensorProperties."""
    if type(value) is not kind("TensorProperties") or type(value.state) is not tuple:
        raise ValueError("a tensor has no properties")
    return value.state


def _sizes(value: Any) -> Index:
    sizes = value.args[0] if type(value) is kind("Size") and len(value.args) == 1 else None
    if type(sizes) is not tuple or not all(map(pickles.is_count, sizes)):
        raise ValueError("a size is not made of whole numbers")
    return sizes


def _text(value: Any) -> str:
    if type(value) is not str:
        raise ValueError("a tensor has no name")
    return value


def _of_kind(table: dict[type[Inert], str], value: Any) -> str | None:
    return table.get(value) if isinstance(value, type) else None


def dtype_of(found: pickles.ArchiveLayout) -> str | None:
    """torch's name of a tensor's type; None for types that no checkpoint has."""
    return _of_kind(_STORAGES if found.is_typed else _DTYPES, found.kind)


def _is_row_major(found: pickles.ArchiveLayout) -> bool:
    """Whether elements lie in order; strides of axes with one element do not matter."""
    steps = [prod(found.shape[axis + 1 :]) for axis in range(len(found.shape))]
    rows = zip(found.shape, found.stride, steps, strict=True)
    return 0 in found.shape or all(n == 1 or stride == step for n, stride, step in rows)
