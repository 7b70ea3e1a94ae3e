"""A checkpoint's manifest.json: the size and the CRC-32 of every other file, and its check.

    write(folder, {"__0_0.distcp": Seal(bytes=4096, crc32=0x1c291ca3), ...})
    faults(folder)                      # checks every file's size, and the content of small ones
    faults(folder, share=(rank, ranks)) # and the content of every `ranks`-th file

    python -m megatron_qwen3.storage.manifest runs/my-8b/checkpoints/step_00000040

A checksum finds damage by a crash, a full disk or a bad one; CRC-32 runs at the speed of memory, so
that a run can afford it at every start. It is no defence against forged files: `table.py` is.
Nothing here imports torch.
"""

import json
import os
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from megatron_qwen3 import entry
from megatron_qwen3.settings import ConfigError
from megatron_qwen3.shown import shown
from megatron_qwen3.storage.inside import inside, parse_json, read_small

FILE_NAME = "manifest.json"
SMALL_BYTES = 1 << 16  # settings and progress are read before any rank starts: always checked
_READ_BYTES = 1 << 22
_LOADED = ("config.toml", "progress.json", "metadata.json", ".metadata")  # and all .distcp files


class Seal(NamedTuple):
    """The size and checksum by which a file's content is recognized."""

    bytes: int
    crc32: int


def seal(path: Path) -> Seal:
    """Read a file. OSError where it cannot be read."""
    size = crc32 = 0
    with path.open("rb", buffering=0) as file:
        while block := file.read(_READ_BYTES):
            size, crc32 = size + len(block), zlib.crc32(block, crc32)
    return Seal(size, crc32)


def write(folder: Path, seals: Mapping[str, Seal]) -> None:
    """Write manifest.json; it is on disk when this returns."""
    rows = {
        name: {"bytes": s.bytes, "crc32": f"{s.crc32:08x}"} for name, s in sorted(seals.items())
    }
    write_durably(folder / FILE_NAME, json.dumps({"version": 1, "files": rows}, indent=1) + "\n")


def read(folder: Path) -> dict[str, Seal]:
    """The seal of every file. ValueError says why there is no usable manifest."""
    try:
        inside(folder, FILE_NAME)
        rows = parse_json(read_small(folder / FILE_NAME))["files"]
        seals = {name: _seal(row) for name, row in rows.items()}
    except OSError as error:
        raise ValueError(f"{FILE_NAME}: {error.strerror}") from None
    except ConfigError as error:
        raise ValueError(str(error)) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{FILE_NAME}: damaged") from None
    if not seals:
        raise ValueError(f"{FILE_NAME}: names no file")
    return seals


def _seal(row: Any) -> Seal:
    size, crc32 = row["bytes"], row["crc32"]
    if type(size) is not int or type(crc32) is not str or len(crc32) > 8:
        raise ValueError("no seal")
    return Seal(size, int(crc32, 16))


def faults(folder: Path, share: tuple[int, int] | None = None) -> list[str]:
    """The faults of a checkpoint, a line per file; [] where none is found.

    Every file must exist with its size, and small ones with their content. With share = (n, of),
    files n, n + of, … are read and compared as well: `of` ranks together read everything once.
    Files that a load reads must be listed, and listed ones must be plain files of the folder.
    """
    try:
        seals = read(folder)
        unlisted = sorted(_loaded(folder) - seals.keys())
    except OSError as error:
        return [error.strerror or str(error)]
    except ValueError as error:
        return [str(error)]
    first, step = share or (0, 1)
    return [f"{shown(name)}: not listed in {FILE_NAME}" for name in unlisted] + [
        f"{shown(name)}: {fault}"
        for number, (name, sealed) in enumerate(sorted(seals.items()))
        for fault in [_fault(folder, name, sealed, share is not None and number % step == first)]
        if fault
    ]


def _loaded(folder: Path) -> set[str]:
    """Names of the files there that belong to weights, optimizer, settings and progress."""
    names = os.listdir(folder)
    return {name for name in names if name in _LOADED or name.endswith(".distcp")}


def _fault(folder: Path, name: str, sealed: Seal, in_full: bool) -> str:
    try:
        path = inside(folder, name)
        size = path.stat().st_size
        if size != sealed.bytes:
            return f"{size:,} bytes, saved with {sealed.bytes:,}"
        if (in_full or size <= SMALL_BYTES) and seal(path) != sealed:
            return "its contents are not those that were saved (checksum)"
    except ConfigError as error:
        return str(error)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def write_durably(path: Path, text: str) -> None:
    """Write a small file; its contents are on the disk when this returns."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def main(folders: list[str]) -> int:
    """Check whole checkpoints; the exit status: 0 intact, 1 damaged, 2 called wrongly."""
    if not folders or folders[0].startswith("-"):
        print(shown(f"usage: python -m {__spec__.name} CHECKPOINT …"), file=sys.stderr)
        return 2
    damaged = 0
    for folder in folders:
        found = faults(Path(folder), share=(0, 1))
        damaged += bool(found)
        for line in found or ["intact"]:
            print(shown(f"{folder}: {line}"))
    return 1 if damaged else 0


if __name__ == "__main__":
    entry.run(lambda: main(sys.argv[1:]))
