"""The files of a record of rollouts: their names, arrays without pickles, checksums. No torch.

content = packed({"ids": ids})                 # of a file that read_arrays(path, ("ids",)) reads
check_sum(folder, ARRAYS_FILE, about)          # ValueError where it differs from record.json
"""

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_qwen3.settings import ConfigError
from megatron_qwen3.storage.inside import inside
from megatron_qwen3.storage.whole import write_whole

ARRAYS_FILE, RECORD_FILE, SAMPLES_FILE = "rollouts.npz", "record.json", "samples.jsonl"
OLD_FILE, RATES_FILE = "old.npz", "rates.json"
TASK_RATES = "task_rates"  # in the Asker's state
SUMS = "sha256"  # of files, by name; record.json's is of its other entries
Array = npt.NDArray[Any]


def packed(arrays: Mapping[str, Array]) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def read_arrays(path: Path, names: Iterable[str]) -> dict[str, Array]:
    """Arrays of a record's file. OSError, ValueError, LookupError, BadZipFile: it is damaged."""
    try:
        with np.load(inside(path.parent, path.name), allow_pickle=False) as arrays:
            return {key: arrays[key] for key in names}
    except (EOFError, RuntimeError, zlib.error) as error:  # an empty file, a zip of another kind
        raise ValueError(str(error)) from None


def apart(about: Mapping[str, Any]) -> tuple[dict[str, Any], bytes]:
    """`about` as JSON gives it back, without the pass rates of single tasks; and these as bytes,
    b"" if none. There are as many rates as tasks, and only the next batch needs them."""
    found = json.loads(json.dumps(about))
    asking = found["state"].get("asking", {})
    rates = asking.pop(TASK_RATES, None)
    return found, json.dumps(rates).encode() if rates else b""


def sum_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def check_sum(folder: Path, name: str, about: Mapping[str, Any]) -> None:
    """ValueError where a file's sha256 is not that of record.json; older records have none."""
    expected = about.get(SUMS, {}).get(name)
    if expected is None:
        return
    with inside(folder, name).open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != expected:
            raise ValueError(f"{name} has another sha256 than {RECORD_FILE} says")


def check_own_sum(about: dict[str, Any]) -> None:
    """ValueError where record.json was changed after it was written; older records have no sum."""
    sums = dict(about.get(SUMS, {}))
    expected = sums.pop(RECORD_FILE, None)
    if expected is not None and sum_of(json.dumps(about | {SUMS: sums}).encode()) != expected:
        raise ValueError(f"{RECORD_FILE} has another sha256 than it says")


def write_old(folder: Path, log_probs: Array) -> None:
    """Store the trainer's log-probs of all tokens, float32 [T], before the batch's first update."""
    write_whole(folder / OLD_FILE, [packed({"log_probs": log_probs.astype(np.float32)})])


def read_old(folder: Path, tokens: int) -> Array | None:
    """The log-probs that `write_old` stored, for so many tokens; None where it stored none."""
    if not (folder / OLD_FILE).exists():
        return None
    try:
        found: Array = read_arrays(folder / OLD_FILE, ("log_probs",))["log_probs"]
        if found.shape != (tokens,):
            raise ValueError(f"{len(found)} log-probs of {tokens} tokens")
    except (OSError, ValueError, LookupError, zipfile.BadZipFile) as error:
        raise damaged(folder, error) from None
    return found


def damaged(folder: Path, error: Exception) -> ConfigError:
    """A ConfigError of one line, with the way out."""
    why = error.strerror if isinstance(error, OSError) and error.strerror else error
    return ConfigError(
        f"{folder}: not a whole record of rollouts: {why}; remove it and all later ones, and "
        "its tasks are asked again"
    )
