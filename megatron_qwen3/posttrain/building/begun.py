"""Marks an output folder with the command that began it: `begin(folder, "distill")`.

Two commands that write files of the same names into one folder would take each other's files for
their own. So the first one writes its name into command.json there.
"""

import json
from pathlib import Path

from megatron_qwen3.config import ConfigError
from megatron_qwen3.storage.whole import write_whole

MARK = "command.json"
_RESULTS = ("report.json", "results.json")  # of builds and of evaluations


def check_folder(option: str, folder: Path) -> None:
    """ConfigError where a file is in the way of a folder that is to be made or used."""
    for path in (folder, *folder.parents):
        if path.is_dir():
            return
        if path.exists() or path.is_symlink():
            raise ConfigError(f"{option} {folder}: {path} is no folder; name another one")


def begin(folder: Path, command: str) -> None:
    """Claim the folder for a command. ConfigError where another command began it."""
    if owner := _owner(folder):
        if owner != command:
            raise ConfigError(
                f"--out {folder} was begun by {owner}, whose files {command} would overwrite; "
                "name another folder"
            )
        return
    write_whole(folder / MARK, [json.dumps({"command": command}).encode(), b"\n"])


def _owner(folder: Path) -> str:
    """The command of a folder; "" where none began it."""
    if found := _table(folder / MARK).get("command"):
        return str(found)
    build, evaluation = (folder / name for name in _RESULTS)
    if evaluation.exists():
        return "evaluate"
    return str(_table(build).get("command", "")) if build.exists() else ""


def _table(path: Path) -> dict[str, object]:
    """A JSON file's table; empty where the file is missing or damaged."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
