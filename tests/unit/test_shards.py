"""Shards: Megatron's token files with labels and origins, whole or not there at all."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.cells import Cell
from data_prep.indexed import IndexedReader
from data_prep.inventory import Inventory, read_inventory, write_inventory
from data_prep.labels import LENGTHS, Labels, length, level
from data_prep.shards import (
    ORIGIN,
    Content,
    DocumentChunk,
    Origin,
    faults,
    origin,
    read_shard,
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
    assert read_shard(prefix) == (cell,)
    reader = IndexedReader(prefix)
    assert reader.tokens.tolist() == [1, 2, 3, 4, 5, 6]
    assert [reader.document_of(token) for token in range(6)] == [0, 0, 0, 1, 2, 2]
    expected = [("a.jsonl", 7, "ä"), ("b/c.parquet", 1, ""), ("b/c.parquet", 1 << 40, "<urn:5>")]
    assert [origin(prefix, k) for k in range(3)] == [Origin(*row) for row in expected]
    with pytest.raises(ConfigError, match="documents 0 to 2, not 3"):
        origin(prefix, 3)


def test_a_shard_whose_writing_failed_has_no_mark(tmp_path: Path) -> None:
    cell = write(tmp_path)  # an older, whole one is no excuse

    def failing() -> Iterator[DocumentChunk]:
        yield CHUNKS[0]
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        write_shard(tmp_path, cell.path, np.int32, [Content(cell, failing())])
    with pytest.raises(ConfigError, match=r"00000-000\.json does not exist: .*not whole"):
        read_shard(tmp_path / cell.path)


@pytest.mark.parametrize("suffix", ["bin", "idx", "docs", "json"])
@pytest.mark.parametrize("damage", ["changed", "cut short", "removed"])
def test_verifying_finds_any_file_that_is_not_what_was_written(
    tmp_path: Path, suffix: str, damage: str
) -> None:
    cell = write(tmp_path)
    assert list(faults(tmp_path, [cell])) == []
    file = tmp_path / f"{cell.path}.{suffix}"
    content = file.read_bytes()
    file.unlink()
    if damage != "removed":
        changed = content.replace(b"3", b"4") if suffix == "json" else content[:-1] + b"x"
        file.write_bytes(changed if damage == "changed" else content[:-4])
    assert any(str(tmp_path) in fault for fault in faults(tmp_path, [cell]))


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
