"""Reads study files: TOML into a dataclass, strictly, and settings as the trainer takes them.

study = read(Path("examples/studies/sweep_cpu.toml"), Sweep)
config = configure(["examples/models/tiny_moe.toml", "parallel.tensor=2"])
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from megatron_qwen3 import config as settings
from megatron_qwen3.config import Config, ConfigError
from megatron_qwen3.toml import as_kind, read_toml

T = TypeVar("T")


def read(path: Path, kind: type[T]) -> T:
    """The file as a dataclass; ConfigError names the key that is unknown, missing or wrong."""
    study: T = as_kind(read_toml(path, "a study"), kind, path)
    return study


def configure(items: Iterable[str]) -> Config:
    """The configuration of TOML files and key=value pairs, in the trainer's order."""
    return settings.load(*settings.split(items))


def check_names(folder: str, names: Iterable[str]) -> None:
    """ConfigError for a name that is none for a folder: they stand in paths and in job scripts.

    folder: where all of it goes; there may be spaces on the way to it.
    """
    for name in (folder.replace(" ", "_"), *names):
        if not re.fullmatch(r"[\w./-]+", name):
            raise ConfigError(f"{name!r} is no name for a folder; valid: letters, digits, _ . - /")
