"""The folder of a run's checkpoints, {run folder}/checkpoints/step_00000040, and their names.

A checkpoint is written under a name that no reader accepts, `step_00000040.partial`, and gets its
own by one rename (`publish`) when every file and the manifest are on disk. So a folder of that name
was once whole; `manifest.faults` tells whether it still is. A damaged one is set aside as
`step_00000040.damaged`, for a person to inspect, until a newer one is saved. A checkpoint to be
deleted loses its name first. One rank does all of this. Nothing here imports torch.
"""

import os
import shutil
from pathlib import Path

from megatron_qwen3.settings import ConfigError
from megatron_qwen3.shown import shown
from megatron_qwen3.storage import manifest
from megatron_qwen3.storage.table import read_table
from megatron_qwen3.storage.whole import LONGEST_NAME, sync, sync_tree

SETTINGS_FILE = "config.toml"
_NAME = "step_" + "[0-9]" * 8
_LONGEST_PATH = 4000  # bytes; Linux allows 4096, file names included


def checkpoints(run_dir: Path) -> list[Path]:
    """All folders in a run folder that have a checkpoint's name, oldest first."""
    return sorted((run_dir / "checkpoints").glob(_NAME))


def step_of(checkpoint: Path) -> int:
    """Number of optimizer steps done when it was saved."""
    return int(checkpoint.name.removeprefix("step_"))


def newest(run_dir: Path) -> Path | None:
    """The newest whose files all exist with their sizes; None without one."""
    return next((c for c in reversed(checkpoints(run_dir)) if not manifest.faults(c)), None)


def check_writable(run_dir: Path) -> None:
    """ConfigError where a run folder can neither be made nor written to; makes nothing."""
    try:
        fault = _write_fault(run_dir)
    except (OSError, ValueError) as error:
        fault = getattr(error, "strerror", None) or str(error)
    if fault:
        raise ConfigError(f"run.dir, run.name: {shown(run_dir)} cannot be written, {fault}")


def check_file(option: str, path: Path) -> None:
    """ConfigError where no file can be written at `path`: before the work that it is to keep."""
    if path.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
        raise ConfigError(f"{option} {path}: no file can be written there")


def _write_fault(run_dir: Path) -> str:
    """Why a folder can neither be made nor written to; "" where it can."""
    if "\0" in str(run_dir):
        return "its name has a null byte"
    for name in run_dir.parts:
        if (size := len(os.fsencode(name))) > LONGEST_NAME:
            return f"{shown(name[:20])}… has {size} bytes, a name {LONGEST_NAME} at most"
    if len(os.fsencode(named(run_dir.absolute(), 0))) > _LONGEST_PATH:
        return f"its path has more than {_LONGEST_PATH} bytes with those of checkpoints"
    there = [path for path in (run_dir, *run_dir.parents) if os.path.lexists(path)][:1]
    for path in (*there, run_dir / "checkpoints"):
        if path.is_symlink() and not path.exists():
            return f"{shown(path)} is a link to {shown(path.readlink())}, which is not there"
        if path.exists() and not path.is_dir():
            return f"{shown(path)} is not a folder"
        if path.exists() and not os.access(path, os.W_OK | os.X_OK):
            return f"{shown(path)} is not writable"
    return ""


def is_hf(folder: Path) -> bool:
    """Whether a folder seems to hold a model in Hugging Face's format."""
    return (folder / "config.json").is_file()


def find(path: str) -> Path:
    """The checkpoint that `path` names: itself, or the newest of a run folder. ConfigError.

    A damaged newest one is an error, too, since earlier steps are not what the user asked for. So
    is a checkpoint with a pickle that would run code.
    """
    folder = Path(path)
    if (folder / SETTINGS_FILE).exists() and (folder / "metadata.json").exists():
        if found := manifest.faults(folder):
            raise ConfigError(f"{folder} is damaged: {'; '.join(found[:5])}")
        read_table(folder)
        return folder
    if saved := checkpoints(folder):
        if not (found := manifest.faults(saved[-1])):
            read_table(saved[-1])
            return saved[-1]
        older = newest(folder)
        told = (
            f"the newest is damaged, {older} is whole" if older else "every checkpoint is damaged"
        )
        raise ConfigError(f"{folder}: {told}; {saved[-1].name}: {found[0]}")
    raise ConfigError(
        f'checkpoint.init_from = "{path}" is neither a checkpoint nor a run folder with one, nor '
        "a folder of Hugging Face's format; train the stage before it first, or set "
        "checkpoint.init_from="
    )


def partial(run_dir: Path, step: int) -> Path:
    """The folder in which a step's checkpoint is written."""
    return named(run_dir, step).with_suffix(".partial")


def named(run_dir: Path, step: int) -> Path:
    """The folder of a step's checkpoint once it is whole."""
    return run_dir / "checkpoints" / f"step_{step:08d}"


def publish(partial: Path) -> Path:
    """Give a written checkpoint its name; from then on it counts, even after a power cut."""
    sync_tree(partial)
    final = partial.with_suffix("")
    old = _nameless(final)
    if final.exists():
        final.rename(old)
    partial.rename(final)
    sync(final.parent)
    shutil.rmtree(old, ignore_errors=True)
    return final


def retain(run_dir: Path, keep: int, keep_every_steps: int) -> None:
    """Delete all but the newest `keep` and every one whose step `keep_every_steps` divides.

    Nothing is deleted unless the newest is whole, and none that is damaged counts as kept.
    """
    whole = [c for c in checkpoints(run_dir) if not manifest.faults(c)]
    if not whole or whole[-1] != checkpoints(run_dir)[-1]:
        return
    for old in whole[:-keep]:
        if not (keep_every_steps and step_of(old) % keep_every_steps == 0):
            delete(old)
    for damaged in (run_dir / "checkpoints").glob(f"{_NAME}.damaged"):
        delete(damaged)


def clean(run_dir: Path) -> None:
    """Remove half-written or half-deleted checkpoints of a killed run."""
    for rest in (run_dir / "checkpoints").glob(f"{_NAME}*.partial"):
        shutil.rmtree(rest, ignore_errors=True)


def set_aside(checkpoint: Path) -> Path:
    """Rename a damaged checkpoint, so that it can be inspected but is not used."""
    aside = checkpoint.with_name(f"{checkpoint.name}.damaged")
    shutil.rmtree(aside, ignore_errors=True)
    checkpoint.rename(aside)
    return aside


def delete(checkpoint: Path) -> None:
    """Remove a checkpoint; if killed half-way, `clean` removes the rest."""
    nameless = _nameless(checkpoint)
    checkpoint.rename(nameless)
    shutil.rmtree(nameless, ignore_errors=True)


def _nameless(checkpoint: Path) -> Path:
    """A free name that no reader accepts and `clean` removes."""
    nameless = checkpoint.with_name(f"{checkpoint.stem}.old.partial")
    shutil.rmtree(nameless, ignore_errors=True)
    return nameless
