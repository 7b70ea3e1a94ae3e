"""Finds this machine's copy of a model or tokenizer that is named as on Hugging Face's hub.

    folder_of("Qwen/Qwen3-8B", "tokenizer.json")  # its snapshot in the hub's cache
    folder_of("data/tokenizer", "tokenizer.json")  # a folder is itself
    tokenizer_folder(config.data.tokenizer)        # errors name the setting

Nothing is fetched: a machine that trains often reaches no network, and a run must not change with
the contents of the hub. Where there is no copy the error names the command that fetches one.
"""

import os
import re
from pathlib import Path

from megatron_qwen3.settings import ConfigError

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def is_id(name: str) -> bool:
    """Whether it may be a name on the hub, and is no path here."""
    return bool(_ID.fullmatch(name)) and not os.path.exists(name)


def folder_of(name: str, file: str) -> Path:
    """The folder `name`, or the copy of that name that has `file`.

    Raises ConfigError where there is none.
    """
    if not is_id(name):
        return Path(name)
    for snapshot in _snapshots(place(name)):
        if (snapshot / file).is_file():
            return snapshot
    raise ConfigError(
        f"{name} is neither a path here nor in Hugging Face's cache ({cache()}) with its {file}; "
        f"where there is a network: hf download {name} {file} --local-dir FOLDER, and give FOLDER"
    )


def tokenizer_folder(named: str, setting: str = "data.tokenizer") -> Path:
    """The folder of the tokenizer that `setting` names: itself, that of its file, or the copy of a
    name on the hub.

    Raises ConfigError where this machine has none; it names the setting, and how to get a copy.
    """
    try:
        where = folder_of(named, "tokenizer.json")
    except ConfigError as error:
        raise ConfigError(f"{setting} = {error}, as {setting}") from None
    if not where.exists():
        raise ConfigError(
            f"{setting} = {named} does not exist; valid: a folder with tokenizer.json, that file, "
            "or a name on Hugging Face's hub with a copy on this machine"
        )
    return where if where.is_dir() else where.parent


def place(name: str) -> Path:
    """The folder of all that the cache has of a name; files of its snapshots are links within."""
    return cache() / f"models--{name.replace('/', '--')}"


def cache() -> Path:
    """The folder in which Hugging Face's own programs keep downloaded files."""
    home = os.environ.get("HF_HOME") or "~/.cache/huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub")).expanduser()


def _snapshots(folder: Path) -> list[Path]:
    """The snapshot that `main` names first, where it is known, then the others, newest first."""
    named = folder / "refs" / "main"
    try:
        main = named.read_text(encoding="utf-8").strip() if named.is_file() else ""
        found = list((folder / "snapshots").iterdir())
    except OSError:
        return []
    return sorted(found, key=lambda one: (one.name == main, one.stat().st_mtime), reverse=True)
