"""A source is known by name and contents: moves change nothing, other contents do not go unseen."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import curriculum, fingerprint
from data_prep.curriculum import Curriculum, Source, Stage, StageShare
from data_prep.indexed import IndexedWriter
from data_prep.stretches import ShardFile
from megatron_qwen3.config import Config, ConfigError
from megatron_qwen3.pretrain import record
from megatron_qwen3.pretrain.data import Mixture
from megatron_qwen3.pretrain.known import recognised
from megatron_qwen3.pretrain.provenance import locate
from megatron_qwen3.pretrain.record import RunRecord
from megatron_qwen3.settings import DataConfig, ModelConfig, RunConfig, SourceConfig, TrainConfig

OLD = json.loads(Path(__file__).with_name("runs_of_version_1.json").read_text())


def write(prefix: Path, first: int, tokens: int) -> None:
    """Token first + p at place p."""
    with IndexedWriter(prefix, np.int32) as writer:
        writer.add_document(np.arange(first, first + tokens))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The files that the runs of version 1 were fed."""
    folder = tmp_path / "data"
    for name, first, tokens in (("web", 0, 1500), ("code", 10_000, 700), ("books", 20_000, 600)):
        write(folder / name, first, tokens)
    for n in range(3):
        write(folder / "shards" / "a" / str(n), 30_000 + 400 * n, 400)
    write(folder / "shards" / "b" / "0", 40_000, 500)
    return folder


def config_of(
    runs: Path,
    name: str,
    sources: dict[str, str],
    length: int = 16,
    batch: int = 4,
    weights: tuple[float, ...] = (0.7, 0.3),
) -> Config:
    """sources: path by name."""
    rows = zip(sources.items(), weights, strict=True)
    tables = tuple(SourceConfig(name, path, weight) for (name, path), weight in rows)
    return Config(
        run=RunConfig(name=name, dir=str(runs)),
        data=DataConfig(sequence_length=length, held_out=0.1, sources=tables),
        train=TrainConfig(steps=12, global_batch=batch),
    )


def begun(config: Config, step: int = 0, before: tuple[Path, int] | None = None) -> RunRecord:
    """Prepared and written as a start of the run does it."""
    history = record.prepare(config, step, before)
    config.run_dir.mkdir(parents=True, exist_ok=True)
    history.write(config.run_dir)
    return history


def samples(history: RunRecord, first: int = 0, last: int = 12) -> list[int]:
    """The first token of every row of steps first … last - 1."""
    mixture = Mixture(history.parts[-1])
    count = (last - first) * history.parts[-1].global_batch
    return mixture.batch(mixture.first_sample(first), count).tokens_BS[:, 0].tolist()


def paths(folder: object, *names: str) -> dict[str, str]:
    return {name: f"{folder}/{name}" for name in names}


# ---- a move changes nothing --------------------------------------------------------------------


@pytest.mark.parametrize("spelling", ["absolute", "./data", "data/../data", "moved", "link"])
def test_a_run_goes_on_with_the_same_samples_wherever_its_data_lie(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelling: str
) -> None:
    monkeypatch.chdir(tmp_path)
    config = config_of(tmp_path, "run", paths("data", "web", "code"))
    undisturbed = samples(begun(config))
    place = {"absolute": str(data), "moved": "elsewhere/x", "link": "link"}.get(spelling, spelling)
    if spelling == "moved":
        shutil.copytree(data, place)
        shutil.rmtree(data)
    if spelling == "link":
        Path("link").symlink_to(data)
    moved = config_of(tmp_path, "run", paths(place, "web", "code"))
    history = begun(moved, step=5)
    assert history.news == () and len(history.parts) == 1
    assert samples(history, 5) == undisturbed[20:]
    assert (
        samples(record.prepare(dataclasses.replace(moved, run=RunConfig("new")), 0)) == undisturbed
    )
    assert locate(moved.run_dir, 2, 0).pieces[0].tokens[0] == undisturbed[4]
    other_length = config_of(tmp_path, "run", paths(place, "web", "code"), length=24)
    (news,) = record.prepare(other_length, 7).news
    assert news.startswith("another mixture from here on")
    starts = record.prepare(other_length, 7).parts[-1].feeds
    assert sum(feed.start.cursor.tokens_read for feed in starts) == 7 * 4 * 16


@settings(max_examples=20, deadline=None)
@given(folders=st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=2, unique=True))
def test_the_order_of_samples_depends_on_no_path(
    tmp_path_factory: pytest.TempPathFactory, folders: list[str]
) -> None:
    orders = []
    for folder in folders:
        place = tmp_path_factory.mktemp(folder)
        write(place / f"{folder}.web", 0, 1500)
        write(place / f"{folder}.code", 10_000, 700)
        names = {"web": f"{place}/{folder}.web", "code": f"{place}/{folder}.code"}
        orders.append(samples(record.prepare(config_of(place, "run", names), 0)))
    assert orders[0] == orders[1]


def test_a_curriculum_that_moves_with_its_data_goes_on_from_where_they_lie_now(
    data: Path, tmp_path: Path
) -> None:
    plan = marked_plan(data)
    curriculum.write(plan, data / "curriculum.json")
    config = planned(tmp_path, data, "run", "general", 10)
    undisturbed = samples(begun(config), 0, 10)
    shutil.move(data, tmp_path / "other")
    moved = planned(tmp_path, tmp_path / "other", "run", "general", 10)
    history = record.prepare(moved, 4)
    assert len(history.parts) == 1 and history.news == ()
    assert samples(history, 4, 10) == undisturbed[20:]


def test_a_stage_goes_on_where_the_one_before_stood_after_a_move_and_under_another_name(
    data: Path, tmp_path: Path
) -> None:
    one = config_of(tmp_path, "one", paths(data, "web", "code"))
    first = Mixture(begun(one).parts[-1]).batch(0, 20).tokens_BS
    shutil.move(data, tmp_path / "moved")
    names = {"web": f"{tmp_path}/moved/web", "python": f"{tmp_path}/moved/code"}
    history = record.prepare(config_of(tmp_path, "two", names), 0, (one.run_dir, 5))
    assert history.news == (
        "1 sources (python (before: code)) go on where they stood under another name",
    )
    then = Mixture(history.parts[-1]).batch(0, 40).tokens_BS
    assert not set(first.flat) & set(then.flat)


# ---- other contents ----------------------------------------------------------------------------


def test_other_contents_of_a_source_are_refused_in_the_middle_of_a_run(
    data: Path, tmp_path: Path
) -> None:
    config = config_of(tmp_path, "run", paths(data, "web", "code"))
    begun(config)
    write(data / "web", 1, 1500)
    with pytest.raises(
        ConfigError, match=r"data.sources.web: .*/web is not what this run .*as many tokens, 1,500"
    ):
        record.prepare(config, 3)
    write(data / "web", 0, 1600)
    with pytest.raises(ConfigError, match=r"\(1,600 tokens, 1,500 then\); restore .*another name"):
        record.prepare(config, 3)
    renamed = config_of(
        tmp_path, "run", {"new": f"{data}/web", "code": f"{data}/code"}
    )  # the way out
    history = record.prepare(renamed, 3)
    cursors = {f.source.name: f.start.cursor.tokens_read for f in history.parts[-1].feeds}
    assert cursors["new"] == 0 < cursors["code"]


def test_the_next_stage_is_told_of_other_contents_under_a_name_of_before(
    data: Path, tmp_path: Path
) -> None:
    one = config_of(tmp_path, "one", paths(data, "web", "code"))
    begun(one)
    write(tmp_path / "better" / "web", 50_000, 1500)
    names = {"web": f"{tmp_path}/better/web", "code": f"{data}/code"}
    two = config_of(tmp_path, "two", names)
    history = begun(two, before=(one.run_dir, 5))
    (news,) = history.news
    assert news.startswith("1 sources (web) have other contents than before")
    again = record.prepare(two, 4)
    assert again.parts == history.parts and again.idle == history.idle
    back = config_of(tmp_path, "three", paths(data, "web", "code"))
    feeds = record.prepare(back, 0, (two.run_dir, 4)).parts[-1].feeds
    assert all(feed.start.cursor.tokens_read for feed in feeds)


def test_two_names_with_the_same_contents_are_told_and_have_orders_of_their_own(
    data: Path, tmp_path: Path
) -> None:
    shutil.copytree(data, tmp_path / "copy")
    names = {"web": f"{data}/web", "net": f"{tmp_path}/copy/web"}
    config = config_of(tmp_path, "run", names, weights=(0.5, 0.5))
    history = begun(config)
    assert history.news == (
        "1 sources (web and net) have the same contents: that text is read as often as both say",
    )
    web, net = history.parts[-1].readings()
    assert [web.ranges(j) for j in range(9)] != [net.ranges(j) for j in range(9)]
    again = record.prepare(config, 5)
    assert again.news == () and again.parts == history.parts


def test_a_name_that_is_used_again_for_a_copy_does_not_share_the_place_of_what_was_renamed(
    data: Path, tmp_path: Path
) -> None:
    shutil.copytree(data, tmp_path / "copy")
    one = config_of(tmp_path, "one", paths(data, "web", "code"))
    begun(one)
    two = config_of(tmp_path, "two", {"net": f"{data}/web", "code": f"{data}/code"})
    begun(two, before=(one.run_dir, 5))
    names = {"net": f"{data}/web", "web": f"{tmp_path}/copy/web"}
    three = config_of(tmp_path, "three", names)
    history = begun(three, before=(two.run_dir, 5))
    net, web = history.parts[-1].feeds
    assert net.key != web.key and web.start.cursor.tokens_read == 0 < net.start.cursor.tokens_read
    assert record.prepare(three, 3).parts == history.parts


def test_a_shard_with_other_contents_than_were_mixed_is_refused_when_it_is_opened(
    data: Path, tmp_path: Path
) -> None:
    curriculum.write(marked_plan(data), data / "curriculum.json")
    mixture = Mixture(record.prepare(planned(tmp_path, data, "run", "general", 10), 0).parts[-1])
    write(data / "shards" / "a" / "1", 1, 400)
    with pytest.raises(ConfigError, match=r"source web: .*a/1.bin holds other text than when"):
        mixture.batch(0, 50)


def test_a_source_of_the_name_of_all_sources_is_refused_and_may_be_renamed(
    data: Path, tmp_path: Path
) -> None:
    names = {"all": f"{data}/web", "code": f"{data}/code"}
    with pytest.raises(ConfigError, match='data.sources: a source is named "all"'):
        record.prepare(config_of(tmp_path, "run", names), 0)


def test_two_sources_of_one_name_in_a_curriculum_are_refused(data: Path, tmp_path: Path) -> None:
    file = data / "curriculum.json"
    curriculum.write(marked_plan(data), file)
    file.write_text(file.read_text().replace(' "code": {"labels"', ' "web": {"labels"'))
    with pytest.raises(ConfigError, match="curriculum.json is not a curriculum: .*'web' stands"):
        curriculum.read(file)
    file.write_text("")
    with pytest.raises(ConfigError, match="json is not a curriculum: it is no JSON: Expecting"):
        curriculum.read(file)


# ---- marks -------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(size=st.integers(1, 40_000), place=st.integers(0, 39_999))
def test_a_mark_depends_on_size_and_pages_alone(
    tmp_path_factory: pytest.TempPathFactory, size: int, place: int
) -> None:
    folder = tmp_path_factory.mktemp("marks")
    content = np.random.default_rng(size).integers(0, 256, size).astype(np.uint8)
    (folder / "a.bin").write_bytes(content.tobytes())
    (folder / "b.bin").write_bytes(content.tobytes())
    changed = content.copy()
    changed[place % size] ^= 1
    (folder / "changed.bin").write_bytes(changed.tobytes())
    (folder / "longer.bin").write_bytes(content.tobytes() + b"\0")
    a, b, other, longer = fingerprint.marks(
        [f"{folder}/{n}" for n in ("a", "b", "changed", "longer")]
    )
    assert a == b != longer
    starts = [n * (size - 4096) // 3 for n in range(4)]
    is_read = size <= 4 * 4096 or any(start <= place % size < start + 4096 for start in starts)
    assert (a != other) == is_read


def test_a_file_that_cannot_be_read_has_no_mark(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.bin: No such file"):
        fingerprint.mark(tmp_path / "gone")


# ---- runs and curricula of version 1 -----------------------------------------------------------


def old_run(tmp_path: Path, name: str) -> Path:
    run = tmp_path / "runs" / name
    run.mkdir(parents=True)
    (run / "data.json").write_text(json.dumps(OLD["records"][name]))
    return run


@pytest.mark.parametrize("place", ["data", "moved/far"])
def test_a_run_of_version_1_goes_on_in_its_old_order_also_after_a_move(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if place != "data":
        shutil.move(data, place)
    old_run(tmp_path, "one")
    config = config_of(Path("runs"), "one", paths(place, "web", "code"), 24, 3, (0.2, 0.8))
    history = begun(config, step=9)
    assert samples(history, 5) == OLD["first_tokens"]["changed"]
    assert history.news == () and len(history.parts) == 2
    assert json.loads((config.run_dir / "data.json").read_text())["version"] == 2
    again = record.prepare(config, 9)  # from the record as it is written now
    assert again.parts == history.parts
    assert samples(again, 5) == OLD["first_tokens"]["changed"]
    write(Path(place) / "web", 1, 1500)
    with pytest.raises(ConfigError, match="data.sources.web: .* is not what this run was"):
        record.prepare(config, 9)


@pytest.mark.parametrize("place", ["data", "moved/far"])
def test_stages_chain_after_runs_of_version_1_and_idle_sources_are_known(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if place != "data":
        shutil.move(data, place)
    runs = Path("runs")
    one, two = old_run(tmp_path, "one"), old_run(tmp_path, "two")
    names, even = paths(place, "web", "books"), (0.5, 0.5)
    config = config_of(runs, "another", names, 32, 2, even)
    read = samples(record.prepare(config, 0, (one, 9)))
    web, of_before = ([t for t in of if t < 10_000] for of in (read, OLD["first_tokens"]["two"]))
    assert web == of_before  # what was never read before, the books, has the order of today
    config = config_of(runs, "three", paths(place, "code", "books"), 16, 2, even)
    history = begun(config, before=(two, 6))
    assert samples(history) == OLD["first_tokens"]["three"]
    assert [source.name for source, _ in history.idle.values()] == ["web"]
    assert record.prepare(config, 3).parts == history.parts


def test_what_a_run_of_version_1_held_out_stays_held_out(data: Path, tmp_path: Path) -> None:
    old_run(tmp_path, "one")
    config = config_of(tmp_path / "runs", "one", paths(data, "web", "code"), 24, 3, (0.2, 0.8))
    less = dataclasses.replace(config, data=dataclasses.replace(config.data, held_out=0.2))
    with pytest.raises(ConfigError, match="web: 300 tokens are held out, but 150 were"):
        record.prepare(less, 9)


def test_a_run_of_version_1_whose_data_are_others_is_refused_in_a_line(
    data: Path, tmp_path: Path
) -> None:
    old_run(tmp_path, "one")
    write(data / "web", 0, 1400)
    config = config_of(tmp_path / "runs", "one", paths(data, "web", "code"), 24, 3, (0.2, 0.8))
    with pytest.raises(ConfigError, match=r"1,400 tokens, 1,500 then\); restore") as error:
        record.prepare(config, 9)
    assert "\n" not in str(error.value)


def planned(runs: Path, data: Path, name: str, stage: str, steps: int) -> Config:
    return Config(
        run=RunConfig(name=name, dir=str(runs)),
        model=ModelConfig(vocab_size=50_000),
        data=DataConfig(16, curriculum=str(data / "curriculum.json"), stage=stage),
        train=TrainConfig(steps=steps, global_batch=5),
    )


def marked_plan(data: Path) -> Curriculum:
    """The curriculum of version 1 with marks."""
    files = [(f"a/{n}", 400) for n in range(3)], [("b/0", 500)]
    web, code = (
        tuple(ShardFile(*file, fingerprint.mark(data / "shards" / file[0])) for file in of)
        for of in files
    )
    folder = str(data / "shards")
    a = Source("web", folder, web, 30, {"language": "eng_Latn", "domain": "web"})
    b = Source("code", folder, code, 20, {"language": "eng_Latn", "domain": "code"})
    stages = (
        Stage("general", 16, 4.0, (StageShare(a, 640, 0), StageShare(b, 160, 0))),
        Stage("reasoning", 16, 4.0, (StageShare(a, 320, 640), StageShare(b, 320, 160))),
    )
    return Curriculum(7, {"sha256": "0" * 64}, 50_000, stages)


def test_a_curriculum_of_version_1_keeps_its_order_in_every_stage_with_or_without_a_record(
    data: Path, tmp_path: Path
) -> None:
    (data / "curriculum.json").write_text(OLD["curriculum"])
    runs, expected = tmp_path / "runs", OLD["first_tokens"]
    general = old_run(tmp_path, "general")
    history = record.prepare(planned(runs, data, "general", "general", 10), 4)
    assert samples(history, 4, 10) == expected["general"]
    fresh = record.prepare(planned(runs, data, "fresh", "general", 10), 0)
    assert samples(fresh, 4, 10) == expected["general"]
    reasoning = planned(runs, data, "reasoning", "reasoning", 8)
    assert samples(record.prepare(reasoning, 0), 0, 8) == expected["reasoning"]
    after = record.prepare(reasoning, 0, (general, 7))
    assert samples(after, 0, 8) == expected["reasoning after 7"]
    curriculum.write(marked_plan(data), data / "curriculum.json")  # mixed again: the same shards
    after = record.prepare(reasoning, 0, (general, 7))
    assert samples(after, 0, 8) == expected["reasoning after 7"]


def test_a_key_serves_one_source_and_first_the_one_of_its_name() -> None:
    def source(name: str, mark: str) -> Source:
        return Source(name, "", (ShardFile(f"data/{name}", 100, mark),))

    before = {"k": source("web", "aa"), "l": source("code", "bb")}
    assert recognised([source("net", "aa"), source("web", "aa")], before) == {"web": "k"}
    assert recognised([source("net", "aa"), source("web", "cc")], before) == {"net": "k"}
    swapped = recognised([source("code", "aa"), source("web", "bb")], before)
    assert swapped == {"code": "k", "web": "l"}
