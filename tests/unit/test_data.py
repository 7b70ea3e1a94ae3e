"""A sample depends on its number alone, holds the text of its place, and bad inputs are errors."""

import dataclasses
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import curriculum
from data_prep.curriculum import Curriculum, Source, Stage, StageShare
from data_prep.indexed import IndexedWriter
from data_prep.stretches import ShardFile
from data_prep.tokenizer import train
from data_prep.tokenizer_file import token_bytes
from megatron_qwen3.config import Config, ConfigError
from megatron_qwen3.model.stretches import Stretches
from megatron_qwen3.pretrain import files as reading
from megatron_qwen3.pretrain.check import check_inputs
from megatron_qwen3.pretrain.data import Mixture
from megatron_qwen3.pretrain.evaluated import evaluated
from megatron_qwen3.pretrain.files import SourceFiles
from megatron_qwen3.pretrain.record import Feed, RunPart, Start
from megatron_qwen3.pretrain.rows import arrays_of
from megatron_qwen3.pretrain.sources import simple_sources
from megatron_qwen3.settings import DataConfig, EvalConfig, ModelConfig, SourceConfig
from megatron_qwen3.training.batch import TokenBatch

S = 16


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


def mixture_of(data: DataConfig, seed: int = 1) -> Mixture:
    feeds = tuple(Feed(source, share, Start(seed)) for source, share in simple_sources(data))
    return Mixture(RunPart(0, 8, data.sequence_length, None, feeds))


@pytest.fixture
def data(tmp_path: Path) -> DataConfig:
    return data_config(tmp_path, [(1_000, 0.7), (5_000, 0.295), (400, 0.005)])


# ---- the mixture -------------------------------------------------------------------------------


def test_a_sample_is_the_tokens_of_its_place_and_labels_are_the_tokens_after_them(
    data: DataConfig,
) -> None:
    mixture = mixture_of(data)
    rows = mixture.batch(0, 200)
    assert rows.tokens_BS.shape == rows.labels_BS.shape == (200, S)
    assert rows.tokens_BS.dtype == np.int64
    for i in range(200):
        place = mixture.locate(i)
        assert place.source == rows.sources_B[i]
        token = [100_000 * place.source + n for a, b in place.ranges for n in range(a, b)]
        assert rows.tokens_BS[i].tolist() == token
        assert np.array_equal(rows.labels_BS[i], rows.tokens_BS[i] + 1)


def test_a_sample_is_one_piece_of_text_but_where_an_epoch_ends(data: DataConfig) -> None:
    mixture = mixture_of(data)
    places = [mixture.locate(i) for i in range(500)]
    assert sum(len(place.ranges) > 1 for place in places) <= max(p.epoch for p in places) * 3
    assert max(place.epoch for place in places) >= 4


def test_held_out_tokens_are_never_trained_on(data: DataConfig) -> None:
    mixture = mixture_of(data)
    rows = mixture.batch(0, 2_000)
    trained = {*rows.tokens_BS.flat, *rows.labels_BS.flat}
    for source in range(len(mixture.sources)):
        held_out = mixture.read(mixture.held_out(source, max_tokens=10**9))
        assert len(held_out.tokens_BS) >= 1
        assert not trained & {*held_out.tokens_BS.flat, *held_out.labels_BS.flat}


def test_all_tokens_but_the_held_out_ones_are_trained_on_within_an_epoch(data: DataConfig) -> None:
    mixture = mixture_of(data)
    trained = set(mixture.batch(0, 4_800).tokens_BS.flat)
    for k, source in enumerate(mixture.sources):
        assert trained >= {100_000 * k + n for n in range(source.tokens - source.held_out - 1)}


def mixture_of_documents(folder: Path, held_out: float = 0.0) -> Mixture:
    """Documents of 0 to 39 tokens, each token its place in the document and 1,000 times that's."""
    with IndexedWriter(folder / "docs", np.int32) as writer:
        for number in range(150):
            writer.add_document(1_000 * number + np.arange(7 * number % 40))
    source = SourceConfig("docs", str(folder / "docs"))
    return mixture_of(DataConfig(sequence_length=64, held_out=held_out, sources=(source,)))


def test_a_document_begins_where_one_does_and_where_text_does_not_go_on(tmp_path: Path) -> None:
    mixture = mixture_of_documents(tmp_path)
    rows = mixture.batch(0, 80, with_documents=True)
    assert rows.documents is not None and mixture.batch(0, 2).documents is None
    seams = 0
    for i in range(80):
        begins = {0, *np.cumsum([b - a for a, b in mixture.locate(i).ranges]).tolist()[:-1]}
        seams += len(begins) - 1
        begins |= {*np.flatnonzero(rows.tokens_BS[i] % 1_000 == 0).tolist()}
        assert rows.documents.starts[i] == sorted(begins)
    assert seams >= 1


def test_the_label_of_every_token_but_a_documents_last_is_of_the_same_document(
    tmp_path: Path,
) -> None:
    mixture = mixture_of_documents(tmp_path, held_out=0.2)
    trained = mixture.batch(0, 80, with_documents=True)
    assert trained.documents is not None and not trained.documents.goes_on_BS[:, -1].all()
    for rows in (trained, mixture.read(mixture.held_out(0, 10**6), with_documents=True)):
        assert rows.documents is not None
        goes_on_BS = rows.labels_BS // 1_000 == rows.tokens_BS // 1_000
        assert np.array_equal(rows.documents.goes_on_BS, goes_on_BS)
        assert not goes_on_BS.all()


def test_rows_with_documents_are_a_batch_of_their_stretches_and_weights(tmp_path: Path) -> None:
    rows = mixture_of_documents(tmp_path).batch(0, 4, with_documents=True)
    batch = TokenBatch.of_arrays(arrays_of(rows))
    assert rows.documents is not None and batch.stretches is not None
    assert batch.tokens_BS.tolist() == rows.tokens_BS.tolist()
    assert batch.labels_BS.tolist() == rows.labels_BS.tolist()
    assert batch.weights_BS.tolist() == rows.documents.goes_on_BS.tolist()
    assert batch.stretches.bounds == Stretches.of(rows.documents.starts, 64).bounds
    whole = TokenBatch.of_arrays(arrays_of(rows._replace(documents=None)))
    assert whole.stretches is None and whole.weights_BS.all()


def test_held_out_windows_follow_each_other_up_to_max_tokens(data: DataConfig) -> None:
    mixture = mixture_of(data)
    windows = mixture.read(mixture.held_out(1, max_tokens=5 * S + 3))
    assert windows.tokens_BS.shape == (5, S) and windows.sources_B.tolist() == [1] * 5
    assert np.array_equal(windows.labels_BS, windows.tokens_BS + 1)
    assert all(before[-1] == after[0] - 1 for before, after in pairwise(windows.tokens_BS))
    assert len(mixture.held_out(1, max_tokens=1)) == 1


@settings(deadline=None)
@given(first=st.integers(0, 10**12), split=st.integers(0, 12))
def test_a_batch_does_not_depend_on_how_it_is_divided(
    tmp_path_factory: pytest.TempPathFactory, first: int, split: int
) -> None:
    mixture = _shared_mixture(tmp_path_factory)
    whole = mixture.batch(first, 12)
    parts = [mixture.batch(first, split), mixture.batch(first + split, 12 - split)]
    for together, a, b in zip(whole[:3], *(part[:3] for part in parts), strict=True):
        assert np.array_equal(together, np.concatenate([a, b]))


_mixtures: list[Mixture] = []


def _shared_mixture(tmp_path_factory: pytest.TempPathFactory) -> Mixture:
    if not _mixtures:
        folder = tmp_path_factory.mktemp("mixture")
        _mixtures.append(mixture_of(data_config(folder, [(1_000, 0.7), (5_000, 0.3)])))
    return _mixtures[0]


def test_the_same_seed_gives_the_same_samples_and_another_seed_others(data: DataConfig) -> None:
    first, again, other = (mixture_of(data, seed).batch(0, 64) for seed in (1, 1, 2))
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[2], other[2])
    assert not np.array_equal(first[0], other[0])


def test_sampling_reads_the_tokens_of_its_windows_and_one_label_each_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = data_config(tmp_path, [(20_000, 0.7), (20_000, 0.3)])
    mixture = mixture_of(dataclasses.replace(data, sequence_length=1024))
    mixture.check_vocabulary(200_000)
    read, tokens = SourceFiles.read, []

    def counted(self: SourceFiles, first: int, last: int) -> np.ndarray:
        tokens.append(last - first)
        return read(self, first, last)

    monkeypatch.setattr(SourceFiles, "read", counted)
    mixture.batch(0, 100)
    ranges = sum(len(mixture.locate(i).ranges) for i in range(100))
    assert len(tokens) == ranges < 120
    assert sum(tokens) == 100 * 1024 + ranges


# ---- what is refused ---------------------------------------------------------------------------


def refused(data: DataConfig, **changes: object) -> str:
    with pytest.raises(ConfigError) as error:
        mixture_of(dataclasses.replace(data, **changes))  # type: ignore[arg-type]
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


@pytest.mark.parametrize("sizes", [1, 20_000])
@pytest.mark.parametrize("within", ["", "below/"])
def test_relative_sources_are_looked_for_where_the_run_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, within: str, sizes: int
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reading, "_SIZES", sizes)
    Path("below").mkdir()
    for name, kind in (("a", np.int32), ("b", np.uint16)):
        with IndexedWriter(f"{within}{name}", kind) as writer:
            writer.add_document(np.arange(1_000))
    sources = tuple(SourceConfig(name, f"{within}{name}") for name in ("a", "b"))
    files = mixture_of(DataConfig(sequence_length=S, held_out=0.1, sources=sources)).files
    reading.check(files)
    Path(f"{within}b.bin").unlink()
    with pytest.raises(ConfigError, match=rf"source b: {within}b\.bin: No such file"):
        reading.check(files)


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
    mixture_of(dataclasses.replace(data, held_out=least))


def test_without_held_out_everything_is_trained_on(data: DataConfig) -> None:
    mixture = mixture_of(dataclasses.replace(data, held_out=0.0))
    assert mixture.held_out(0, 1_000) == []
    assert mixture.sources[0].training_tokens == 999


@pytest.mark.parametrize("spelling", ["{}", "{0.parent}/./{0.name}", "link"])
def test_the_same_file_under_two_names_is_refused_however_it_is_spelled(
    data: DataConfig, tmp_path: Path, spelling: str
) -> None:
    first = Path(data.sources[0].path)
    for end in ("bin", "idx"):
        (tmp_path / f"link.{end}").symlink_to(f"{first}.{end}")
    twice = SourceConfig("again", str(tmp_path / spelling.format(first)))
    message = refused(data, sources=(*data.sources, twice))
    assert f"s0 ({first}) and again ({twice.path}) are the same file" in message


def test_no_sources_is_refused(data: DataConfig) -> None:
    assert "data.sources is empty" in refused(data, sources=())


def test_a_token_outside_the_models_vocabulary_is_refused_at_the_start(data: DataConfig) -> None:
    mixture = mixture_of(data)
    mixture.check_vocabulary(200_400)
    with pytest.raises(ConfigError, match="s2.*holds token 200399, model.vocab_size = 200399"):
        mixture.check_vocabulary(200_399)


def with_tokenizer(data: DataConfig, folder: Path) -> tuple[DataConfig, int]:
    """The data with a tokenizer of about 300 tokens, and how many it has."""
    train(["some words and some more words"], 300, folder)
    return dataclasses.replace(data, tokenizer=str(folder)), len(token_bytes(folder))


def test_a_tokenizer_larger_than_the_models_vocabulary_is_refused(
    data: DataConfig, tmp_path: Path
) -> None:
    named, size = with_tokenizer(data, tmp_path)
    config = Config(data=named, model=ModelConfig(vocab_size=size - 1))
    with pytest.raises(ConfigError, match=f"has {size} tokens.*model.vocab_size = {size - 1}"):
        check_inputs(config, mixture_of(data))


def test_held_out_text_of_another_tokenizer_is_refused_before_it_is_scored(
    data: DataConfig, tmp_path: Path
) -> None:
    named, size = with_tokenizer(data, tmp_path)
    config = Config(data=named, model=ModelConfig(vocab_size=200_400))
    with pytest.raises(ConfigError, match=rf"has {size} tokens, but .*data\.sources\.s0 has token"):
        check_inputs(config, mixture_of(data))
    check_inputs(config, mixture_of(dataclasses.replace(data, held_out=0.0)))


def test_results_by_labels_are_of_all_sources_of_a_curriculum(
    data: DataConfig, tmp_path: Path
) -> None:
    sources = [
        Source(
            s.name, str(tmp_path), (ShardFile(s.name, s.tokens),), s.held_out, {"domain": s.name}
        )
        for s in mixture_of(data).sources
    ]
    shares = tuple(StageShare(source, 16 * n, 0) for n, source in enumerate(sources))
    file = tmp_path / "curriculum.json"
    curriculum.write(Curriculum(1, {}, 200_400, (Stage("one", 16, 4, shares),)), file)
    by_label = Config(
        data=DataConfig(curriculum=str(file), stage="one"), eval=EvalConfig(by=("domain",))
    )
    read = mixture_of(data)
    assert evaluated(read, Config(data=by_label.data)) is read
    every = evaluated(read, by_label)
    assert every.names == tuple(source.name for source in sources)
    assert every.held_out(0, 10**6) == read.held_out(0, 10**6) != []


def test_results_by_a_label_that_nothing_has_are_refused(data: DataConfig) -> None:
    config = Config(
        data=data, model=ModelConfig(vocab_size=200_400), eval=EvalConfig(by=("domain",))
    )
    with pytest.raises(
        ConfigError, match='eval.by = "domain" is no label .* only a curriculum has'
    ):
        check_inputs(config, mixture_of(data))


def test_a_token_beyond_what_the_start_reads_is_refused_when_it_is_sampled(
    data: DataConfig,
) -> None:
    mixture = mixture_of(data)
    mixture.check_vocabulary(200_101, scan_bytes=1_200)
    with pytest.raises(ConfigError, match="data.sources.s2"):
        mixture.batch(0, 10_000)
