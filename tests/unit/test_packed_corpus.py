"""Documents in rows: none is cut that fits, filler is never trained, and the same bytes always."""

import json
import random
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as trials
from hypothesis import strategies as st

from data_prep.cells import Cell
from data_prep.indexed import IndexedReader, IndexedWriter
from data_prep.inventory import read_inventory
from data_prep.lay_out import FILLER, lay_out
from data_prep.seal import read_seal
from data_prep.shards import faults, origin
from data_prep.tokenization.corpus import CorpusOptions, tokenize
from data_prep.tokenization.plan import Settings
from data_prep.tokenizer import DocumentTokenizer
from megatron_qwen3.cli import inspect_shards, tokenize_corpus
from megatron_qwen3.config import ConfigError
from tests.corpora import WORDS, dies_after, digests

ROW = 64
ONE = CorpusOptions()

pytestmark = pytest.mark.usefixtures("small_units")


@pytest.fixture
def small_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranges of lengths that a row of 64 tokens has room for: 8, 32 and 64 in place of 4k …"""
    bounds = (ROW // 8, ROW // 2, ROW)
    for module in ("work", "rows"):
        monkeypatch.setattr(f"data_prep.tokenization.{module}.LENGTH_BOUNDS_TOKENS", bounds)


def settings(tokenizer: str, **others: Any) -> Settings:
    return Settings(tokenizer, shard_tokens=4000, group_bytes=20_000, pack=ROW, **others)


def write(path: Path, count: int, seed: int = 0, longest: int = 90) -> list[dict[str, Any]]:
    """Documents of 1 to `longest` words, of two languages."""
    chance, rows = random.Random(seed), []
    for k in range(count):
        text = " ".join(chance.choices(WORDS, k=chance.randint(1, longest)))
        language = chance.choice(["eng_Latn", "rus_Cyrl"])
        rows.append({"id": f"{seed}-{k}", "text": text, "language": language})
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


@pytest.fixture
def corpus(tmp_path: Path) -> tuple[Path, list[dict[str, Any]]]:
    """Two files of two groups."""
    folder = tmp_path / "corpus"
    rows = [row for seed in (1, 2) for row in write(folder / f"{seed}.jsonl", 150, seed)]
    return folder, rows


# ---- the rows as numbers -----------------------------------------------------------------------


@trials(max_examples=300)
@given(
    lengths=st.lists(st.integers(1, 200), min_size=1, max_size=60),
    row_length=st.integers(2, 70),
)
def test_every_token_of_every_document_stands_there_once_and_what_fits_is_whole(
    lengths: list[int], row_length: int
) -> None:
    pieces, rows = lay_out(np.array(lengths), row_length)
    assert pieces.length_P.sum() == len(rows.text_R) * row_length
    read: dict[int, list[tuple[int, int, int]]] = {}
    place = 0
    for document, first, length in zip(*(x.tolist() for x in pieces[:3]), strict=True):
        row, at = divmod(place, row_length)
        if document == FILLER:  # at the end of its row, and nowhere else
            assert at == rows.text_R[row] > 0 and at + length == row_length
        else:
            assert at + min(length, row_length) <= rows.text_R[row]
            read.setdefault(document, []).append((first, length, at))
        place += length
    assert sorted(read) == list(range(len(lengths)))
    for document, parts in read.items():
        whole, rest = divmod(lengths[document], row_length)
        in_order = sorted(parts)
        expected = [(0, whole * row_length)] * bool(whole)
        expected += [(whole * row_length, rest)] * bool(rest)
        assert [part[:2] for part in in_order] == expected
        for _, length, at in in_order:  # whole rows, or within one row
            assert at == 0 if length >= row_length else at + length <= row_length


@trials(max_examples=100)
@given(lengths=st.lists(st.integers(1, 200), min_size=1, max_size=60))
def test_the_longest_text_of_a_row_is_told_of_the_row_and_of_its_pieces(lengths: list[int]) -> None:
    pieces, rows = lay_out(np.array(lengths), 64)
    row_P = (np.cumsum(pieces.length_P) - pieces.length_P) // 64
    for row, longest in enumerate(rows.longest_R.tolist()):
        covering = (row_P <= row) & (row < row_P + -(-pieces.length_P // 64))
        texts = np.minimum(pieces.length_P, 64)[covering & (pieces.document_P != FILLER)]
        assert texts.max() == longest
        assert (pieces.longest_P[covering] == longest).all()


@pytest.mark.parametrize("name", ["log-normal", "Pareto"])
def test_filler_is_under_a_percent_of_documents_of_usual_lengths(name: str) -> None:
    random = np.random.default_rng(0)
    drawn = random.lognormal(6.5, 1.2, 20_000)
    if name == "Pareto":
        drawn = 300 * (1 + random.pareto(1.0, 20_000))
    lengths = np.minimum(drawn.astype(np.int64) + 1, 1_000_000)
    _, rows = lay_out(lengths, 32_768)
    for low, high in ((4096, 16_384), (16_384, 32_768), (32_768, 1 << 40)):
        text_R = rows.text_R[(rows.longest_R >= low) & (rows.longest_R < high)]
        assert text_R.mean() > 0.99 * 32_768
    assert rows.text_R.sum() == lengths.sum() > 0.99 * 32_768 * len(rows.text_R)


# ---- shards ------------------------------------------------------------------------------------


def test_a_packed_corpus_has_each_document_once_in_rows_of_its_labels(
    corpus: tuple[Path, list[dict[str, Any]]], tmp_path: Path, tokenizer: str, small_lengths: None
) -> None:
    folder, documents = corpus
    out = tmp_path / "out"
    report = tokenize([folder], out, settings(tokenizer), ONE)
    assert report is not None
    reference = DocumentTokenizer(tokenizer, "huggingface")
    ids = {row["id"]: reference.encode_document(row["text"]).tolist() for row in documents}
    language = {row["id"]: row["language"] for row in documents}
    found: dict[str, list[list[int]]] = {}
    lengths = set()
    for shard in read_inventory(out).cells:
        assert not list(faults(out, read_seal(out / shard.path).cells))
        for piece, place, longest in pieces_of(out, shard):
            assert shard.packed is not None and shard.packed.row_length == ROW
            lengths.add(shard.labels.length)
            bounds = {"0-4k": (1, 8), "4k-16k": (8, 32), "16k-32k": (32, 64), "32k+": (64, 65)}
            low, high = bounds[shard.labels.length]
            assert low <= longest < high
            if place is None:
                assert set(piece) == {reference.end_of_document}
                continue
            assert shard.labels.language == language[place]
            found.setdefault(place, []).append(piece)
    assert lengths == {"4k-16k", "16k-32k", "32k+"}  # the shortest share the rows of others
    assert found.keys() == ids.keys()
    for name, parts in found.items():
        parts.sort(key=len, reverse=len(ids[name]) >= ROW)
        assert len(parts) == 1 or len(ids[name]) > ROW
        joined = [token for part in parts for token in part]
        if joined != ids[name]:  # a rest may be the longer part of none
            joined = [token for part in parts[::-1] for token in part]
        assert joined == ids[name]
    shards = report.inventory.cells
    assert sum(shard.documents for shard in shards) == len(documents)
    assert sum(shard.cut for shard in shards) == sum(len(x) > ROW for x in ids.values()) > 0
    assert sum(shard.bytes for shard in shards) == sum(len(d["text"].encode()) for d in documents)
    text = sum(shard.tokens - shard.packed.filler for shard in shards if shard.packed)
    assert text == sum(map(len, ids.values()))
    assert text == sum(sum(s.packed.texts.values()) for s in shards if s.packed)


def pieces_of(out: Path, shard: Cell) -> list[tuple[list[int], str | None, int]]:
    """(ids, id of the document or None, tokens of the longest text in its row) of each piece."""
    reader = IndexedReader(out / shard.path)
    own = range(shard.first, shard.first + shard.pieces)
    bounds = list(pairwise(reader.document_offsets.tolist()))[own.start : own.stop]
    assert bounds[0][0] == shard.start and bounds[-1][1] == shard.start + shard.tokens
    names = [origin(out / shard.path, k).id or None for k in own]
    longest: dict[int, int] = {}
    for (a, b), name in zip(bounds, names, strict=True):
        if name is not None:
            longest[a // ROW] = max(longest.get(a // ROW, 0), min(b - a, ROW))
    return [
        (reader.tokens[a:b].tolist(), name, longest[a // ROW])
        for (a, b), name in zip(bounds, names, strict=True)
    ]


def test_workers_and_tasks_change_no_byte_of_packed_shards(
    corpus: tuple[Path, list[dict[str, Any]]], tmp_path: Path, tokenizer: str
) -> None:
    folder, _ = corpus
    for workers in (1, 2, 5):
        tokenize(
            [folder], tmp_path / str(workers), settings(tokenizer), CorpusOptions(workers=workers)
        )
    for task in (1, 0):
        tokenize(
            [folder], tmp_path / "tasks", settings(tokenizer), CorpusOptions(task=task, tasks=2)
        )
    first, *others = (digests(tmp_path / name) for name in ("1", "2", "5", "tasks"))
    assert all(other == first for other in others)
    assert not (tmp_path / "1/work").exists()


@pytest.mark.parametrize("seed", range(2))
def test_packing_that_is_killed_again_and_again_ends_with_the_same_files(
    corpus: tuple[Path, list[dict[str, Any]]],
    tmp_path: Path,
    tokenizer: str,
    small_lengths: None,
    seed: int,
) -> None:
    folder, _ = corpus
    tokenize([folder], tmp_path / "whole", settings(tokenizer), ONE)
    chance, deaths = random.Random(seed), 0
    while dies_after(chance.randint(1, 60), folder, tmp_path / "killed", settings(tokenizer)):
        if (tmp_path / "killed" / "inventory.parquet").exists():  # which is written last
            assert digests(tmp_path / "killed") == digests(tmp_path / "whole")
        deaths += 1
    assert deaths > 2
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")


def test_a_folder_that_was_begun_before_there_were_rows_goes_on_and_is_not_packed(
    corpus: tuple[Path, list[dict[str, Any]]], tmp_path: Path, tokenizer: str
) -> None:
    folder, out = corpus[0], tmp_path / "out"
    plain = replace(settings(tokenizer), pack=0)
    tokenize([folder], out, plain, ONE)
    known = json.loads((out / "plan.json").read_text())
    assert known["settings"].pop("pack") == 0
    (out / "plan.json").write_text(json.dumps(known))
    shutil.rmtree(out / "groups")
    assert tokenize([folder], out, plain, ONE) is not None
    with pytest.raises(ConfigError, match=r"pack was 0, is 64"):
        tokenize([folder], out, settings(tokenizer), ONE)
    for pack in (1, -5, 4001):
        with pytest.raises(ConfigError, match=rf"pack = {pack:,}; valid: from 2 to the 4,000"):
            tokenize([folder], tmp_path / "b", replace(settings(tokenizer), pack=pack), ONE)


def test_the_commands_tell_rows_filler_and_cut_documents(
    corpus: tuple[Path, list[dict[str, Any]]],
    tmp_path: Path,
    tokenizer: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    command = [str(corpus[0]), "--out", str(out), "--tokenizer", tokenizer, "--workers", "1"]
    assert tokenize_corpus.main([*command, "--pack", str(ROW)]) == 0
    told = capsys.readouterr().out
    shards = read_inventory(out).cells
    tokens = sum(shard.tokens for shard in shards)
    filler = sum(shard.packed.filler for shard in shards if shard.packed)
    cut = sum(shard.cut for shard in shards)
    assert f"{tokens // ROW:,} rows of 64 tokens: {filler:,} tokens of filler" in told
    assert f"{cut:,} documents longer than a row cut" in told and cut
    assert inspect_shards.main(["table", str(out), "--by", "language", "length"]) == 0
    assert f"{100 * filler / tokens:.2g} %" in capsys.readouterr().out
    shard = next(s for s in shards if s.packed and s.packed.filler)
    prefix = out / shard.path
    pieces = sum(cell.pieces for cell in shards if cell.path == shard.path)
    of_none = next(k for k in range(pieces) if not origin(prefix, k).line)
    assert inspect_shards.main(["show", str(prefix), str(of_none)]) == 0
    assert "filler at the end of a row, never trained on" in capsys.readouterr().out
    assert inspect_shards.main(["show", str(prefix), str(pieces)]) == 2
    assert f"has pieces 0 to {pieces - 1}, not" in capsys.readouterr().err
    assert inspect_shards.main(["verify", str(out)]) == 0


def test_megatron_reads_packed_shards_and_a_damaged_index_of_rows_is_refused(
    tmp_path: Path,
) -> None:
    megatron = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    with IndexedWriter(tmp_path / "a", np.uint16) as writer:
        writer.add_documents(np.arange(12, dtype=np.uint16), [5, 1, 6])
        writer.pack(6, [5, 6])
    dataset = megatron.IndexedDataset(str(tmp_path / "a"))
    assert [len(dataset[k]) for k in range(len(dataset))] == [5, 1, 6]
    reader = IndexedReader(tmp_path / "a")
    assert reader.row_length == 6 and reader.text_of_rows(0, 2) == [5, 6]
    whole = (tmp_path / "a.idx").read_bytes()
    for broken, message in (
        (whole[:-1], "its rows of 6 are not the tokens"),
        (whole[:-4], "its rows of 6 are not the tokens"),
        (whole[:-12], r"bytes, its header says"),
        (whole[:-24] + b"other" + whole[-19:], r"bytes, its header says"),
    ):
        (tmp_path / "a.idx").write_bytes(broken)
        with pytest.raises(ConfigError, match=message):
            IndexedReader(tmp_path / "a")
    (tmp_path / "a.idx").write_bytes(whole[:-4] + b"\0\0\0\0")
    with pytest.raises(ConfigError, match="damaged, a row of 6 tokens"):
        IndexedReader(tmp_path / "a").text_of_rows(0, 2)
