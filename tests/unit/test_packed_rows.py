"""Text in rows as a run reads it: a sample is a slice, and filler is never trained."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as trials
from hypothesis import strategies as st

from data_prep import curriculum, fingerprint
from data_prep.curriculum import Source
from data_prep.indexed import IndexedReader, IndexedWriter
from megatron_qwen3.config import Config, ConfigError
from megatron_qwen3.pretrain.data import Mixture
from megatron_qwen3.pretrain.record import Feed, RunPart, RunRecord, Start
from megatron_qwen3.pretrain.rows import arrays_of
from megatron_qwen3.pretrain.sources import simple_sources
from megatron_qwen3.pretrain.stream import Cursor
from megatron_qwen3.settings import DataConfig, SourceConfig
from megatron_qwen3.training.batch import TokenBatch
from tests.packed import write_packed

L = 16
END = 0


def write(prefix: Path, lengths: list[int], row_length: int = L) -> None:
    """Token 1,000 d + 1 + p at place p of document d, the last one END."""
    texts = [[1_000 * d + 1 + p for p in range(n - 1)] + [END] for d, n in enumerate(lengths)]
    write_packed(prefix, texts, row_length, filler=END)


def mixture(folder: Path, names: list[str], length: int = L, held_out: float = 0.0) -> Mixture:
    sources = tuple(SourceConfig(name, str(folder / name)) for name in names)
    data = DataConfig(sequence_length=length, held_out=held_out, sources=sources)
    feeds = tuple(Feed(source, share, Start(3)) for source, share in simple_sources(data))
    return Mixture(RunPart(0, 4, length, None, feeds))


LENGTHS = st.lists(st.integers(1, 60), min_size=3, max_size=40)


@trials(max_examples=60)
@given(lengths=LENGTHS, times=st.integers(1, 3), apart=st.booleans())
def test_each_epoch_trains_each_token_of_a_document_that_fits_but_its_first_once(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], times: int, apart: bool
) -> None:
    folder = tmp_path_factory.mktemp("packed")
    write(folder / "a", lengths)
    rows_there = IndexedReader(folder / "a").text_R
    if len(rows_there) % times or len(rows_there) < times:
        times = 1
    found = mixture(folder, ["a"], times * L)
    count = len(rows_there) // times
    rows = found.batch(0, count, with_documents=apart)
    batch = TokenBatch.of_arrays(arrays_of(rows))
    assert batch.valid_BS is not None
    assert int(batch.valid_BS.sum()) == sum(lengths)
    is_trained = batch.weights_BS.bool()
    assert not (is_trained & ~batch.valid_BS).any()
    pairs = [
        *zip(
            batch.tokens_BS[is_trained].tolist(), batch.labels_BS[is_trained].tolist(), strict=True
        )
    ]
    within = [(a, b) for a, b in pairs if a != END]
    for a, b in within:
        assert b == a + 1 or b == END
    # Of a document that fits all but the first token are labels; of one that is cut also the first
    # of each row is none.
    assert len(within) == sum(n - 1 - (n - 1) // L for n in lengths)
    assert len(set(within)) == len(within)
    if apart:
        assert len(pairs) == len(within)


@trials(max_examples=40)
@given(lengths=LENGTHS, row_length=st.sampled_from([5, 16, 24]), times=st.integers(1, 3))
def test_a_sample_is_rows_from_where_one_begins(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], row_length: int, times: int
) -> None:
    folder = tmp_path_factory.mktemp("packed")
    write(folder / "a", lengths * 3, row_length)
    tokens = IndexedReader(folder / "a").tokens
    if len(tokens) < times * row_length:
        times = 1
    found = mixture(folder, ["a"], times * row_length)
    seen = []
    for sample in range(2 * len(tokens) // (times * row_length)):
        ranges = found.locate(sample).ranges
        assert all(a % row_length == b % row_length == 0 for a, b in ranges)
        assert len(ranges) == 1 or times > 1
        rows = found.batch(sample, 1)
        assert rows.tokens_BS[0].tolist() == [int(t) for a, b in ranges for t in tokens[a:b]]
        seen += [n for a, b in ranges for n in range(a, b)]
    assert len(set(seen[: len(tokens)])) >= len(tokens) - (times - 1) * row_length


def test_chunks_of_a_stream_are_whole_rows_whatever_their_length(tmp_path: Path) -> None:
    write(tmp_path / "a", [700] * 700, 700)
    found = mixture(tmp_path, ["a"], 700)
    places = [found.locate(k).ranges for k in range(1400)]
    assert all(len(ranges) == 1 and ranges[0][0] % 700 == 0 for ranges in places)
    for epoch in (places[:700], places[700:]):
        assert sorted(ranges[0][0] for ranges in epoch) == list(range(0, 490_000, 700))


def test_a_mixture_has_packed_text_beside_other_text(tmp_path: Path) -> None:
    write(tmp_path / "a", [30, 9, 5, 4, 20, 11] * 20)
    with IndexedWriter(tmp_path / "b", np.int32) as writer:
        for document in range(100):
            writer.add_document(500_000 + 100 * document + np.arange(13))
    found = mixture(tmp_path, ["a", "b"])
    rows = found.batch(0, 60, with_documents=True)
    batch = TokenBatch.of_arrays(arrays_of(rows))
    of_b = rows.sources_B == 1
    assert batch.valid_BS is not None and rows.documents is not None and 10 < of_b.sum() < 50
    assert batch.valid_BS[of_b].all() and not batch.valid_BS[~of_b].all()
    goes_on_BS = rows.labels_BS // 100 == rows.tokens_BS // 100
    assert np.array_equal(batch.weights_BS[of_b].numpy() > 0, goes_on_BS[of_b])
    alone = TokenBatch.of_arrays(arrays_of(mixture(tmp_path, ["b"]).batch(0, 8)))
    assert alone.valid_BS is None and alone.weights_BS.all()


def test_held_out_rows_are_whole_and_none_of_their_tokens_is_trained(tmp_path: Path) -> None:
    write(tmp_path / "a", [30, 9, 5, 4, 20, 11] * 20)
    found = mixture(tmp_path, ["a"], held_out=0.13)
    source = found.sources[0]
    assert source.held_out % L == 0 and source.held_out >= 0.13 * source.tokens
    assert source.training_tokens == source.tokens - source.held_out
    places = found.held_out(0, 10**6)
    assert len(places) == source.held_out // L
    ends = [place.ranges[0] for place in places]
    assert ends[0][0] == source.training_tokens and ends[-1][1] == source.tokens
    trained = {n for k in range(400) for a, b in found.locate(k).ranges for n in range(a, b)}
    assert trained == set(range(source.training_tokens))
    rows = found.read(places, with_documents=True)
    assert (
        rows.documents is not None
        and TokenBatch.of_arrays(arrays_of(rows)).weights_BS[:, -1].max() == 0
    )


def test_sequences_that_would_cut_rows_are_refused_and_whole_numbers_of_rows_are_not(
    tmp_path: Path,
) -> None:
    write(tmp_path / "a", [30, 9, 5, 4] * 20)
    for length in (8, 17, 24, 33):
        with pytest.raises(
            ConfigError,
            match=rf"data.sequence_length = {length}: data.sources.a .* rows of 16 tokens, "
            rf"which sequences of {length} would cut; valid: 16, a multiple of it, or text",
        ):
            mixture(tmp_path, ["a"], length)
    assert mixture(tmp_path, ["a"], 48).batch(0, 4).tokens_BS.shape == (4, 48)


def test_another_number_of_rows_in_the_middle_skips_and_repeats_none(tmp_path: Path) -> None:
    write(tmp_path / "a", [30, 9, 5, 4, 20, 11] * 20)
    first = mixture(tmp_path, ["a"], 3 * L)
    part = first.part
    done = 5
    cursor: Cursor = part.starts_after(done)[part.feeds[0].key].cursor
    feed = Feed(part.feeds[0].source, 1, Start(3, cursor, part.feeds[0].key))
    second = Mixture(RunPart(done, 4, L, None, (feed,)))
    tokens = first.sources[0].training_tokens
    read = [r for k in range(done * 4) for r in first.locate(k).ranges]
    read += [r for k in range((tokens - done * 4 * 3 * L) // L) for r in second.locate(k).ranges]
    places = [n for a, b in read for n in range(a, b)]
    assert sorted(places) == list(range(tokens))


def test_files_that_were_packed_otherwise_than_when_mixed_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a", [16] * 40)
    found = mixture(tmp_path, ["a"])
    tokens = [t for d in range(40) for t in [1_000 * d + 1 + p for p in range(15)] + [END]]
    with IndexedWriter(tmp_path / "a", np.int32) as writer:  # the same ids, in no rows
        writer.add_document(tokens)
    with pytest.raises(ConfigError, match="is in rows of 0 tokens"):
        mixture_of(found).batch(0, 1)


def mixture_of(found: Mixture) -> Mixture:
    from megatron_qwen3.pretrain import files

    files._reader.cache_clear()
    return Mixture(found.part)


def within(folder: Path, source: Source) -> Source:
    """The source by shards of a folder, as a curriculum has them."""
    shards = tuple(shard._replace(path=Path(shard.path).name) for shard in source.shards)
    return replace(source, folder=str(folder), shards=shards)


def test_curricula_and_records_keep_that_text_is_packed_and_are_then_of_version_3(
    tmp_path: Path,
) -> None:
    write(tmp_path / "a", [30, 9, 5, 4] * 20)
    for name, version in (("a", 3), ("b", 2)):
        if name == "b":
            with IndexedWriter(tmp_path / "b", np.int32) as writer:
                writer.add_document(np.arange(1_000))
        found = mixture(tmp_path, [name])
        RunRecord((found.part,)).write(tmp_path)
        assert json.loads((tmp_path / "data.json").read_text())["version"] == version
        again = RunRecord.read(tmp_path)
        assert again is not None and again.sources().popitem()[1] == found.sources[0]
        source = within(tmp_path, found.sources[0])
        stage = curriculum.Stage("s", L, 4, (curriculum.StageShare(source, 10 * L, 0),))
        plan = curriculum.Curriculum(3, {}, 2_000, (stage,))
        curriculum.write(plan, tmp_path / "c.json")
        assert json.loads((tmp_path / "c.json").read_text())["version"] == version
        read = curriculum.read(tmp_path / "c.json").stages[0].shares[0].source
        assert read.packed == found.sources[0].packed and (read.packed is None) == (name == "b")
        assert read.fingerprint == found.sources[0].fingerprint
    assert fingerprint.mark(tmp_path / "a") != fingerprint.mark(tmp_path / "b")


def test_a_run_of_a_curriculum_whose_sequences_would_cut_rows_is_refused(tmp_path: Path) -> None:
    from megatron_qwen3.pretrain import record

    write(tmp_path / "a", [30, 9, 5, 4] * 20)
    source = within(tmp_path, mixture(tmp_path, ["a"]).sources[0])
    stage = curriculum.Stage("s", L, 4, (curriculum.StageShare(source, 10 * L, 0),))
    curriculum.write(curriculum.Curriculum(3, {}, 2_000, (stage,)), tmp_path / "c.json")

    def config(length: int) -> Any:
        data = DataConfig(
            sequence_length=length, curriculum=str(tmp_path / "c.json"), stage="s", sources=()
        )
        return Config(data=data)

    with pytest.raises(ConfigError, match=r"data.sequence_length = 24: source a of .*c\.json"):
        record._wanted(config(24))
    assert record._wanted(config(2 * L)).sequences == 5
