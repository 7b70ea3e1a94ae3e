"""Refuses model files that ask for code to run, or for weights and kernels to fetch.

    read_json(path, "no model")  # config.json, generation_config.json, tokenizer_config.json

transformers obeys such entries: it runs modules of Python beside the files, and fetches kernels of
the hub. A converted model would pass that on to its users.
"""

import re
from pathlib import Path
from typing import Any

from megatron_qwen3.config import ConfigError
from megatron_qwen3.shown import shown
from megatron_qwen3.storage.inside import inside, parse_json, read_small

# Files that may ask for code to run.
MAY_ASK = (
    *("config.json", "config_1m.json"),
    *("generation_config.json", "tokenizer_config.json"),
)
_NEVER = {
    "auto_map": "code of its own",
    "custom_generate": "code of its own",
    "custom_pipelines": "code of its own",
    "trust_remote_code": "code of its own",
    "quantization_config": "quantized weights",
    "compression_config": "quantized weights",
    "peft_config": "an adapter",
    "transformers_weights": "weights of another file",
    "kernel_config": "kernels to fetch",
    "use_kernels": "kernels to fetch",
}
_PLAIN = re.compile(r"[a-z0-9_]*")  # sdpa, flash_attention_2; kernels of the hub have a / or more


def _refuse_code(path: Path, content: dict[str, Any]) -> None:
    """ConfigError where the content of a file of a model, at any depth, asks for that."""
    todo: list[Any] = [content]
    while todo:
        item = todo.pop()
        if isinstance(item, list):
            todo += item
        elif isinstance(item, dict):
            todo += item.values()
            for name, value in item.items():
                _refuse(path, name, value)


def _refuse(path: Path, name: str, value: Any) -> None:
    if value in (None, False, "", [], {}):
        return
    asked = _NEVER.get(name)
    if name.endswith("_implementation") or name.endswith("_implementation_internal"):
        names = value.values() if isinstance(value, dict) else [value]
        if not all(isinstance(n, str) and _PLAIN.fullmatch(n) for n in names):
            asked = "kernels to fetch"
    if asked:
        raise ConfigError(
            f"{shown(path)}: {name} = {shown(repr(value))[:80]} asks for {asked}; "
            "such models are not read"
        )


def read_json(path: Path, otherwise: str) -> dict[str, Any]:
    """A JSON table of a model's folder. ConfigError, which ends with `otherwise`, if it is
    refused."""
    try:
        inside(path.parent, path.name)
        content = parse_json(read_small(path))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}): {otherwise}") from None
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON ({error}): {otherwise}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: not a table in JSON: {otherwise}")
    if path.name in MAY_ASK:
        _refuse_code(path, content)
    return content
