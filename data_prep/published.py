"""Rebuilds Qwen3's published tokenizer from the ranked tokens that Qwen distributes on PyPI.

The Python package `dashscope` (Apache-2.0) carries them in tiktoken's form: one token and its rank
a line. The published tokenizer.json holds the same tokens with the merge that makes each; merges
are found again by merging a token's bytes with the lower ranks alone until two parts are left.
This gives the exact tokenizer to users who cannot reach the model's own files.

    python -m pip install --no-deps dashscope
    save(ranks_file(), "runs/tokenizer")  # tokenizer.json, byte for byte the published one
"""

import base64
import importlib.util
import json
import os
from pathlib import Path

import tokenizers
from tokenizers import models

from data_prep.tokenizer import untrained, write
from megatron_qwen3.config import ConfigError

SHA256 = "aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4"  # of tokenizer.json
PACKAGE = "dashscope"


def ranks_file() -> Path:
    """The installed package's file of ranked tokens; ConfigError if it is not installed."""
    package = importlib.util.find_spec(PACKAGE)
    if package is None or package.origin is None:
        raise ConfigError(f"{PACKAGE} is not installed: python -m pip install --no-deps {PACKAGE}")
    return Path(package.origin).parent / "resources" / "qwen.tiktoken"


def save(ranks: str | os.PathLike[str], folder: str | os.PathLike[str]) -> None:
    """Write a tokenizer folder in Hugging Face's format from a file of ranked tokens."""
    rank_of = _read_ranks(Path(ranks))
    spec = json.loads(untrained().to_str())
    spec["decoder"] = spec["post_processor"]  # flags that decode nothing, and no constructor takes
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(spec))
    tokenizer.model = _model(rank_of)
    write(tokenizer, folder)


def _model(rank_of: dict[bytes, int]) -> models.BPE:
    in_order = sorted(rank_of, key=rank_of.__getitem__)
    merges = [_halves(token, rank_of) for token in in_order if len(token) > 1]
    return models.BPE(
        vocab={_characters(token): rank for token, rank in rank_of.items()},
        merges=[(_characters(left), _characters(right)) for left, right in merges],
        continuing_subword_prefix="",
        end_of_word_suffix="",
    )


def _halves(token: bytes, rank_of: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The two tokens whose merge makes this one: the result of BPE without that merge."""
    parts = [token[k : k + 1] for k in range(len(token))]
    while len(parts) > 2:
        pairs = [left + right for left, right in zip(parts, parts[1:], strict=False)]
        best = min(range(len(pairs)), key=lambda k: rank_of.get(pairs[k], len(rank_of)))
        parts[best : best + 2] = [pairs[best]]
    return parts[0], parts[1]


def _characters(token: bytes) -> str:
    return "".join(CHARACTER_OF_BYTE[byte] for byte in token)


def _read_ranks(file: Path) -> dict[bytes, int]:
    try:
        rows = [line.split() for line in file.read_bytes().splitlines()]
        return {base64.b64decode(token): int(rank) for token, rank in rows}
    except FileNotFoundError:
        raise ConfigError(f"{file} does not exist") from None
    except ValueError as error:
        raise ConfigError(f"{file} does not hold ranked tokens: {error}") from None


def _characters_of_bytes() -> list[str]:
    """Byte-level BPE's alphabet: printable Latin-1 as itself, other bytes from U+0100 on."""
    others = iter(range(256, 512))
    shown = {*range(33, 127), *range(161, 173), *range(174, 256)}
    return [chr(byte if byte in shown else next(others)) for byte in range(256)]


CHARACTER_OF_BYTE = _characters_of_bytes()
