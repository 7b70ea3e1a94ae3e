"""The mixture keeps its weights at every moment, and its samples depend on their number alone."""

from __future__ import annotations

import dataclasses
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.indexed import IndexedWriter
from data_prep.tokenizer import token_bytes, train
from megatron_qwen3.config import ConfigError, DataConfig, SourceConfig
from megatron_qwen3.pretrain.data import Mixture
from megatron_qwen3.pretrain.order import BLOCK_SAMPLES, Schedule, quotas, shuffled

S = 16
WEIGHTS = st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=40).map(tuple)


def write_source(folder: Path, name: str, num_tokens: int, first_token: int = 0) -> str:
    """Token first_token + p at position p, so that a window shows where it is from."""
    with IndexedWriter(folder / name, np.int32) as writer:
        writer.add_document(np.arange(first_token, first_token + num_tokens))
    return str(folder / name)


def data_config(folder: Path, tokens_and_weights: list[tuple[int, float]]) -> DataConfig:
    sources = tuple(
        SourceConfig(f"s{k}", write_source(folder, f"s{k}", num_tokens, 100_000 * k), weight)
        for k, (num_tokens, weight) in enumerate(tokens_and_weights)
    )
    return DataConfig(sequence_length=S, held_out=0.1, sources=sources)


@pytest.fixture
def data(tmp_path: Path) -> DataConfig:
    return data_config(tmp_path, [(1_000, 0.7), (5_000, 0.295), (400, 0.005)])


# ---- which source ------------------------------------------------------------------------------


@given(weights=WEIGHTS)
def test_quotas_are_the_weights_to_one_sample_of_a_block_and_never_nothing(
    weights: tuple[float, ...],
) -> None:
    parts = quotas(weights, BLOCK_SAMPLES)
    assert sum(parts) == BLOCK_SAMPLES
    assert min(parts) >= 1
    ideal = np.array(weights) / sum(weights) * BLOCK_SAMPLES
    given_to_tiny = np.maximum(1 - ideal, 0).sum()
    assert (np.abs(np.array(parts) - ideal) <= 1 + given_to_tiny).all()


@settings(max_examples=25, deadline=None)
@given(weights=WEIGHTS)
def test_after_any_number_of_samples_each_source_is_within_one_of_its_share(
    weights: tuple[float, ...],
) -> None:
    schedule = Schedule(weights)
    share = np.array(schedule.quotas) / BLOCK_SAMPLES
    located = [schedule.locate(slot)[0] for slot in range(BLOCK_SAMPLES)]
    n = np.arange(1, BLOCK_SAMPLES + 1)
    for k in range(len(weights)):
        count = np.cumsum(np.array(located) == k)
        assert np.abs(count - n * share[k]).max() <= 1


@settings(max_examples=20, deadline=None)
@given(weights=WEIGHTS, block=st.integers(0, 10**9), slot=st.integers(0, BLOCK_SAMPLES - 500))
def test_earlier_samples_of_a_source_are_counted_in_closed_form(
    weights: tuple[float, ...], block: int, slot: int
) -> None:
    schedule = Schedule(weights)
    first = block * BLOCK_SAMPLES + slot
    next_count: dict[int, int] = {}
    for sample in range(first, first + 1_000):
        source, earlier = schedule.locate(sample)
        assert next_count.setdefault(source, earlier) == earlier
        next_count[source] += 1


# ---- which window ------------------------------------------------------------------------------


@settings(deadline=None)
@given(size=st.integers(1, 2_000), key=st.integers(0, 2**64 - 1))
def test_shuffled_is_a_permutation_of_any_size_and_key(size: int, key: int) -> None:
    assert sorted(shuffled(i, size, key) for i in range(size)) == list(range(size))


@given(size=st.integers(2**33, 2**45), key=st.integers(0, 2**64 - 1), data=st.data())
def test_shuffled_keeps_distinct_positions_distinct_in_huge_sources(
    size: int, key: int, data: st.DataObject
) -> None:
    positions = data.draw(st.lists(st.integers(0, size - 1), max_size=20, unique=True))
    images = {shuffled(position, size, key) for position in positions}
    assert len(images) == len(positions)
    assert all(0 <= image < size for image in images)


def test_shuffled_order_looks_random() -> None:
    size = 10_000
    order = np.array([shuffled(i, size, key=7) for i in range(size)])
    positions = np.arange(size)
    assert abs(np.corrcoef(order, positions)[0, 1]) < 0.03
    assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.03
    neighbours = np.abs(np.diff(order)) == 1
    assert neighbours.sum() < 10  # 2 expected
    ascents = (np.diff(order) > 0).mean()
    assert abs(ascents - 0.5) < 0.02


def test_every_small_permutation_is_reached_about_equally_often() -> None:
    seen: dict[tuple[int, ...], int] = {}
    for key in range(0, 24_000 * 1_000_003, 1_000_003):
        order = tuple(shuffled(i, 4, key) for i in range(4))
        seen[order] = seen.get(order, 0) + 1
    assert len(seen) == 24
    assert max(seen.values()) < 1_200
    assert min(seen.values()) > 800


# ---- the mixture -------------------------------------------------------------------------------


def test_an_epoch_trains_each_window_once_and_the_next_in_another_order(data: DataConfig) -> None:
    mixture = Mixture(data, seed=1)
    windows: dict[tuple[int, int], list[int]] = {}
    for i in range(1_000):
        source, epoch, window = mixture.locate(i)
        windows.setdefault((source, epoch), []).append(window)
    assert len(windows) > 10
    for (source, epoch), order in windows.items():
        assert len(set(order)) == len(order)
        if (source, epoch + 1) in windows:
            assert len(order) == mixture.sources[source].num_windows
            assert order[: len(windows[source, epoch + 1])] != windows[source, epoch + 1]


def test_training_windows_tile_the_training_part_and_leave_no_more_than_one_window_out(
    data: DataConfig,
) -> None:
    mixture = Mixture(data, seed=1)
    for source in mixture.sources:
        trained = source.num_windows * S + 1
        assert trained <= source.held_out_start < trained + S


def test_a_sample_is_a_window_of_consecutive_tokens_of_its_source(data: DataConfig) -> None:
    mixture = Mixture(data, seed=1)
    for i in range(200):
        tokens, source = mixture.sample(i)
        _, _, window = mixture.locate(i)
        first = 100_000 * source + window * S
        assert tokens.dtype == np.int64
        assert tokens.tolist() == list(range(first, first + S + 1))


def test_held_out_tokens_are_never_trained_on(data: DataConfig) -> None:
    mixture = Mixture(data, seed=1)
    trained = {int(token) for i in range(2_000) for token in mixture.sample(i).tokens}
    for source in range(mixture.num_sources):
        held_out = mixture.held_out(source, max_tokens=10**9)
        assert len(held_out) >= 1
        assert not trained & {int(token) for token in held_out.flat}


def test_held_out_windows_follow_each_other_up_to_max_tokens(data: DataConfig) -> None:
    mixture = Mixture(data, seed=1)
    windows = mixture.held_out(1, max_tokens=5 * S + 3)
    assert windows.shape == (5, S + 1)
    assert all(before[-1] == after[0] for before, after in pairwise(windows))
    assert mixture.held_out(1, max_tokens=1).shape == (1, S + 1)


@given(first=st.integers(0, 10**12), split=st.integers(0, 12))
def test_a_batch_does_not_depend_on_how_it_is_divided(
    tmp_path_factory: pytest.TempPathFactory, first: int, split: int
) -> None:
    mixture = _shared_mixture(tmp_path_factory)
    whole = mixture.batch(first, 12)
    parts = [mixture.batch(first, split), mixture.batch(first + split, 12 - split)]
    for together, a, b in zip(whole, *parts, strict=True):
        assert np.array_equal(together, np.concatenate([a, b]))


_mixtures: list[Mixture] = []


def _shared_mixture(tmp_path_factory: pytest.TempPathFactory) -> Mixture:
    if not _mixtures:
        folder = tmp_path_factory.mktemp("mixture")
        _mixtures.append(Mixture(data_config(folder, [(1_000, 0.7), (5_000, 0.3)]), seed=1))
    return _mixtures[0]


def test_labels_are_the_inputs_one_position_later(data: DataConfig) -> None:
    tokens_BS, labels_BS, sources_B = Mixture(data, seed=1).batch(0, 50)
    assert tokens_BS.shape == labels_BS.shape == (50, S)
    assert np.array_equal(tokens_BS[:, 1:], labels_BS[:, :-1])
    assert np.array_equal(labels_BS[:, -1] // 100_000, sources_B)


def test_the_same_seed_gives_the_same_samples_and_another_seed_others(data: DataConfig) -> None:
    first, again, other = (Mixture(data, seed).batch(0, 64) for seed in (1, 1, 2))
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[2], other[2])
    assert not np.array_equal(first[0], other[0])


def test_sampling_eight_windows_of_4096_takes_less_than_a_millisecond(tmp_path: Path) -> None:
    data = data_config(tmp_path, [(2_000_000, 0.7), (2_000_000, 0.3)])
    mixture = Mixture(dataclasses.replace(data, sequence_length=4096), seed=1)
    mixture.check_vocabulary(2_200_000)
    durations = []
    for step in range(50):
        begin = time.perf_counter()
        mixture.batch(8 * step, 8)
        durations.append(time.perf_counter() - begin)
    assert min(durations) < 1e-3


# ---- what is refused ---------------------------------------------------------------------------


def refused(data: DataConfig, **changes: object) -> str:
    with pytest.raises(ConfigError) as error:
        Mixture(dataclasses.replace(data, **changes), seed=1)  # type: ignore[arg-type]
    return str(error.value)


def test_a_missing_source_is_named_with_its_path(data: DataConfig, tmp_path: Path) -> None:
    missing = SourceConfig("books", str(tmp_path / "nowhere"))
    message = refused(data, sources=(*data.sources, missing))
    assert "data.sources.books.path" in message
    assert f"{tmp_path / 'nowhere'}.idx does not exist" in message


def test_a_source_cut_short_is_named_with_both_sizes(data: DataConfig, tmp_path: Path) -> None:
    path = tmp_path / "s1.bin"
    path.write_bytes(path.read_bytes()[:-4])
    message = refused(data)
    assert "data.sources.s1" in message
    assert "19,996 bytes" in message
    assert "20,000" in message


def test_a_source_shorter_than_a_window_is_refused_with_the_numbers(data: DataConfig) -> None:
    message = refused(data, sequence_length=600, held_out=0.0)
    assert "data.sources.s2" in message
    assert "400 training tokens" in message
    assert "601" in message


def test_a_held_out_part_shorter_than_a_window_is_refused_with_the_least_that_works(
    data: DataConfig,
) -> None:
    message = refused(data, held_out=0.03)
    assert "data.sources.s2: data.held_out = 0.03" in message
    assert "400 tokens" in message
    least = float(message.rsplit(" ", 1)[1])
    Mixture(dataclasses.replace(data, held_out=least), seed=1)


def test_without_held_out_everything_is_trained_on(data: DataConfig) -> None:
    mixture = Mixture(dataclasses.replace(data, held_out=0.0), seed=1)
    assert mixture.held_out(0, 1_000).shape == (0, S + 1)
    assert mixture.sources[0].num_windows == 999 // S


def test_no_sources_is_refused(data: DataConfig) -> None:
    assert "data.sources is empty" in refused(data, sources=())


def test_a_token_outside_the_models_vocabulary_is_refused_at_the_start(data: DataConfig) -> None:
    mixture = Mixture(data, seed=1)
    mixture.check_vocabulary(200_400)
    with pytest.raises(ConfigError, match="s2.*holds token 200399, model.vocab_size = 200399"):
        mixture.check_vocabulary(200_399)


def test_a_tokenizer_larger_than_the_models_vocabulary_is_refused(
    data: DataConfig, tmp_path: Path
) -> None:
    train(["some words and some more words"], 300, tmp_path)
    size = len(token_bytes(tmp_path))
    mixture = Mixture(dataclasses.replace(data, tokenizer=str(tmp_path)), seed=1)
    with pytest.raises(ConfigError, match=f"has {size} tokens.*model.vocab_size = {size - 1}"):
        mixture.check_vocabulary(size - 1)


def test_a_token_beyond_what_the_start_reads_is_refused_when_it_is_sampled(
    data: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megatron_qwen3.pretrain.data.SCAN_BYTES", 400)
    mixture = Mixture(data, seed=1)
    mixture.check_vocabulary(200_101)
    with pytest.raises(ConfigError, match="data.sources.s2"):
        mixture.batch(0, 10_000)
