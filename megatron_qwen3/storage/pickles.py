"""Reads untrusted pickles without running them: `read(data)`, `read_large(data)`.

Unpickling calls the names in a pickle. Here every name that may occur stands for an inert class of
ours that only records its arguments, so nothing is imported, called or changed, whatever the pickle
contains; its content is then checked, with exact types (`kind`). A name that torch does not write
into a checkpoint is an error. Nor can a few bytes take all memory or time.

`Archive` is a file of torch.save, which is a zip of one pickle and the bytes of its tensors, found
without unpacking anything; `Slice` is a part of a file as a file, since in torch's distributed
checkpoints (DCP) every chunk is an archive of its own.
"""

import io
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, NamedTuple

_CHECKPOINT = "torch.distributed.checkpoint"
_NAMES = {
    *(
        (f"{_CHECKPOINT}.metadata", name)
        for name in (
            *("Metadata", "MetadataIndex", "TensorStorageMetadata", "BytesStorageMetadata"),
            *("ChunkStorageMetadata", "TensorProperties", "StorageMeta", "_MEM_FORMAT_ENCODING"),
        )
    ),
    (f"{_CHECKPOINT}.filesystem", "_StorageInfo"),
    *(
        (f"{_CHECKPOINT}.planner", name)
        for name in ("SavePlan", "WriteItem", "WriteItemType", "TensorWriteData")
    ),
    ("pathlib", "PosixPath"),
    ("pathlib._local", "PosixPath"),
    ("torch.serialization", "_get_layout"),
    ("torch.storage", "UntypedStorage"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_tensor_v3"),
    ("collections", "OrderedDict"),
    *(("torch", name) for name in ("Size", "float64", "float32", "float16", "bfloat16")),
    *(("torch", name) for name in ("int64", "int32", "uint8", "bool")),
    *(("torch", name) for name in ("float8_e4m3fn", "float8_e5m2")),
    *(
        ("torch", f"{name}Storage")
        for name in ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Byte", "Bool")
    ),
}
_PICKLE_BYTES = 1 << 20  # a tensor uses about 200, our objects even less


class Inert:
    """Stands for an object that a pickle would have made: `args` of the call, `state` set after."""

    __slots__ = ("args", "state")
    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any) -> "Inert":
        made = super().__new__(cls)
        made.args, made.state = args, None
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state


# A pickle that names torch.Size only gets the class `kind("Size")`.
_KINDS = {name: type(name, (Inert,), {"__slots__": ()}) for _, name in _NAMES}


def kind(name: str) -> type[Inert]:
    """Our inert class for a name, without its module."""
    return _KINDS[name]


class _Storage(NamedTuple):
    """The bytes of a tensor, as a pickle refers to them: of `kind`, in the record data/`key`."""

    kind: Any
    key: str


def _named(module: str, name: str) -> type[Inert]:
    if (module, name) not in _NAMES:
        raise pickle.UnpicklingError(f"it names {module}.{name}"[:200])
    return _KINDS[name]


_InPython: Any = pickle._Unpickler


class _Unpickler(_InPython):  # type: ignore[misc]
    """The unpickler of small pickles: slow but careful."""

    dispatch = _InPython.dispatch.copy()
    for _code in (pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET, pickle.DICT):
        dispatch.pop(_code[0])

    def find_class(self, module: str, name: str) -> Any:
        return _named(module, name)

    def persistent_load(self, pid: Any) -> Any:
        if type(pid) is tuple and len(pid) == 5 and pid[0] == "storage" and type(pid[2]) is str:
            return _Storage(pid[1], pid[2])
        raise pickle.UnpicklingError("it refers to something beside it")

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    dispatch[pickle.SETITEM[0]] = load_setitem

    def load_setitems(self) -> None:
        self._set(self.pop_mark())

    dispatch[pickle.SETITEMS[0]] = load_setitems

    def _set(self, items: list[Any]) -> None:
        """Set items with text as keys: hashing nested tuples can take for ever."""
        if type(self.stack[-1]) is not dict or any(type(key) is not str for key in items[::2]):
            raise pickle.UnpicklingError("a table in it has keys that are no text")
        self.stack[-1].update(zip(items[::2], items[1::2], strict=True))


def read(data: bytes) -> Any:
    """The content of a small pickle: numbers, text, lists, dicts and `Inert`s.

    Damaged pickles and those with other names raise exceptions of any kind.
    """
    return _Unpickler(io.BytesIO(data)).load()


class _FastUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return _named(module, name)


# The fast unpickler, run on a pickle in a process with limits. Its `Inert` has to keep the same
# attributes as ours.
_TRIAL = """
import pickle, resource, sys
class Inert:
    __slots__ = ("args", "state")
    def __new__(cls, *args):
        made = super().__new__(cls)
        made.args = args
        return made
    def __setstate__(self, state): self.state = state
class Unpickler(pickle.Unpickler):
    def find_class(self, module, name): return Inert
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2)
resource.setrlimit(resource.RLIMIT_CPU, (int(sys.argv[2]),) * 2)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
Unpickler(sys.stdin.buffer).load()
"""


def read_large(data: bytes) -> Any:
    """As `read`, ten times as fast. ValueError where it takes more than its size suggests.

    A few bytes can make the fast unpickler allocate gigabytes or compute for ever, and nothing can
    stop it then: so another process tries first.
    """
    limits = ((1 << 28) + 64 * len(data), 10 + len(data) // 500_000)  # bytes, seconds
    command = [sys.executable, "-I", "-S", "-c", _TRIAL, *map(str, limits)]
    tried = subprocess.run(command, input=data, capture_output=True)
    if tried.returncode:
        last = tried.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise ValueError(last or "it takes more time than a table of its size")
    return _FastUnpickler(io.BytesIO(data)).load()


class ArchiveLayout(NamedTuple):
    """The layout of a tensor in an archive: its first element is `offset` elements into
    `data/key`.

    kind: our class for its dtype or, where `is_typed`, for its type of storage.
    """

    key: str
    kind: Any
    is_typed: bool
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def layout(value: Any) -> ArchiveLayout | None:
    """The layout of a tensor from `read`; None where the value is no plain tensor."""
    is_typed = type(value) is kind("_rebuild_tensor_v2") and len(value.args) == 6
    if not is_typed and not (type(value) is kind("_rebuild_tensor_v3") and len(value.args) == 7):
        return None
    storage, offset, shape, stride, requires_grad, hooks, *dtype = value.args
    plain = type(requires_grad) is bool and type(hooks) is kind("OrderedDict") and not hooks.args
    numbers = (offset, *_tuple(shape), *_tuple(stride))
    if type(storage) is not _Storage or not plain or value.state is not None:
        return None
    if len(_tuple(shape)) != len(_tuple(stride)) or any(not is_count(n) for n in numbers):
        return None
    which = storage.kind if is_typed else dtype[0]
    return ArchiveLayout(storage.key, which, is_typed, offset, _tuple(shape), _tuple(stride))


def is_count(value: Any) -> bool:
    """Whether the value is a whole number that could be a size in bytes or elements."""
    return type(value) is int and 0 <= value < 1 << 56


def _tuple(value: Any) -> tuple[Any, ...]:
    return value if type(value) is tuple else (-1,)


_read_again = lru_cache(maxsize=4096)(read)  # chunks of one shape have one pickle


class Archive:
    """A file of torch.save: bytes [start, start + length) of a file.

    `value`: its pickle, see `read`; do not change it. `record(key)`: the place of the bytes
    data/key in the file, and their number. Any exception means that it is no whole archive, or
    holds compressed parts.
    """

    def __init__(self, path: Path, start: int, length: int) -> None:
        with io.BufferedReader(Slice(path, start, length)) as file, zipfile.ZipFile(file) as zipped:
            parts = zipped.infolist()
            if min(part.header_offset for part in parts) != 0:
                raise ValueError("something stands before its archive")
            if len({part.filename for part in parts}) != len(parts):
                raise ValueError("two parts of its archive have one name")
            places = {part.filename.partition("/")[2]: _place(file, part) for part in parts}
            self._places = {name: (start + at, size) for name, (at, size) in places.items()}
            at, size = places["data.pkl"]
            if max(at + size for at, size in places.values()) > length or size > _PICKLE_BYTES:
                raise ValueError("a part of its archive is larger than can be")
            file.seek(at)
            self.value = _read_again(file.read(size))
            at, size = places.get("byteorder", (0, 0))
            file.seek(at)
            if file.read(min(size, 16)) not in (b"", b"little"):
                raise ValueError("its numbers are big-endian")

    def record(self, key: str) -> tuple[int, int]:
        return self._places[f"data/{key}"]


_LOCAL = struct.Struct("<4s22xHH")  # a zip's header before each part: lengths of name and extra


def _place(file: IO[bytes], part: zipfile.ZipInfo) -> tuple[int, int]:
    """(first byte within the archive, bytes) of a part."""
    if part.compress_type != zipfile.ZIP_STORED or part.compress_size != part.file_size:
        raise ValueError("a part of its archive is compressed")
    file.seek(part.header_offset)
    magic, name, extra = _LOCAL.unpack(file.read(_LOCAL.size))
    if magic != b"PK\x03\x04":
        raise ValueError("a part of its archive is not where it should be")
    return part.header_offset + _LOCAL.size + name + extra, part.file_size


class Slice(io.RawIOBase):
    """Bytes [start, start + length) of a file, as a file."""

    def __init__(self, path: Path, start: int, length: int) -> None:
        self.file = path.open("rb", buffering=0)
        self.start, self.length, self.position = start, length, 0

    def close(self) -> None:
        self.file.close()
        super().close()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.length}
        self.position = max(0, origin[whence] + offset)
        return self.position

    def tell(self) -> int:
        return self.position

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), max(0, self.length - self.position))
        got = os.preadv(
            self.file.fileno(), [memoryview(buffer)[:wanted]], self.start + self.position
        )
        self.position += got
        return got
