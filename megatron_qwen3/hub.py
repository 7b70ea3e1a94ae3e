"""Names of Hugging Face's hub, as `Qwen/Qwen3-8B`, and the copies of them on this machine.

    folder_of("Qwen/Qwen3-8B", "tokenizer.json")  # its snapshot in the hub's cache
    folder_of("data/tokenizer", "tokenizer.json")  # a folder is itself

Nothing is fetched: a machine that trains often reaches no network, and a run must not change with
what lies on the hub. Where there is no copy the error says how to get one.
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

    ConfigError where there is none.
    """
    if not is_id(name):
        return Path(name)
    place = cache() / f"models--{name.replace('/', '--')}"
    for snapshot in _snapshots(place):
        if (snapshot / file).is_file():
            return snapshot
    raise ConfigError(
        f"{name} is neither a path here nor in Hugging Face's cache ({cache()}) with its {file}; "
        f"where there is a network: hf download {name} {file} --local-dir FOLDER, and give FOLDER"
    )


def cache() -> Path:
    """Where Hugging Face's own programs keep what they fetch."""
    home = os.environ.get("HF_HOME") or "~/.cache/huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub")).expanduser()


def _snapshots(place: Path) -> list[Path]:
    """What `main` names first, where it is known, then the others, the newest before."""
    named = place / "refs" / "main"
    try:
        main = named.read_text(encoding="utf-8").strip() if named.is_file() else ""
        found = list((place / "snapshots").iterdir())
    except OSError:
        return []
    return sorted(found, key=lambda one: (one.name == main, one.stat().st_mtime), reverse=True)
