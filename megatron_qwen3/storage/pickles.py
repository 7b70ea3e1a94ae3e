"""What may be unpickled of a checkpoint: nothing that runs code.

Loading a pickle runs what it names, and torch's distributed checkpoint (DCP) has several: its
table `.metadata`, `common.pt`, and the objects between the tensors. `check_pickles` goes through
all that megatron-core would load; `read_metadata` admits the classes that DCP itself writes there
and nothing else. `Slice` is a part of a file as a file, since every chunk is an archive of its own.
"""

import io
import os
import pickle
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from megatron_qwen3.config import ConfigError

_CHECKPOINT = "torch.distributed.checkpoint"
_ADMITTED = {
    (f"{_CHECKPOINT}.metadata", "Metadata"),
    (f"{_CHECKPOINT}.metadata", "MetadataIndex"),
    (f"{_CHECKPOINT}.metadata", "TensorStorageMetadata"),
    (f"{_CHECKPOINT}.metadata", "BytesStorageMetadata"),
    (f"{_CHECKPOINT}.metadata", "ChunkStorageMetadata"),
    (f"{_CHECKPOINT}.metadata", "TensorProperties"),
    (f"{_CHECKPOINT}.metadata", "StorageMeta"),
    (f"{_CHECKPOINT}.metadata", "_MEM_FORMAT_ENCODING"),
    (f"{_CHECKPOINT}.filesystem", "_StorageInfo"),
    (f"{_CHECKPOINT}.planner", "SavePlan"),
    (f"{_CHECKPOINT}.planner", "WriteItem"),
    (f"{_CHECKPOINT}.planner", "WriteItemType"),
    (f"{_CHECKPOINT}.planner", "TensorWriteData"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
    *(("torch", name) for name in ("float64", "float32", "float16", "bfloat16")),
    *(("torch", name) for name in ("int64", "int32", "uint8", "bool")),
    *(("torch", name) for name in ("float8_e4m3fn", "float8_e5m2")),
}


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module in ("pathlib", "pathlib._local") and name == "PosixPath":
            return PurePosixPath  # the name of the folder, where torch's own writer wrote it
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


def read_metadata(folder: Path) -> Metadata:
    """The table of chunks of a checkpoint. ConfigError where it is not one, or names more."""
    path = folder / ".metadata"
    try:
        with path.open("rb") as file:
            metadata = _MetadataUnpickler(file).load()
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); is this a checkpoint?"
        ) from None
    except Exception as error:  # damaged pickles fail in every way
        raise ConfigError(f"{path}: not the metadata of a checkpoint, refused: {error}") from None
    if not isinstance(metadata, Metadata) or not metadata.storage_data:
        raise ConfigError(f"{path}: not the metadata of a checkpoint")
    return metadata


def check_pickles(folder: Path) -> None:
    """ConfigError where a file of the checkpoint would run code when megatron-core loads it.

    megatron-core unpickles without a check `.metadata`, `common.pt` (releases before 0.19) and
    the objects between the tensors: what 0.19 has instead of `common.pt`, and empty extra states.
    """
    metadata = read_metadata(folder)
    if (folder / "common.pt").exists():
        _check_archive(folder / "common.pt", (folder / "common.pt").open, "rb")
    tensors = metadata.state_dict_metadata
    for index, place in metadata.storage_data.items():
        if not isinstance(tensors.get(index.fqn), TensorStorageMetadata):
            path = file_of(folder, place.relative_path)
            _check_archive(path, Slice, path, place.offset, place.length)


def _check_archive(path: Path, opener: Any, *arguments: Any) -> None:
    try:
        with opener(*arguments) as file:
            torch.load(file, weights_only=True)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except Exception as error:
        raise ConfigError(
            f"{path}: refused, it is damaged or holds more than plain data: {error!r:.200}"
        ) from None


def file_of(folder: Path, name: str) -> Path:
    """A file that `.metadata` names. ConfigError where it is none of this folder."""
    if Path(name).name != name:
        raise ConfigError(f"{folder / '.metadata'}: {name!r} is no file of this folder; refused")
    return folder / name


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
