"""Over stages, weights, lengths, batches, ranks and interruptions every token comes in its turn."""

import dataclasses
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep import curriculum
from data_prep.curriculum import Curriculum, Source, Stage, StageShare
from data_prep.indexed import IndexedWriter
from data_prep.stretches import ShardFile
from megatron_qwen3.config import Config, ConfigError
from megatron_qwen3.pretrain import record, stream
from megatron_qwen3.pretrain.check import check_inputs
from megatron_qwen3.pretrain.data import Mixture
from megatron_qwen3.pretrain.record import RunRecord
from megatron_qwen3.settings import (
    DataConfig,
    EvalConfig,
    ModelConfig,
    RunConfig,
    SourceConfig,
    TrainConfig,
)

TOKENS = (1_500, 700, 260)


@pytest.fixture(autouse=True, scope="module")
def small_blocks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "BLOCK_SEQUENCES", 8)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sources in one, two and five shards; token 10,000·k + p stands at place p of k."""
    folder = tmp_path_factory.mktemp("shards")
    for k, tokens in enumerate(TOKENS):
        shards = (1, 2, 5)[k]
        for n, part in enumerate(np.array_split(10_000 * k + np.arange(tokens), shards)):
            with IndexedWriter(folder / f"s{k}" / str(n), np.int32) as writer:
                for document in np.array_split(part, 3):
                    writer.add_document(document)
    return folder


def source(folder: Path, k: int, held_out: int = 20) -> Source:
    shards = (1, 2, 5)[k]
    sizes = [len(part) for part in np.array_split(np.arange(TOKENS[k]), shards)]
    files = tuple(ShardFile(f"s{k}/{n}", size) for n, size in enumerate(sizes))
    return Source(f"s{k}", str(folder), files, held_out, {"domain": f"d{k}", "language": "xx"})


def config_of(
    folder: Path, run: Path, weights: tuple[float, ...], length: int, batch: int, steps: int
) -> Config:
    """Simple sources: s0, s1 and s2 have one shard each here, the first of their own."""
    paths = [SourceConfig(f"s{k}", str(folder / f"s{k}" / "0"), w) for k, w in enumerate(weights)]
    return Config(
        run=RunConfig(name=run.name, dir=str(run.parent)),
        data=DataConfig(sequence_length=length, held_out=0, sources=tuple(paths)),
        train=TrainConfig(steps=steps, global_batch=batch),
    )


class Delivered:
    """The samples of a run, step by step; steps done again replace those lost in a crash."""

    def __init__(self) -> None:
        self.steps: dict[int, np.ndarray] = {}

    def step(self, mixture: Mixture, step: int, ranks: int) -> None:
        rows = mixture.part.global_batch // ranks
        first = mixture.first_sample(step)
        parts = [mixture.batch(first + rank * rows, rows).tokens_BS for rank in range(ranks)]
        tokens = np.concatenate(parts)
        if step in self.steps:
            assert np.array_equal(self.steps[step], tokens), f"step {step} came out differently"
        self.steps[step] = tokens

    def counts(self) -> Counter[int]:
        return Counter(int(token) for tokens in self.steps.values() for token in tokens.flat)


# A leg of a run: weights, sequence length, ranks, micro-batches, steps, and steps lost at its end.
LEG = st.tuples(
    st.tuples(*[st.sampled_from((1e-3, 0.2, 1.0, 3.0))] * 3),
    st.integers(3, 40),
    st.sampled_from((1, 2, 4)),
    st.integers(1, 3),
    st.integers(1, 25),
    st.integers(0, 10),
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(stages=st.lists(st.lists(LEG, min_size=1, max_size=3), min_size=1, max_size=3))
def test_every_token_is_trained_once_per_epoch_over_all_changes_and_interruptions(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, stages: list
) -> None:
    runs = tmp_path_factory.mktemp("runs")
    total: Counter[int] = Counter()
    before = None
    for number, legs in enumerate(stages):
        step, delivered = 0, Delivered()
        for weights, length, ranks, micro, steps, lost in legs:
            config = config_of(folder, runs / f"stage{number}", weights, length, ranks * micro, 999)
            history = record.prepare(config, step, before)
            mixture = Mixture(history.parts[-1])
            config.run_dir.mkdir(exist_ok=True)
            history.write(config.run_dir)
            for _ in range(steps):
                delivered.step(mixture, step, ranks)
                step += 1
            step = max(step - lost, history.parts[-1].first_step, 1)
            for gone in [s for s in delivered.steps if s >= step]:
                again = delivered.steps[gone]
                delivered.step(mixture, gone, 1)  # whoever does it again gets the same
                assert np.array_equal(delivered.steps.pop(gone), again)
        before = (config.run_dir, step)
        total += delivered.counts()
    history = RunRecord.read(before[0])
    assert history is not None
    for k, size in enumerate(TOKENS):
        first_shard = len(np.array_split(np.arange(size), (1, 2, 5)[k])[0])
        counts = [total[10_000 * k + p] for p in range(first_shard - 1)]
        starts = history.starts_after(before[1])
        start = next(start for key, start in starts.items() if key.startswith(f"s{k}:"))
        epochs_begun = -(-start.cursor.position // (first_shard - 1))
        assert max(counts) <= epochs_begun
        assert sum(counts) == start.cursor.tokens_read
        gaps = start.cursor.position - start.cursor.tokens_read
        assert sum(epochs_begun - 1 - c for c in counts if c < epochs_begun - 1) <= gaps


def test_a_run_that_is_killed_goes_on_with_the_same_samples(folder: Path, tmp_path: Path) -> None:
    config = config_of(folder, tmp_path / "run", (1.0, 0.5, 0.1), 16, 4, 60)
    whole = Delivered()
    mixture = Mixture(record.prepare(config, 0).parts[-1])
    for step in range(60):
        whole.step(mixture, step, ranks=2)
    for step in (0, 7, 33, 34):
        config.run_dir.mkdir(exist_ok=True)
        history = record.prepare(config, step)
        history.write(config.run_dir)
        again = Mixture(history.parts[-1])
        for later in range(step, 60):
            whole.step(again, later, ranks=1)
    assert len(history.parts) == 1


def test_a_budget_of_tokens_is_refused_once_steps_differ_and_told_in_steps(
    folder: Path, tmp_path: Path
) -> None:
    config = config_of(folder, tmp_path / "run", (1.0,), 16, 4, 0)
    config = dataclasses.replace(config, train=TrainConfig(tokens=640, global_batch=4))
    config.run_dir.mkdir()
    record.prepare(config, 0).write(config.run_dir)
    assert config.steps == 10 and len(record.prepare(config, 4).parts) == 1
    larger = dataclasses.replace(config, train=TrainConfig(tokens=640, global_batch=8))
    with pytest.raises(ConfigError, match=r"tokens = 640, .* 128 tokens; .* train.steps=7 are"):
        record.prepare(larger, 4)
    in_steps = dataclasses.replace(config, train=TrainConfig(steps=7, global_batch=8))
    history = record.prepare(in_steps, 4)
    assert history.tokens_after(7) == 4 * 64 + 3 * 128 == 640
    assert history.tokens_after(7, left_out={2, 5, 6, 7}) == 3 * 64 + 128


# ---- planned stages ----------------------------------------------------------------------------


def plan(folder: Path, *stages: dict[int, int], length: int = 16) -> Curriculum:
    """Stages of so many sequences of each source, cursors as the mixing tool sets them."""
    cursors = dict.fromkeys(range(3), 0)
    planned = []
    for number, sequences in enumerate(stages):
        shares = []
        for k, count in sequences.items():
            shares.append(StageShare(source(folder, k), count * length, cursors[k]))
            cursors[k] += count * length
        planned.append(Stage(f"stage{number}", length, 99.0, tuple(shares)))
    return Curriculum(7, {"sha256": "0" * 64}, 30_000, tuple(planned))


def planned_config(file: Path, run: Path, stage: str, steps: int, length: int = 16) -> Config:
    return Config(
        run=RunConfig(name=run.name, dir=str(run.parent)),
        model=ModelConfig(vocab_size=30_000),
        data=DataConfig(sequence_length=length, curriculum=str(file), stage=stage),
        train=TrainConfig(steps=steps, global_batch=5),
    )


@settings(max_examples=25, deadline=None)
@given(
    quotas=st.lists(
        st.dictionaries(st.integers(0, 2), st.integers(1, 80), min_size=1), min_size=1, max_size=3
    )
)
def test_planned_stages_deliver_their_quotas_exactly_and_follow_each_other_without_a_record(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, quotas: list[dict[int, int]]
) -> None:
    file = tmp_path_factory.mktemp("plan") / "curriculum.json"
    curriculum.write(plan(folder, *quotas), file)
    assert curriculum.read(file) == plan(folder, *quotas)
    counts: Counter[int] = Counter()
    for number, sequences in enumerate(quotas):
        total = sum(sequences.values())
        config = planned_config(file, file.parent / "run", f"stage{number}", total // 5)
        mixture = Mixture(record.prepare(config, 0).parts[-1])
        rows = mixture.batch(0, total)
        counts += Counter(int(token) for token in rows.tokens_BS.flat)
        for index, src in enumerate(mixture.sources):
            assert (rows.sources_B == index).sum() == sequences[int(src.name[1])]
    for k in range(3):
        read = 16 * sum(sequences.get(k, 0) for sequences in quotas)
        epochs, rest = divmod(read, TOKENS[k] - 21)
        seen = Counter(counts[10_000 * k + place] for place in range(TOKENS[k] - 21))
        assert seen == {epochs: TOKENS[k] - 21 - rest} | ({epochs + 1: rest} if rest else {})


def test_a_stage_that_ended_early_leaves_the_rest_of_its_tokens_to_the_next(
    folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "curriculum.json"
    curriculum.write(plan(folder, {0: 60, 1: 20}, {0: 30}), file)
    first = planned_config(file, tmp_path / "first", "stage0", steps=16)
    history = record.prepare(first, 0)
    first.run_dir.mkdir()
    history.write(first.run_dir)
    seen = Counter(Mixture(history.parts[-1]).batch(0, 40).tokens_BS.flat)
    second = planned_config(file, tmp_path / "second", "stage1", steps=6)
    following = Mixture(record.prepare(second, 0, (first.run_dir, 8)).parts[-1])
    seen += Counter(following.batch(0, 30).tokens_BS.flat)
    assert max(seen.values()) == 1
    planned = Mixture(record.prepare(second, 0).parts[-1])
    assert planned.locate(0).ranges != following.locate(0).ranges


def test_another_mixture_in_the_middle_of_a_planned_stage_takes_the_steps_that_are_left(
    folder: Path, tmp_path: Path
) -> None:
    file, other = tmp_path / "curriculum.json", tmp_path / "other.json"
    curriculum.write(plan(folder, {0: 50, 1: 25}), file)
    curriculum.write(plan(folder, {0: 20, 1: 40, 2: 15}), other)
    config = planned_config(file, tmp_path / "run", "stage0", steps=15)
    config.run_dir.mkdir()
    record.prepare(config, 0).write(config.run_dir)
    changed = dataclasses.replace(
        config, data=dataclasses.replace(config.data, curriculum=str(other))
    )
    history = record.prepare(changed, 5)
    part = history.parts[-1]
    assert (part.first_step, part.sequences) == (5, 50)
    assert part.quotas() == [13, 27, 10]
    rows = Mixture(history.parts[0]).batch(0, 25)
    seen = Counter(rows.tokens_BS.flat) + Counter(Mixture(part).batch(0, 50).tokens_BS.flat)
    assert max(token_count for token, token_count in seen.items() if token < 20_000) == 1
    history.write(config.run_dir)
    assert record.prepare(changed, 9).parts == history.parts
    assert record.prepare(config, 5).parts[-1].first_step == 0  # back before anything was done


def test_a_source_whose_part_is_less_than_half_a_sequence_is_left_out_and_goes_on_later(
    folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "curriculum.json"
    curriculum.write(plan(folder, {0: 50, 1: 1, 2: 5}), file)
    longer = planned_config(file, tmp_path / "run", "stage0", steps=2, length=64)
    history = record.prepare(longer, 0)
    assert history.parts[-1].quotas() == [13, 0, 1]
    rows = Mixture(history.parts[-1]).batch(0, 10)
    assert set(rows.sources_B) <= {0, 2}
    assert history.starts_after(2)[source(folder, 1).identity].cursor.tokens_read == 0


def test_a_run_that_is_done_starts_again_with_another_batch_and_reads_nothing(
    folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "curriculum.json"
    curriculum.write(plan(folder, {0: 50, 1: 10}), file)
    config = planned_config(file, tmp_path / "run", "stage0", steps=12)
    config.run_dir.mkdir()
    record.prepare(config, 0).write(config.run_dir)
    other = dataclasses.replace(config, train=TrainConfig(steps=12, global_batch=2))
    history = record.prepare(other, 12)
    assert Mixture(history.parts[-1]).part.sequences == 0
    assert history.tokens_after(12) == 960


def test_text_that_comes_again_because_its_sources_were_put_together_otherwise_is_told(
    folder: Path, tmp_path: Path
) -> None:
    file, other = tmp_path / "curriculum.json", tmp_path / "other.json"
    curriculum.write(plan(folder, {0: 50, 1: 10}), file)
    joined = dataclasses.replace(
        source(folder, 0), name="joined", shards=source(folder, 0).shards + source(folder, 1).shards
    )
    stage = Stage("stage0", 16, 99.0, (StageShare(joined, 60 * 16, 0),))
    curriculum.write(Curriculum(7, {}, 30_000, (stage,)), other)
    config = planned_config(file, tmp_path / "run", "stage0", steps=12)
    config.run_dir.mkdir()
    history = record.prepare(config, 0)
    assert history.news == ()
    history.write(config.run_dir)
    mixed_again = with_data(config, curriculum=str(other))
    history = record.prepare(mixed_again, 6)
    assert history.news[0].startswith("another mixture from here on")
    assert history.news[1].startswith("1 sources (joined) are put together otherwise than before")
    same = dataclasses.replace(config, train=TrainConfig(steps=9, global_batch=10))
    assert record.prepare(same, 6).news == (history.news[0],)
    history.write(config.run_dir)
    assert record.prepare(mixed_again, 7).news == ()


# ---- what is refused ---------------------------------------------------------------------------


@pytest.fixture
def planned(folder: Path, tmp_path: Path) -> Config:
    file = tmp_path / "curriculum.json"
    curriculum.write(plan(folder, {0: 50, 2: 10}), file)
    return planned_config(file, tmp_path / "run", "stage0", steps=12)


def with_data(config: Config, **changes: object) -> Config:
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **changes))


def test_more_steps_than_the_stage_has_are_refused_with_the_most_that_it_has(
    planned: Config,
) -> None:
    longer = dataclasses.replace(planned, train=TrainConfig(steps=13, global_batch=5))
    with pytest.raises(ConfigError, match=r"steps = 13 .*has 60; valid: at most 12 steps \(960"):
        record.prepare(longer, 0)


def test_a_stage_shorter_than_one_batch_asks_for_a_smaller_batch(planned: Config) -> None:
    longer = dataclasses.replace(planned, train=TrainConfig(tokens=3200, global_batch=100))
    complaint = r"train.tokens = 3,200 .*has 60; valid: a train.global_batch of at most 60, not 100"
    with pytest.raises(ConfigError, match=complaint):
        record.prepare(longer, 0)


def test_a_larger_batch_in_the_middle_may_not_read_more_than_the_stage_has(
    planned: Config,
) -> None:
    planned.run_dir.mkdir()
    record.prepare(planned, 0).write(planned.run_dir)

    def with_batch(steps: int) -> Config:
        return dataclasses.replace(planned, train=TrainConfig(steps=steps, global_batch=10))

    with pytest.raises(
        ConfigError, match=r"steps = 12 asks for 60 .*has 30 left; valid: at most 9 steps \(960"
    ):
        record.prepare(with_batch(12), 6)
    history = record.prepare(with_batch(9), 6)
    assert history.parts[-1].quotas() == [25, 5]
    history.write(planned.run_dir)
    with pytest.raises(ConfigError, match=r"has 10 left; valid: at most 10 steps \(960"):
        record.prepare(dataclasses.replace(planned, train=TrainConfig(steps=13, global_batch=5)), 8)


def test_a_stage_that_has_done_more_steps_than_are_asked_for_has_none_left_in_any_batch(
    planned: Config,
) -> None:
    begun = dataclasses.replace(planned, train=TrainConfig(steps=10, global_batch=5))
    begun.run_dir.mkdir(parents=True)
    record.prepare(begun, 0).write(begun.run_dir)
    shorter = dataclasses.replace(planned, train=TrainConfig(steps=4, global_batch=6))
    part = record.prepare(shorter, 6).parts[-1]
    assert (part.first_step, part.sequences) == (6, 0)
    Mixture(part)


def test_an_unknown_stage_gets_a_suggestion(planned: Config) -> None:
    with pytest.raises(ConfigError, match="stgae0.*did you mean stage0"):
        record.prepare(with_data(planned, stage="stgae0"), 0)


def test_a_curriculum_that_is_missing_or_none_is_named(planned: Config, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="gone.json does not exist; mq3 data mix"):
        record.prepare(with_data(planned, curriculum=str(tmp_path / "gone.json")), 0)
    for text in ("[]", "{", '{"version": 1}', '{"version": 2}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(ConfigError, match="bad.json is"):
            record.prepare(with_data(planned, curriculum=str(tmp_path / "bad.json")), 0)


def test_a_shard_missing_or_cut_short_is_named_before_the_first_step(
    planned: Config, folder: Path
) -> None:
    mixture = Mixture(record.prepare(planned, 0).parts[-1])
    check_inputs(planned, mixture)
    path = folder / "s2" / "3.bin"
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[:-4])
        with pytest.raises(ConfigError, match=r"source s2: .*3.bin has 204 bytes, 52 tokens were"):
            check_inputs(planned, mixture)
        path.unlink()
        with pytest.raises(ConfigError, match=r"source s2: .*3.bin: No such file"):
            check_inputs(planned, mixture)
    finally:
        path.write_bytes(whole)


def test_a_shard_that_only_results_are_of_is_named_before_the_first_step(
    planned: Config, folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "idle.json"
    curriculum.write(plan(folder, {0: 50, 1: 0, 2: 10}), file)
    planned = with_data(planned, curriculum=str(file))
    mixture = Mixture(record.prepare(planned, 0).parts[-1])
    assert "s1" not in mixture.names
    path = folder / "s1" / "1.bin"
    path.rename(tmp_path / "away.bin")
    try:
        check_inputs(planned, mixture)
        by = dataclasses.replace(planned, eval=EvalConfig(by=("domain",)))
        with pytest.raises(ConfigError, match=r"source s1: .*1.bin: No such file"):
            check_inputs(by, mixture)
    finally:
        (tmp_path / "away.bin").rename(path)


def test_a_curriculum_of_another_tokenizer_or_a_larger_vocabulary_is_refused(
    planned: Config, tmp_path: Path
) -> None:
    mixture = Mixture(record.prepare(planned, 0).parts[-1])
    small = dataclasses.replace(planned, model=ModelConfig(vocab_size=29_999))
    with pytest.raises(ConfigError, match=r"30,000 tokens, more than model.vocab_size = 29,999"):
        check_inputs(small, mixture)
    tokenizer = tmp_path / "tokenizer.json"
    content = {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "added_tokens": []}
    tokenizer.write_text(json.dumps({**content, "pre_tokenizer": {"type": "ByteLevel"}}))
    with pytest.raises(ConfigError, match="is not the tokenizer of data.curriculum"):
        check_inputs(with_data(planned, tokenizer=str(tokenizer)), mixture)


def test_another_held_out_part_of_a_source_that_was_trained_on_is_refused(
    folder: Path, tmp_path: Path
) -> None:
    config = config_of(folder, tmp_path / "run", (1.0, 1.0, 1.0), 8, 4, 9)
    config.run_dir.mkdir()
    record.prepare(config, 0).write(config.run_dir)
    with pytest.raises(ConfigError, match="150 tokens are held out, but 0 were.*data.held_out"):
        record.prepare(with_data(config, held_out=0.1, sequence_length=4), 5)
