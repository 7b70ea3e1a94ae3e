"""The .bin/.idx files are Megatron's, and a damaged pair is refused by name."""

import filecmp
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.indexed import IndexedReader, IndexedWriter, token_dtype
from megatron_qwen3.config import ConfigError

DOCUMENTS = [[1, 2, 3], [], [65_000], list(range(500)), [7]]


def write(prefix: Path, documents: list[list[int]], vocab_size: int = 65_001) -> None:
    with IndexedWriter(prefix, token_dtype(vocab_size)) as writer:
        for document in documents:
            writer.add_document(document)


def write_with_megatron(prefix: Path, documents: list[list[int]], dtype: type) -> None:
    torch = pytest.importorskip("torch")
    megatron = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    builder = megatron.IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    for document in documents:
        builder.add_document(torch.tensor(document, dtype=torch.int64), [len(document)])
    builder.finalize(f"{prefix}.idx")


@pytest.mark.parametrize("vocab_size", [2_048, 65_499, 65_500, 151_936])
def test_token_width_is_the_one_megatron_chooses(vocab_size: int) -> None:
    megatron = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    assert token_dtype(vocab_size) == np.dtype(megatron.DType.optimal_dtype(vocab_size))


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65_001, np.uint16), (151_936, np.int32)])
@pytest.mark.parametrize("documents", [DOCUMENTS, []], ids=["documents", "empty"])
def test_files_are_byte_identical_to_megatrons(
    tmp_path: Path, vocab_size: int, dtype: type, documents: list[list[int]]
) -> None:
    write(tmp_path / "ours", documents, vocab_size)
    write_with_megatron(tmp_path / "theirs", documents, dtype)
    for suffix in (".bin", ".idx"):
        ours, theirs = tmp_path / f"ours{suffix}", tmp_path / f"theirs{suffix}"
        assert filecmp.cmp(ours, theirs, shallow=False)


def test_megatron_reads_our_files(tmp_path: Path) -> None:
    megatron = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    write(tmp_path / "ours", DOCUMENTS)
    dataset = megatron.IndexedDataset(str(tmp_path / "ours"))
    assert [dataset[i].tolist() for i in range(len(dataset))] == DOCUMENTS


def test_documents_of_several_sequences_written_by_megatron_are_read_whole(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    megatron = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    builder = megatron.IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=np.uint16)
    builder.add_document(torch.arange(10), [4, 6])
    builder.add_document(torch.arange(3), [3])
    builder.finalize(str(tmp_path / "theirs.idx"))
    reader = IndexedReader(tmp_path / "theirs")
    assert reader.num_documents == 2
    assert reader.document_offsets.tolist() == [0, 10, 13]
    assert reader.tokens.tolist() == [*range(10), *range(3)]


@given(documents=st.lists(st.lists(st.integers(0, 65_000), max_size=20), max_size=8))
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[int]]
) -> None:
    prefix = tmp_path_factory.mktemp("pair") / "data"
    write(prefix, documents)
    reader = IndexedReader(prefix)
    offsets = reader.document_offsets
    read = [reader.tokens[a:b].tolist() for a, b in pairwise(offsets)]
    assert read == documents


@pytest.mark.parametrize("token", [-1, 65_536])
def test_an_id_that_does_not_fit_is_refused_not_wrapped(tmp_path: Path, token: int) -> None:
    with pytest.raises(ValueError, match="do not fit uint16"):
        write(tmp_path / "data", [[token]])


@given(documents=st.lists(st.lists(st.integers(0, 65_000), max_size=20), max_size=8))
def test_documents_written_end_to_end_are_those_written_one_by_one(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[int]]
) -> None:
    folder = tmp_path_factory.mktemp("pair")
    write(folder / "one_by_one", documents)
    with IndexedWriter(folder / "together", token_dtype(65_001)) as writer:
        tokens = np.array([t for document in documents for t in document], np.int64)
        writer.add_documents(tokens, [len(document) for document in documents])
    for suffix in (".bin", ".idx"):
        a, b = (folder / f"{name}{suffix}" for name in ("one_by_one", "together"))
        assert a.read_bytes() == b.read_bytes()
    reader = IndexedReader(folder / "together")
    owners = [k for k, document in enumerate(documents) for _ in document]
    assert [reader.document_of(token) for token in range(len(owners))] == owners


def test_lengths_that_do_not_add_up_are_refused(tmp_path: Path) -> None:
    writer = IndexedWriter(tmp_path / "data", np.uint16)
    with pytest.raises(ValueError, match="3 ids, but lengths add to 4"), writer:
        writer.add_documents(np.array([1, 2, 3]), [1, 3])


def test_a_writer_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), IndexedWriter(tmp_path / "data", np.uint16) as writer:
        writer.add_document([1, 2, 3])
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_no_index_exists_before_the_tokens_are_whole(tmp_path: Path) -> None:
    writer = IndexedWriter(tmp_path / "data", np.uint16)
    writer.add_document([1, 2, 3])
    assert all(path.name.endswith(".partial") for path in tmp_path.iterdir())
    writer.finalize()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.bin", "data.idx"]


def test_two_writers_of_one_pair_do_not_mix(tmp_path: Path) -> None:
    with IndexedWriter(tmp_path / "data", np.uint16) as one:
        one.add_document([1] * 1000)
        with IndexedWriter(tmp_path / "data", np.uint16) as other:
            other.add_document([2] * 3000)
        assert set(IndexedReader(tmp_path / "data").tokens.tolist()) == {2}
        one.add_document([1] * 1000)
    assert IndexedReader(tmp_path / "data").tokens.tolist() == [1] * 2000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.bin", "data.idx"]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.idx does not exist"):
        IndexedReader(tmp_path / "nowhere")
    write(tmp_path / "data", DOCUMENTS)
    (tmp_path / "data.bin").unlink()
    with pytest.raises(ConfigError, match=r"data\.bin does not exist"):
        IndexedReader(tmp_path / "data")


@pytest.mark.parametrize("change_bytes", [-2, 2])
def test_a_bin_of_the_wrong_length_is_refused_with_both_sizes(
    tmp_path: Path, change_bytes: int
) -> None:
    write(tmp_path / "data", DOCUMENTS)
    expected = 2 * sum(map(len, DOCUMENTS))
    path = tmp_path / "data.bin"
    path.write_bytes((path.read_bytes() + b"\0\0")[: expected + change_bytes])
    with pytest.raises(ConfigError, match=f"has {expected + change_bytes:,} bytes.*{expected:,}"):
        IndexedReader(tmp_path / "data")


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [(0, b"X", "not a Megatron index"), (9, b"\2", "version 2"), (17, b"\6", "dtype code is 6")],
)
def test_a_foreign_index_is_refused(
    tmp_path: Path, offset: int, value: bytes, message: str
) -> None:
    write(tmp_path / "data", DOCUMENTS)
    path = tmp_path / "data.idx"
    content = bytearray(path.read_bytes())
    content[offset : offset + 1] = value
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        IndexedReader(tmp_path / "data")


@pytest.mark.parametrize("length", [0, 5, 20, 60])
def test_an_index_cut_short_is_refused(tmp_path: Path, length: int) -> None:
    write(tmp_path / "data", DOCUMENTS)
    path = tmp_path / "data.idx"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ConfigError, match=r"data\.idx"):
        IndexedReader(tmp_path / "data")


def change(prefix: Path, offset: int, kind: str, value: int) -> None:
    """Overwrite one number of an index; `offset` counts from the end of its header."""
    data = bytearray(Path(f"{prefix}.idx").read_bytes())
    number = np.array([value], kind).tobytes()
    data[34 + offset : 34 + offset + len(number)] = number
    Path(f"{prefix}.idx").write_bytes(data)


COUNT = len(DOCUMENTS)
STARTS, BORDERS = 4 * COUNT, 12 * COUNT


@pytest.mark.parametrize(
    ("offset", "kind", "value"),
    [
        (0, "<i4", -3),  # a length below 0
        (0, "<i4", 2),  # and one that leaves tokens over
        (4 * 3, "<i4", 2**31 - 1),
        (STARTS, "<i8", 2),  # the first sequence is not at 0
        (STARTS + 8 * 2, "<i8", 0),  # overlaps the one before
        (STARTS + 8 * 2, "<i8", -8),
        (STARTS + 8 * 2, "<i8", 2**62),  # is not in the .bin
        (BORDERS, "<i8", 1),  # no document has the first sequence
        (BORDERS + 8 * 2, "<i8", 0),  # documents run backwards
        (BORDERS + 8 * 2, "<i8", -1),
        (BORDERS + 8 * COUNT, "<i8", COUNT + 1),  # more than there are
        (BORDERS + 8 * COUNT, "<i8", 2**62),
    ],
)
def test_an_index_whose_borders_lie_is_refused_on_opening(
    tmp_path: Path, offset: int, kind: str, value: int
) -> None:
    write(tmp_path / "s", DOCUMENTS)
    IndexedReader(tmp_path / "s")
    change(tmp_path / "s", offset, kind, value)
    with pytest.raises(ConfigError, match=r"s\.(idx|bin)") as error:
        IndexedReader(tmp_path / "s")
    assert "\n" not in str(error.value)


def test_a_border_that_was_not_looked_at_is_refused_when_it_is_asked_for(tmp_path: Path) -> None:
    count = 3 << 16
    with IndexedWriter(tmp_path / "s", "u1") as writer:
        writer.add_documents(np.zeros(count, "u1"), np.ones(count))
    for value in (-5, 2**40, 7):
        write_back = 12 * count + 8 * 5000
        change(tmp_path / "s", write_back, "<i8", value)
        reader = IndexedReader(tmp_path / "s")
        with pytest.raises(ConfigError, match="documents"):
            _ = reader.document_offsets
        with pytest.raises(ConfigError, match="documents"):
            reader.document_starts(4950, 5050)
        change(tmp_path / "s", write_back, "<i8", 5000)
    assert IndexedReader(tmp_path / "s").document_starts(4999, 5002) == [4999, 5000, 5001]


@pytest.mark.parametrize("suffix", ["bin", "idx"])
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path, suffix: str) -> None:
    write(tmp_path / "s", DOCUMENTS)
    Path(tmp_path / f"s.{suffix}").unlink()
    os.mkfifo(tmp_path / f"s.{suffix}")
    with pytest.raises(ConfigError, match="not a plain file"):
        IndexedReader(tmp_path / "s")
