"""Reads a stranger's tokenizer.json so that texts stay whole, and none explodes.

    spec = read("data/tokenizer")      # as an object, without truncation and padding

Such a file can make one character a million, or have a pattern on which a search does not end. The
first is found by the growth that its normalizer allows, the second by trying unknown patterns on
awkward texts, in another process that has a minute.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

from data_prep.tokenizer_file import parse, tokenizer_json
from megatron_qwen3.config import ConfigError
from megatron_qwen3.processes import isolated
from megatron_qwen3.shown import shown

SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
MOST_GROWTH = 64  # characters that a normalizer may make of one; Unicode's own make up to 18
TRIAL_SECONDS = 60.0
_UNSAFE_NORMALIZERS = ("Precompiled",)  # tables of their own, which nothing here can measure
_PARTS = ("normalizer", "pre_tokenizer", "decoder")
_TRIAL = """
import json, resource, sys, tokenizers
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
spec, texts = json.load(sys.stdin)
tokenizer = tokenizers.Tokenizer.from_str(spec)
for text in texts:
    tokenizer.encode(text, add_special_tokens=False)
"""
_TRIAL_BYTES = 4 << 30  # of addresses, beside those for the file's own size
_TRIAL_TEXTS = [
    *(chr(point) * 2000 for point in range(32, 127)),
    *(chr(point) * 60 + "!" for point in range(32, 127)),
    " a" * 2000,
    "a1" * 2000,
    "\n \t" * 1000,
    "ab ab\n" * 1000,
]


def read(path: str | os.PathLike[str], is_trusted: bool = False) -> dict[str, Any]:
    """The file's object, its truncation and padding cleared. ConfigError names the file.

    is_trusted: another process read it before, so that patterns need not be tried again.
    """
    file = tokenizer_json(path)
    spec = parse(file)
    spec["truncation"] = spec["padding"] = None
    _check_growth(spec, file)
    unknown = set(_patterns([spec.get(part) for part in _PARTS])) - {SPLIT_PATTERN}
    if unknown and not is_trusted:
        _try_patterns(spec, file)
    return spec


def _check_growth(spec: dict[str, Any], file: Path) -> None:
    for part in ("normalizer", "decoder"):
        try:
            growth = _growth(spec.get(part))
        except (KeyError, TypeError, AttributeError, RecursionError):
            raise ConfigError(f"{file}: its {part} is not one that tokenizers know") from None
        if growth > MOST_GROWTH:
            raise ConfigError(
                f"tokenizer {file}: its {part} can make {growth:,.0f} characters of one; "
                f"valid: up to {MOST_GROWTH}"
            )


def _growth(step: Any) -> float:
    """The most characters that a normalizer or decoder makes of one, but for Unicode's own."""
    if not isinstance(step, dict):
        return 1.0
    if step["type"] == "Sequence":
        return prod(map(_growth, step.get("normalizers") or step.get("decoders") or []))
    if step["type"] in _UNSAFE_NORMALIZERS:
        return float("inf")
    if step["type"] == "Prepend":
        return 1.0 + len(step["prepend"])
    if step["type"] != "Replace":
        return 1.0
    pattern, content = step["pattern"], len(step["content"])
    shortest = len(pattern["String"]) if "String" in pattern else 0  # a pattern may match nothing
    return max(1.0, content / shortest) if shortest else 1.0 + content


def _patterns(value: Any) -> Iterator[str]:
    """All regular expressions within."""
    if isinstance(value, dict):
        if isinstance(value.get("Regex"), str):
            yield value["Regex"]
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from _patterns(inner)


def _try_patterns(spec: dict[str, Any], file: Path) -> None:
    if fault := _trial(json.dumps({**spec, "added_tokens": []})):
        raise ConfigError(f"tokenizer {file}: {fault}")


@lru_cache(maxsize=4)
def _trial(spec: str) -> str:
    """The fault of a tokenizer's patterns, or ""."""
    command, given = [sys.executable, "-P", "-c", _TRIAL], json.dumps([spec, _TRIAL_TEXTS])
    command.append(str(_TRIAL_BYTES + 64 * len(spec)))
    try:
        done = subprocess.run(
            command,
            input=given,
            capture_output=True,
            text=True,
            timeout=TRIAL_SECONDS,
            env=isolated(),
        )
    except subprocess.TimeoutExpired:
        return f"its patterns are not done with a few hundred KB in {TRIAL_SECONDS:.0f} seconds"
    if not done.returncode:
        return ""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return f"it cannot be used: {shown(lines[-1])}" if lines else "it cannot be used"
