"""Takes over the tokenizer, and the number of its tokens, with which a run's curriculum was made.

    defaults("data/curriculum.json")
    # {"data.tokenizer": "data/tokens/tokenizer", "model.vocab_size": 32000}

A run that does not set them has a model of as many tokens, reports bits per byte, and exports a
model that generates text. Values from the command line, files or a run's folder take precedence.
Nothing here imports torch.
"""

import json
import os
from pathlib import Path
from typing import Any

# Rows that every usual number of tensor-parallel ranks divides.
_MULTIPLE = 128
# Qwen3's own: so many tokens, in an embedding of so many rows.
_QWEN_TOKENS, _QWEN_ROWS = range(151_643, 151_937), 151_936


def defaults(curriculum: str) -> dict[str, Any]:
    """Values by names of settings; {} where there is no such file, which its reader reports."""
    path = Path(curriculum)
    try:
        content = json.loads(path.read_bytes())
        tokenizer, size = content["tokenizer"]["path"], content["vocab_size"]
        folder = os.path.normpath(path.parent / content["folder"] / tokenizer)
        values = {"model.vocab_size": rows(size)}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    is_there = os.path.isfile(folder) or os.path.isfile(os.path.join(folder, "tokenizer.json"))
    return values | ({"data.tokenizer": folder} if is_there else {})


def rows(tokens: int) -> int:
    """Rows of the embedding of a model with so many tokens."""
    if tokens in _QWEN_TOKENS:
        return _QWEN_ROWS
    return -(-tokens // _MULTIPLE) * _MULTIPLE
