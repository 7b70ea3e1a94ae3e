"""Shards: Megatron's token files with labels and origins, whole or not there at all."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.cells import Cell
from data_prep.indexed import IndexedReader
from data_prep.inventory import Inventory, read_inventory, write_inventory
from data_prep.labels import LENGTHS, Labels, length, level
from data_prep.seal import is_sealed, read_seal
from data_prep.shards import (
    ORIGIN,
    Content,
    DocumentChunk,
    Origin,
    faults,
    origin,
    write_shard,
)
from megatron_qwen3.config import ConfigError

LABELS = Labels("web", "eng_Latn", "code", "high", "unknown", "0-4k")
INPUTS = ("a.jsonl", "b/c.parquet")


def chunk(
    documents: list[list[int]], files: list[int], lines: list[int], ids: list[str]
) -> DocumentChunk:
    ends = np.cumsum([len(name.encode()) for name in ids])
    rows = np.array(list(zip(files, lines, ends, strict=True)), ORIGIN)
    tokens = np.array([token for document in documents for token in document], np.int32)
    lengths = np.array([len(document) for document in documents])
    return DocumentChunk(tokens, lengths, rows, "".join(ids).encode())


CHUNKS = [
    chunk([[1, 2, 3], [4]], [0, 1], [7, 1], ["ä", ""]),
    chunk([[5, 6]], [1], [1 << 40], ["<urn:5>"]),
]


def write(folder: Path) -> Cell:
    cell = Cell(f"{LABELS.folder}/00000-000", LABELS, documents=3, tokens=6, bytes=20)
    assert write_shard(folder, cell.path, np.int32, [Content(cell, CHUNKS)]) == (cell,)
    return cell


def test_a_shard_is_read_back_and_says_where_each_document_came_from(tmp_path: Path) -> None:
    cell = write(tmp_path)
    inventory = Inventory(tmp_path, {"path": "tokenizer"}, 151_669, INPUTS, (cell,))
    write_inventory(inventory)
    found = read_inventory(tmp_path)
    assert replace(found, cells=tuple(found.cells)) == inventory
    prefix = tmp_path / cell.path
    assert read_seal(prefix).cells == (cell,)
    reader = IndexedReader(prefix)
    assert reader.tokens.tolist() == [1, 2, 3, 4, 5, 6]
    assert [reader.document_of(token) for token in range(6)] == [0, 0, 0, 1, 2, 2]
    expected = [("a.jsonl", 7, "ä"), ("b/c.parquet", 1, ""), ("b/c.parquet", 1 << 40, "<urn:5>")]
    assert [origin(prefix, k) for k in range(3)] == [Origin(*row) for row in expected]
    with pytest.raises(ConfigError, match="documents 0 to 2, not 3"):
        origin(prefix, 3)


@pytest.mark.parametrize("is_old", [False, True])
def test_a_shard_whose_writing_failed_has_no_seal(tmp_path: Path, is_old: bool) -> None:
    cell = write(tmp_path)  # an older, whole one is no excuse
    if is_old:
        sealed_apart(tmp_path / cell.path)

    def failing() -> Iterator[DocumentChunk]:
        yield CHUNKS[0]
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        write_shard(tmp_path, cell.path, np.int32, [Content(cell, failing())])
    assert not is_sealed(tmp_path / cell.path)
    with pytest.raises(ConfigError, match=r"00000-000\.docs does not exist: .*not whole"):
        read_seal(tmp_path / cell.path)


FILES = [(suffix, False) for suffix in ("bin", "idx", "docs")]


@pytest.mark.parametrize(
    ("suffix", "is_old"), [*FILES, *((s, True) for s, _ in FILES), ("json", True)]
)
@pytest.mark.parametrize("damage", ["changed", "cut short", "removed"])
def test_verifying_finds_any_file_that_is_not_what_was_written(
    tmp_path: Path, suffix: str, is_old: bool, damage: str
) -> None:
    cell = write(tmp_path)
    if is_old:
        sealed_apart(tmp_path / cell.path)
    assert is_sealed(tmp_path / cell.path)
    assert list(faults(tmp_path, [cell])) == []
    file = tmp_path / f"{cell.path}.{suffix}"
    content = file.read_bytes()
    file.unlink()
    if damage != "removed":
        changed = content.replace(b"3", b"4") if suffix == "json" else content[:-1] + b"x"
        file.write_bytes(changed if damage == "changed" else content[:-4])
    assert any(str(tmp_path) in fault for fault in faults(tmp_path, [cell]))


def test_any_byte_of_provenance_or_seal_that_is_another_is_found(tmp_path: Path) -> None:
    cell = write(tmp_path)
    file = tmp_path / f"{cell.path}.docs"
    whole = file.read_bytes()
    for k in range(len(whole)):
        file.write_bytes(whole[:k] + bytes([whole[k] ^ 1]) + whole[k + 1 :])
        found = list(faults(tmp_path, [cell]))
        assert found and all("\n" not in x and str(tmp_path / cell.path) in x for x in found), k
    file.write_bytes(whole)
    assert list(faults(tmp_path, [cell])) == []


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"sha256": None}, "seal of the shard is damaged"),
        ({"sha256": {"bin": "", "idx": ""}}, "damaged .KeyError.'docs'"),
        ({"tokens": "6"}, "damaged .tokens = '6'; valid: a whole number from 0"),
        ({"removed": [7]}, "seal of the shard is damaged"),
        ({"removed": [{"document": "1", "date": "", "reason": ""}]}, "is no document that was"),
        ({"version": 2}, "version 2; known: 1"),
        ({"cells": []}, "damaged .it has no cells"),
    ],
)
@pytest.mark.parametrize("is_old", [False, True])
def test_a_seal_that_makes_no_sense_is_one_line_that_names_it(
    tmp_path: Path, change: dict[str, Any], complaint: str, is_old: bool
) -> None:
    cell = write(tmp_path)
    prefix = tmp_path / cell.path
    seal = read_seal(prefix).as_json() | change
    if is_old:
        sealed_apart(prefix)
        prefix.with_suffix(".json").write_text(json.dumps(seal))
    else:
        docs, content = prefix.with_suffix(".docs"), json.dumps(seal).encode()
        provenance = docs.read_bytes()[: _provenance_bytes(docs)]
        end = len(content).to_bytes(8, "little") + b"\xfeQWSEAL\xfe"
        docs.write_bytes(provenance + content + end)
    with pytest.raises(ConfigError, match=complaint) as told:
        read_seal(prefix)
    assert str(prefix) in str(told.value) and "\n" not in str(told.value)


def _provenance_bytes(docs: Path) -> int:
    content = docs.read_bytes()
    return len(content) - 16 - int.from_bytes(content[-16:-8], "little")


def sealed_apart(prefix: Path) -> None:
    """As releases had it that knew no seal in the .docs."""
    docs = prefix.with_suffix(".docs")
    (prefix.with_suffix(".json")).write_text(json.dumps(read_seal(prefix).as_json()))
    docs.write_bytes(docs.read_bytes()[: _provenance_bytes(docs)])


def test_a_folder_without_an_inventory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"inventory\.parquet does not exist"):
        read_inventory(tmp_path)
    (tmp_path / "inventory.json").write_text('{"version": 2}')
    with pytest.raises(ConfigError, match="of version 2; known: 1"):
        read_inventory(tmp_path)


LABEL = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=8)


@given(a=st.builds(Labels, *[LABEL] * 6), b=st.builds(Labels, *[LABEL] * 6))
def test_every_combination_of_labels_has_a_folder_of_its_own_within_the_top(
    a: Labels, b: Labels
) -> None:
    assert (a.folder == b.folder) == (a == b)
    parts = a.folder.split("/")
    assert len(parts) == 6
    assert not {"", ".", ".."} & set(parts)
    assert "\0" not in a.folder


def test_levels_and_lengths_change_where_they_say() -> None:
    assert [level(v) for v in (None, 0.0, 0.33, 0.34, 0.66, 0.67, 1.0)] == [
        *("unknown", "low", "low", "medium", "medium", "high", "high")
    ]
    tokens = [0, 4095, 4096, 16383, 16384, 32767, 32768]
    assert [LENGTHS.index(length(t)) for t in tokens] == [0, 0, 1, 1, 2, 2, 3]
