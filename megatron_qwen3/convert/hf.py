"""Reads Hugging Face folders as files: tensors by name and place, without a library.

    source = HFFolder(folder)     # every tensor of a Qwen3, its place and its checked shape

A safetensors file is a length, a table of names, types, shapes and places in JSON, and the bytes.
`hf_writer.py` writes them; configuration and tokenizer files are `hf_config.py`'s and
`hf_files.py`'s.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatron_qwen3.config import ConfigError
from megatron_qwen3.convert.hf_config import read_config, read_long_config
from megatron_qwen3.convert.mapping import in_order
from megatron_qwen3.settings import ModelConfig
from megatron_qwen3.storage.files import read_exactly
from megatron_qwen3.storage.inside import inside, parse_json, read_small

INDEX_FILE, SINGLE_FILE = "model.safetensors.index.json", "model.safetensors"
_DTYPES = {"BF16": torch.bfloat16, "F32": torch.float32, "F16": torch.float16}
NAMES = {dtype: name for name, dtype in _DTYPES.items()}
# Other weights that transformers would load, too, or instead.
_OTHER_WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "adapter_config.json", "adapter_model.*")
_BATCH_BYTES = 1 << 20
_HEADER_BYTES = 100_000_000  # the limit of the safetensors library itself


@dataclass(frozen=True)
class FileTensor:
    """One tensor: row-major bytes of a file from `start`."""

    path: Path
    start: int
    shape: tuple[int, ...]
    dtype: torch.dtype


class HFFolder:
    """A folder with a Qwen3. ConfigError names the file and its fault.

    config: config.json, as it is and as our settings; model, rope: of these. tensors: complete:
    none is missing, unexpected or of another shape. A tied model's own copy of lm_head,
    which some folders have, must equal the embedding.
    with_dca: with Dual Chunk Attention, as config_1m.json has it.
    """

    def __init__(self, folder: Path, with_dca: bool = False) -> None:
        self.folder = folder
        self.config = read_long_config(folder) if with_dca else read_config(folder)
        self.model, self.rope = self.config.model, self.config.rope
        self.tensors = dict(_stored_tensors(folder))
        expected = _shapes(self.model)
        head = self.tensors.get("lm_head.weight")
        if self.model.tie_embeddings and head:
            _check_equal(head, self.tensors.get("model.embed_tokens.weight"))
            del self.tensors["lm_head.weight"]
        faults = [f"{name} is missing" for name in expected if name not in self.tensors]
        faults += [
            f"{name} is unexpected ({stored.path.name})"
            for name, stored in self.tensors.items()
            if name not in expected
        ]
        faults += [
            f"{name} has shape {self.tensors[name].shape}, config.json says {shape}"
            for name, shape in expected.items()
            if name in self.tensors and self.tensors[name].shape != shape
        ]
        if faults:
            more = f"\n… and {len(faults) - 20} more" if len(faults) > 20 else ""
            raise ConfigError("\n".join(f"{folder}: {fault}" for fault in faults[:20]) + more)


def _shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    return {
        weight.part_name(part, index): weight.part_shape(part)
        for weight, index in in_order(model)
        for part in range(len(weight.parts))
    }


def _stored_tensors(folder: Path) -> Iterator[tuple[str, FileTensor]]:
    """Every tensor of the files that the index names, or of the one file without an index."""
    index = folder / INDEX_FILE
    listed = _read_index(index) if index.is_file() else None
    files = [SINGLE_FILE] if listed is None else sorted(set(listed.values()))
    _check_files(folder, files, SINGLE_FILE if listed is None else INDEX_FILE)
    for file in files:
        for name, stored in _read_header(folder / file):
            if listed is not None and listed.pop(name, None) != file:
                raise ConfigError(f"{folder / file}: {name} is not listed there by {INDEX_FILE}")
            yield name, stored
    for name, file in (listed or {}).items():
        raise ConfigError(f"{folder / file}: {name} is missing, which {INDEX_FILE} lists there")


def _check_files(folder: Path, files: list[str], said_by: str) -> None:
    """ConfigError where a file of weights is missing, or one would be left unread."""
    missing = [name for name in files if not (folder / name).is_file()]
    if missing and said_by == SINGLE_FILE:
        raise ConfigError(
            f"{folder}: neither {SINGLE_FILE} nor {INDEX_FILE}; other formats are not read"
        )
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ConfigError(f"{folder / INDEX_FILE}: lists {missing[0]}{more}, not in the folder")
    found = {p.name for kind in _OTHER_WEIGHTS for p in folder.glob(kind)} - set(files)
    for name in sorted(name for name in found if not name.startswith(".")):
        raise ConfigError(
            f"{folder}: {name} lies beside {said_by}, which does not name it: two sets of weights; "
            "take away the one that is not the model"
        )


def _read_index(path: Path) -> dict[str, str]:
    try:
        inside(path.parent, path.name)
        listed = parse_json(read_small(path))["weight_map"]
        if all(Path(file).name == file for file in listed.values()):
            return dict(listed)
    except (ValueError, LookupError, TypeError, AttributeError):
        pass
    raise ConfigError(f"{path}: not an index of files beside it (weight_map)")


def _read_header(path: Path) -> Iterator[tuple[str, FileTensor]]:
    """The tensors of one safetensors file."""
    try:
        size = inside(path.parent, path.name).stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))
            is_table = 0 < length <= min(size - 8, _HEADER_BYTES)
            table = parse_json(file.read(length)) if is_table else None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError:
        table = None
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: not a safetensors file, or truncated within its table")
    table.pop("__metadata__", None)
    data = 8 + length
    tensors = {name: _stored(path, name, entry, data, size) for name, entry in table.items()}
    end = data
    for stored in sorted(tensors.values(), key=lambda stored: stored.start):
        if stored.start != end:
            raise ConfigError(f"{path}: damaged, its tensors overlap or leave gaps at byte {end}")
        end += prod(stored.shape) * stored.dtype.itemsize
    yield from tensors.items()


def _stored(path: Path, name: str, entry: Any, data: int, size: int) -> FileTensor:
    try:
        kind, shape = entry["dtype"], tuple(entry["shape"])
        start, end = entry["data_offsets"]
        if type(kind) is not str or any(type(n) is not int or n < 0 for n in (*shape, start, end)):
            raise ValueError("no type, or no whole number")
    except (LookupError, TypeError, ValueError):
        raise ConfigError(f"{path}: the table's entry of {name} is damaged") from None
    if kind not in _DTYPES:
        raise ConfigError(f"{path}: {name} is {kind}; valid: {', '.join(_DTYPES)}")
    if start < 0 or end - start != prod(shape) * _DTYPES[kind].itemsize:
        raise ConfigError(f"{path}: the table's entry of {name} is damaged")
    if data + end > size:
        raise ConfigError(f"{path}: truncated, {name} ends at byte {data + end} of {size}")
    return FileTensor(path, data + start, shape, _DTYPES[kind])


def _check_equal(head: FileTensor, embedding: FileTensor | None) -> None:
    """ConfigError unless a tied model's lm_head is the embedding."""
    if embedding and (head.shape, head.dtype) == (embedding.shape, embedding.dtype):
        total = prod(head.shape) * head.dtype.itemsize
        for start in range(0, total, _BATCH_BYTES):
            count = min(_BATCH_BYTES, total - start)
            ours, theirs = np.empty(count, np.uint8), np.empty(count, np.uint8)
            read_exactly(head.path, head.start + start, ours)
            read_exactly(embedding.path, embedding.start + start, theirs)
            if not np.array_equal(ours, theirs):
                break
        else:
            return
    raise ConfigError(
        f"{head.path}: lm_head.weight is not model.embed_tokens.weight, but config.json says "
        "tie_word_embeddings = true"
    )
