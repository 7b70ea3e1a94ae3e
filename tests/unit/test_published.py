"""The published tokenizer is rebuilt, merges and all, from its ranked tokens."""

import base64
import hashlib
import json
from pathlib import Path

import pytest

from data_prep import published
from data_prep.tokenizer import train
from megatron_qwen3.config import ConfigError


def test_merges_are_found_again_from_the_ranks_alone(tmp_path: Path) -> None:
    train(
        ["The river rises in the hills. Река начинается. 河流从山里流出来。\n\n" * 9], 400, tmp_path
    )
    model = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    byte_of = {character: byte for byte, character in enumerate(published.CHARACTER_OF_BYTE)}
    rows = [
        f"{base64.b64encode(bytes(byte_of[c] for c in token)).decode()} {rank}"
        for token, rank in model["vocab"].items()
    ]
    (tmp_path / "ranks").write_text("\n".join(rows))
    published.save(tmp_path / "ranks", tmp_path / "rebuilt")
    rebuilt = json.loads((tmp_path / "rebuilt" / "tokenizer.json").read_text(encoding="utf-8"))
    assert len(model["merges"]) > 50
    assert rebuilt["model"]["merges"] == model["merges"]
    assert rebuilt["model"]["vocab"] == model["vocab"]


def test_the_rebuilt_tokenizer_is_the_published_file(published_folder: Path) -> None:
    file = (published_folder / "tokenizer.json").read_bytes()
    assert hashlib.sha256(file).hexdigest() == published.SHA256


def test_a_file_without_ranked_tokens_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        published.save(tmp_path / "nowhere", tmp_path)
    (tmp_path / "ranks").write_text("IQ== 0\nnot ranked tokens\n")
    with pytest.raises(ConfigError, match="does not hold ranked tokens"):
        published.save(tmp_path / "ranks", tmp_path)
