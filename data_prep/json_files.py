"""Reads and writes JSON files of ours: there whole or not at all, with the version of the content.

write_json(path, {"version": VERSION, ...})
content = read_json(path, "the shard is not whole")     # ConfigError, which ends so, where none
"""

import json
from pathlib import Path
from typing import Any

from megatron_qwen3.config import ConfigError
from megatron_qwen3.storage.whole import write_whole

VERSION = 1


def write_json(path: Path, content: Any) -> None:
    """A JSON file that is there whole or not at all."""
    write_whole(path, [json_bytes(content, indent=1) + b"\n"])


def json_bytes(content: Any, indent: int | None = None) -> bytes:
    """JSON in UTF-8; a byte of a file's name that is none of it is escaped, and read back as it was
    (PEP 383)."""
    text = json.dumps(content, ensure_ascii=False, indent=indent)
    return text.encode("utf-8", "backslashreplace")


def read_json(path: Path, otherwise: str, version: int = VERSION) -> dict[str, Any]:
    """A file that `write_json` wrote; ConfigError, which ends in `otherwise`, where it is none."""
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist: {otherwise}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} is not an object of JSON: {otherwise}")
    if content.get("version") != version:
        raise ConfigError(f"{path} is of version {content.get('version')}; known: {version}")
    return content
