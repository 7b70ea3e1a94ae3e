"""Whose a folder is that a command goes on with: `begin(folder, "distill")`.

Two commands that leave files of the same names in one folder would take each other's for theirs.
The first one to begin leaves its name there, in command.json.
"""

from __future__ import annotations

import json
from pathlib import Path

from megatron_qwen3.config import ConfigError
from megatron_qwen3.storage.whole import write_whole

MARK = "command.json"
_RESULTS = ("report.json", "results.json")  # of builds and of evaluations


def check_folder(option: str, folder: Path) -> None:
    """ConfigError where a file stands in the way of a folder that is to be made or used."""
    for path in (folder, *folder.parents):
        if path.is_dir():
            return
        if path.exists() or path.is_symlink():
            raise ConfigError(f"{option} {folder}: {path} is no folder; name another one")


def begin(folder: Path, command: str) -> None:
    """Take the folder for a command. ConfigError where it is another one's."""
    if owner := _owner(folder):
        if owner != command:
            raise ConfigError(
                f"--out {folder} was begun by {owner}, and {command} would overwrite what that "
                "made; name another folder"
            )
        return
    write_whole(folder / MARK, [json.dumps({"command": command}).encode(), b"\n"])


def _owner(folder: Path) -> str:
    """The command of a folder; "" where nobody has begun it."""
    if found := _table(folder / MARK).get("command"):
        return str(found)
    build, evaluation = (folder / name for name in _RESULTS)
    if evaluation.exists():
        return "evaluate"
    return str(_table(build).get("command", "")) if build.exists() else ""


def _table(path: Path) -> dict[str, object]:
    """A JSON file's table; empty where it is not there, or damaged."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
