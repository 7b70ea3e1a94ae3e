"""Reads a tokenizer.json: `parse(path)`, and checks of its parts.

    cut_note("data/tokenizer")         # "… asks for truncation to 512 tokens; …", or ""
    token_bytes("data/tokenizer")      # UTF-8 bytes per id, for bits per byte

Hugging Face saves two settings of the tokenizer's user in it: `truncation`, which cuts every text,
and `padding`, which fills it up. Neither belongs to a vocabulary, and in training text, samples and
comparisons both do harm unnoticed. Copies of the file stay as they are; code that encodes reads it
by `tokenizer_trust.read`. No tokenizer is made here.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_qwen3.config import ConfigError
from megatron_qwen3.hub import folder_of

_MOST_TOKENS = 1 << 28  # as of model.vocab_size


def tokenizer_json(path: str | os.PathLike[str]) -> Path:
    """The file itself, of a tokenizer's folder, file, or name on Hugging Face's hub.

    ConfigError where such a name has no copy on this machine.
    """
    where = folder_of(os.fspath(path), "tokenizer.json")
    return where / "tokenizer.json" if where.is_dir() else where


def cut_note(path: str | os.PathLike[str]) -> str:
    """A run's note on a truncation or padding that it leaves aside, or ""."""
    file = tokenizer_json(path)
    spec = parse(file)
    asked = []
    if cut := spec.get("truncation"):
        length = cut.get("max_length") if isinstance(cut, dict) else cut
        asked.append(f"truncation to {length} tokens")
    if spec.get("padding"):
        asked.append("padding")
    if not asked:
        return ""
    return f"{file} asks for {' and '.join(asked)}: left aside, texts are neither cut nor filled"


def check_byte_level(spec: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Raise ConfigError where the tokens are no strings of bytes, a character for each."""
    file = tokenizer_json(path)
    model = spec.get("model")
    if not isinstance(model, dict) or model.get("type") != "BPE":
        raise ConfigError(f"{file} is not a byte-level BPE tokenizer")
    if model.get("byte_fallback"):
        raise ConfigError(
            f"{file} is not a byte-level BPE tokenizer: it writes characters, and bytes only where "
            "it knows none (byte_fallback); valid: tokenizers of Qwen's, GPT-2's or Llama 3's kind"
        )
    if "ByteLevel" not in _types(spec.get("pre_tokenizer")):
        raise ConfigError(
            f"{file} is not a byte-level BPE tokenizer: its pre_tokenizer has no ByteLevel"
        )


def ids_by_token(
    spec: dict[str, Any], path: str | os.PathLike[str]
) -> tuple[dict[str, int], dict[str, int]]:
    """The ids of the model's tokens, and of those that were added. ConfigError where one is none.

    Arrays are as long as the largest id, which may therefore not be just any number.
    """
    try:
        known: dict[str, int] = dict(spec["model"]["vocab"].items())
        added = {token["content"]: token["id"] for token in spec.get("added_tokens", [])}
        ids = [*known.values(), *added.values()]
        if known and all(type(number) is int and 0 <= number < _MOST_TOKENS for number in ids):
            return known, added
    except (KeyError, TypeError, AttributeError):
        pass
    raise ConfigError(
        f"{tokenizer_json(path)} is damaged: its tokens do not all have ids, whole numbers below "
        f"{_MOST_TOKENS:,}"
    )


def token_bytes(path: str | os.PathLike[str]) -> npt.NDArray[np.int64]:
    """UTF-8 bytes that each id stands for, [vocabulary size]; 0 for control tokens and unused ids.

    Over an encoded document they sum to the bytes of its text in NFC.
    """
    spec = parse(path)
    check_byte_level(spec, path)
    vocabulary, added = ids_by_token(spec, path)
    count = np.zeros(1 + max([*vocabulary.values(), *added.values()]), np.int64)
    for token, index in vocabulary.items():
        count[index] = len(token)  # byte-level BPE writes each byte as one character
    count[sorted(added.values())] = 0
    return count


def parse(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The file's object as it is. ConfigError names the file."""
    file = tokenizer_json(path)
    try:
        spec = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{file} does not exist; a tokenizer is its folder or a file") from None
    except (ValueError, RecursionError, OSError) as error:
        raise ConfigError(f"{file} is not a tokenizer.json: {error}") from None
    if not isinstance(spec, dict) or not isinstance(spec.get("added_tokens", []), list):
        raise ConfigError(f"{file} is not a tokenizer.json")
    return spec


def _types(step: Any) -> set[str]:
    """The kinds of a pre-tokenizer and of those it is a sequence of."""
    if not isinstance(step, dict):
        return set()
    inner = [kind for part in step.get("pretokenizers") or [] for kind in _types(part)]
    return {str(step.get("type")), *inner}
