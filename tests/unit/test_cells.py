"""Many combinations of labels share few files, and a mixture takes any of them as if alone."""

import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import settings as trials
from hypothesis import strategies as st

from data_prep import curriculum, stretches
from data_prep.cells import Cell
from data_prep.curriculum import Source
from data_prep.indexed import IndexedReader
from data_prep.inventory import Columns, Inventory, read_inventory, totals, write_inventory
from data_prep.labels import LENGTHS, LEVELS, UNKNOWN, Labels
from data_prep.languages import LANGUAGES
from data_prep.mixing.divided import divided
from data_prep.mixing.plan import DOMAINS, plan
from data_prep.mixing.recipe import Recipe, StageRecipe
from data_prep.packed import Packed
from data_prep.seal import read_seal
from data_prep.shards import faults
from data_prep.stretches import ShardFile, ShardStretches
from data_prep.tokenization import groups
from data_prep.tokenization import plan as plans
from data_prep.tokenization.corpus import CorpusOptions, tokenize
from data_prep.tokenization.plan import Settings
from data_prep.tokenization.spill import InputSection as Spilled
from data_prep.tokenization.spill import Section
from megatron_qwen3.cli import mix_curriculum
from megatron_qwen3.config import Config, ConfigError
from megatron_qwen3.pretrain import files as reading
from megatron_qwen3.pretrain import record
from megatron_qwen3.pretrain.check import check_inputs
from megatron_qwen3.pretrain.data import Mixture
from megatron_qwen3.pretrain.files import SourceFiles
from megatron_qwen3.pretrain.provenance import locate
from megatron_qwen3.settings import DataConfig, RunConfig, TrainConfig
from tests.corpora import WORDS

pytestmark = pytest.mark.usefixtures("small_units")
ROW = 64


# ---- how many files there are ------------------------------------------------------------------

TOKENS_IN_ALL, BYTES_OF_TOKEN = 36 * 10**12, 4  # of UTF-8, as the web has it in 119 languages
FILES_OF_SHARD, FILES_OF_GROUP = 3, 2


def spilled(tokens: int, labels: int = 0) -> Spilled:
    return Spilled("x.run", tokens, 1, Section(labels, 0, 1, tokens, BYTES_OF_TOKEN * tokens), 0, 0)


@pytest.mark.parametrize("group_gb", [16, 64, 256])
def test_36_trillion_tokens_of_every_combination_of_labels_are_less_than_200_000_files(
    group_gb: int,
) -> None:
    ways = list(product(LANGUAGES, DOMAINS, (*LEVELS, UNKNOWN), (*LEVELS, UNKNOWN), LENGTHS))
    assert len(ways) == 119 * 8 * 4 * 4 * 4
    chance = np.random.default_rng(0)
    sizes = 1 / (1 + chance.permutation(len(ways)))  # as Zipf has it
    number = -(-TOKENS_IN_ALL * BYTES_OF_TOKEN // (group_gb * 10**9))
    sizes = np.maximum(1, sizes / sizes.sum() * TOKENS_IN_ALL / number).astype(np.int64)
    cells = {
        Labels("web", *way): [spilled(size)] for way, size in zip(ways, sizes.tolist(), strict=True)
    }
    pieces = groups._in_shards(plans.SHARD_TOKENS, 0, number, cells)
    assert sum(len(piece.ranges) for piece in pieces) >= len(ways)
    assert number * (FILES_OF_SHARD * len(pieces) + FILES_OF_GROUP) < 200_000


@trials(deadline=None)
@given(sizes=st.lists(st.integers(1, 5_000), min_size=1, max_size=40), most=st.integers(100, 4_000))
def test_shards_hold_every_range_of_keys_once_in_order_and_few_are_small(
    sizes: list[int], most: int
) -> None:
    cells = {Labels("web", f"l{k:02}", *"abcd"): [spilled(size)] for k, size in enumerate(sizes)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(groups, "IN_MEMORY_TOKENS", 500)
        pieces = groups._in_shards(most, 7, 9, cells)
    size = min(most, max(500, -(-sum(sizes) // groups.SHARDS_OF_GROUP)))
    ranges = [(r.labels, r.part, r.parts) for piece in pieces for r in piece.ranges]
    parts = {labels: n for labels, _, n in ranges}
    assert ranges == [
        (labels, k, parts[labels]) for labels in sorted(cells) for k in range(parts[labels])
    ]
    assert all(r.tokens <= min(size, 500) for piece in pieces for r in piece.ranges)
    assert all(sum(r.tokens for r in piece.ranges) <= size for piece in pieces)
    assert len(pieces) <= 2 * sum(sizes) / size + 1
    assert [piece.path for piece in pieces] == [f"shards/00007/{k:05}" for k in range(len(pieces))]


# ---- tokenizing --------------------------------------------------------------------------------


def settings(tokenizer: str, **others: Any) -> Settings:
    return Settings(tokenizer, shard_tokens=4000, group_bytes=30_000, **others)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Three files of about three groups, of two languages, two domains and three qualities."""
    chance, folder = random.Random(0), tmp_path / "corpus"
    folder.mkdir()
    for number in range(3):
        rows = []
        for k in range(60):
            labels = {
                "language": chance.choice(["eng_Latn", "rus_Cyrl"]),
                "domain": chance.choice(["web", "code"]),
                "quality": chance.choice([0.1, 0.9, None]),
            }
            words = chance.choices(WORDS, k=chance.randint(1, 60))
            rows.append({"id": f"{number}-{k}", "text": " ".join(words), **labels})
        (folder / f"{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


RECIPE = Recipe(
    (
        StageRecipe("first", 3_200, 64, weights={"quality": {"high": 3.0, "low": 0.5}}),
        StageRecipe(
            "second", 1_600, 64, max_epochs=5, shares={"domain": {"code": 0.6, "web": 0.4}}
        ),
    ),
    held_out=0.0,
)


def texts(out: Path, source: Source) -> Counter[tuple[int, ...]]:
    """The documents, or rows, that a source is made of."""
    found: Counter[tuple[int, ...]] = Counter()
    for shard in source.shards:
        reader = IndexedReader(out / shard.path)
        own = reader.tokens[shard.start : shard.start + shard.tokens]
        starts = [
            n - shard.start for n in reader.document_starts(shard.start, shard.start + shard.tokens)
        ]
        if reader.row_length:
            starts = list(range(0, shard.tokens, reader.row_length))
        assert starts[0] == 0
        found.update(tuple(own[a:b].tolist()) for a, b in pairwise([*starts, shard.tokens]))
    return found


@pytest.mark.parametrize("pack", [0, ROW])
def test_a_mixture_takes_of_shared_shards_what_it_takes_of_shards_kept_apart(
    corpus: Path, tmp_path: Path, tokenizer: str, pack: int
) -> None:
    made = {}
    for name, apart in (("apart", True), ("shared", False)):
        report = tokenize(
            [corpus], tmp_path / name, settings(tokenizer, pack=pack, apart=apart), CorpusOptions()
        )
        assert report is not None
        sources = plan(report.inventory, RECIPE).stages[0].shares
        made[name] = {share.source.name: share.source for share in sources}
        shards = {cell.path for cell in report.inventory.cells}
        assert all(
            list(faults(tmp_path / name, read_seal(tmp_path / name / p).cells)) == []
            for p in shards
        )
    assert len({cell.path for cell in read_inventory(tmp_path / "shared").cells}) <= 8
    assert made["apart"].keys() == made["shared"].keys() and len(made["apart"]) == 2 * 2 * 3
    for name, source in made["shared"].items():
        other = made["apart"][name]
        if pack:  # rows are put together from other ranges of keys
            assert source.packed and other.packed and source.tokens % ROW == 0
            text = [s.tokens - s.packed.filler for s in (source, other) if s.packed]
            assert text[0] == text[1] == sum(source.packed.texts.values())
            continue
        assert source.tokens == other.tokens and source.labels == other.labels
        assert texts(tmp_path / "shared", source) == texts(tmp_path / "apart", other)
        files = SourceFiles(source)
        stream = files.read(0, source.tokens).tolist()
        starts = files.document_starts(0, source.tokens)
        split = Counter(tuple(stream[a:b]) for a, b in pairwise([*starts, len(stream)]))
        assert split == texts(tmp_path / "shared", source)


def test_rows_of_packed_text_end_where_their_cells_say(
    corpus: Path, tmp_path: Path, tokenizer: str
) -> None:
    out = tmp_path / "out"
    report = tokenize([corpus], out, settings(tokenizer, pack=ROW), CorpusOptions())
    assert report is not None
    end = report.inventory.tokenizer["end_of_document"]
    for part in divided(report.inventory, ["language"], {}):
        source = Source("x", str(out), part.shards, packed=part.packed)
        files, filler = SourceFiles(source), 0
        for row, text in enumerate(files.text_of_rows(0, source.tokens)):
            ids = files.read(row * ROW, (row + 1) * ROW).tolist()
            assert set(ids[text:]) <= {end}
            filler += ROW - text
        assert part.packed and filler == part.packed.filler


def config_of(path: Path, folder: Path, steps: int = 10, stage: str = "first") -> Config:
    return Config(
        run=RunConfig(name="run", dir=str(folder)),
        data=DataConfig(sequence_length=64, sources=(), curriculum=str(path), stage=stage),
        train=TrainConfig(steps=steps, global_batch=4),
    )


@pytest.fixture
def shared(corpus: Path, tmp_path: Path, tokenizer: str) -> Path:
    out = tmp_path / "tokens"
    tokenize([corpus], out, settings(tokenizer), CorpusOptions())
    return out


def mixed(folder: Path, out: Path, by_quality: bool = True) -> Path:
    """A curriculum, as the command makes it."""
    weights = "[stages.first.weights.quality]\nhigh = 3\nlow = 0.5\n" if by_quality else ""
    recipe = folder / "recipe.toml"
    recipe.write_text(
        f"held_out = 0.0\n[stages.first]\ntokens = 3_200\nsequence_length = 64\n{weights}"
        "[stages.second]\ntokens = 1_600\nsequence_length = 64\nmax_epochs = 5\n"
    )
    command = ["mix", str(folder), "--recipe", str(recipe), "--out", str(out), "--no-page"]
    assert mix_curriculum.main(command) == 0
    return out


def test_many_stretches_stand_beside_the_curriculum_and_are_read_to_the_same_samples(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, identities = [], []
    for name, inline in (("few", 10_000), ("many", 0)):
        for module in (stretches, curriculum):
            monkeypatch.setattr(module, "INLINE", inline)
        path = mixed(shared, tmp_path / f"{name}.json")
        beside = list(tmp_path.glob(f"{name}-*.stretches"))
        assert len(beside) == (0 if inline else 1)
        config = config_of(path, tmp_path / name)
        config.run_dir.mkdir(parents=True)
        history = record.prepare(config, 0)
        check_inputs(config, Mixture(history.parts[-1]))
        history.write(config.run_dir)
        again = record.RunRecord.read(config.run_dir)
        assert again == history
        sources = [feed.source for feed in again.parts[-1].feeds]
        assert all(isinstance(source.shards, ShardStretches) != bool(inline) for source in sources)
        identities.append([source.identity for source in sources])
        rows.append(Mixture(again.parts[-1]).batch(0, 40, with_documents=True))
        resumed = record.prepare(config, 5)
        assert resumed.parts == history.parts and not resumed.news
    files = [file.path for file in sources[0].shards.store.files]
    assert files == sorted(files)  # each folder is read once where many are looked for
    assert identities[0] == identities[1] and len(set(identities[0])) == len(identities[0])
    for few, many in zip(rows[0][:3], rows[1][:3], strict=True):
        assert (few == many).all()
    assert rows[0].documents and rows[1].documents
    assert rows[0].documents.starts == rows[1].documents.starts


def test_who_opens_a_curriculum_pays_for_its_sources_and_not_for_their_stretches(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (stretches, curriculum):
        monkeypatch.setattr(module, "INLINE", 0)
    path = mixed(shared, tmp_path / "many.json")
    made, get = [], ShardStretches.__getitem__
    monkeypatch.setattr(
        ShardStretches, "__getitem__", lambda self, n: made.append(n) or get(self, n)
    )
    config = config_of(path, tmp_path)
    mixture = Mixture(record.prepare(config, 0).parts[-1])
    check_inputs(config, mixture)
    in_all = sum(len(source.shards) for source in mixture.sources)
    assert in_all >= 2 * len(mixture.sources)
    assert set(made) == {0} and len(made) <= 6 * len(mixture.sources)
    made.clear()
    reading._reader.cache_clear()
    mixture.batch(0, 1)
    assert 0 < len(made) < 12 and reading._reader.cache_info().misses <= 4


def test_the_file_of_stretches_belongs_to_its_manifest_alone(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (stretches, curriculum):
        monkeypatch.setattr(module, "INLINE", 0)
    path = mixed(shared, tmp_path / "c.json")
    (before,) = tmp_path.glob("c-*.stretches")
    mixed(shared, path, by_quality=False)
    (beside,) = tmp_path.glob("c-*.stretches")
    assert beside != before  # cut otherwise: the old one is gone
    whole = beside.read_bytes()
    for content, complaint in (
        (whole[:-1], "bytes, its header says"),
        (b"x" + whole[1:], "holds no stretches"),
        (whole[:9], "holds no stretches"),
        (None, "belongs to the .json beside it: move both"),
    ):
        beside.unlink()
        if content is not None:
            beside.write_bytes(content)
        curriculum._read.cache_clear()
        with pytest.raises(ConfigError, match=complaint):
            curriculum.read(path)
        beside.write_bytes(whole)


def _beside(
    shared: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, dict[str, Any]]:
    """A curriculum's file of stretches, and its JSON."""
    for module in (stretches, curriculum):
        monkeypatch.setattr(module, "INLINE", 0)
    content = json.loads(mixed(shared, path).read_text())
    return path.parent / content["stretches"], content


def test_a_file_of_stretches_stays_as_long_as_any_manifest_beside_it_names_it(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, copy = tmp_path / "ä.json", tmp_path / "copy.json"
    before, content = _beside(shared, path, monkeypatch)
    copy.write_text(json.dumps(content))  # with its name escaped
    plan = curriculum.read(copy)
    mixed(shared, path, by_quality=False)
    assert before.exists() and curriculum.read(path) != plan
    curriculum._read.cache_clear()
    assert curriculum.read(copy) == plan
    copy.unlink()
    mixed(shared, path, by_quality=False)
    assert not before.exists()


def _with(whole: bytes, at: int, value: int, size: int = 8) -> bytes:
    return whole[:at] + value.to_bytes(size, "little") + whole[at + size :]


@pytest.mark.parametrize(
    ("of", "complaint"),
    [
        ("number", "stretch 0 is of file 4294967295 of "),
        ("start", "stretch 0 is tokens 18,446,744,073,709,551,615 to .* of a file of "),
        ("length", "stretch 0 is tokens 0 to .* of a file of "),
        ("sum", "is not the sum of its stretches"),
        ("border", "its paths do not follow each other"),
        ("last border", "its paths do not follow each other"),
        ("absolute", "the shard '/hards/.*' lies outside of its folder"),
        ("above", r"the shard '\.\./rds/.*' lies outside of its folder"),
    ],
)
def test_what_a_file_of_stretches_says_is_checked_before_anything_is_read_by_it(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of: str, complaint: str
) -> None:
    path = tmp_path / "c.json"
    beside, _ = _beside(shared, path, monkeypatch)
    whole = beside.read_bytes()
    rows, files = (int.from_bytes(whole[k : k + 8], "little") for k in (8, 16))
    paths_at = 32 + rows * stretches.ROW.itemsize + files * 32
    row = np.frombuffer(whole, stretches.ROW, 1, 32)[0]
    beside.write_bytes(
        {
            "number": lambda: _with(whole, 32, (1 << 32) - 1, 4),
            "start": lambda: _with(whole, 36, (1 << 64) - 1),
            "length": lambda: _with(whole, 44, 1 << 40),
            "sum": lambda: _with(whole, 44, int(row["tokens"]) - 1),
            "border": lambda: _with(whole, paths_at - 8 * files, 1 << 20),
            "last border": lambda: _with(whole, paths_at - 8, 1),
            "absolute": lambda: _with(whole, paths_at, ord("/"), 1),
            "above": lambda: whole[:paths_at] + b"../" + whole[paths_at + 3 :],
        }[of]()
    )
    curriculum._read.cache_clear()
    with pytest.raises(ConfigError, match=complaint) as told:
        curriculum.read(path)
    assert str(told.value).count("\n") == 0 and str(tmp_path) in str(told.value)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("../c/{}", "is no name of a file of stretches"),
        ("{}.txt", "is no name of a file of stretches"),
        (7, "is no name of a file of stretches"),
    ],
)
def test_a_manifest_names_a_file_of_stretches_beside_it_and_none_elsewhere(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: Any, complaint: str
) -> None:
    path = tmp_path / "c" / "c.json"
    beside, content = _beside(shared, path, monkeypatch)
    content["stretches"] = name.format(beside.name) if isinstance(name, str) else name
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=complaint):
        curriculum.read(path)


@pytest.mark.parametrize(
    ("shard", "complaint"),
    [
        (["../s", 10], "'../s' lies outside of its folder"),
        (["/s", 10], "'/s' lies outside of its folder"),
        (["s", -1], "tokens 0 to -1 of a file of -1"),
        (["s", 10, "", -1, 20], "tokens -1 to 9 of a file of 20"),
        (["s", 10, "", 11, 20], "tokens 11 to 21 of a file of 20"),
        (["s", "10"], "is not a curriculum"),
    ],
)
def test_stretches_in_the_manifest_are_checked_alike(
    shared: Path, tmp_path: Path, shard: list[Any], complaint: str
) -> None:
    path = mixed(shared, tmp_path / "c.json")
    content = json.loads(path.read_text())
    next(iter(content["sources"].values()))["shards"][0] = shard
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=complaint):
        curriculum.read(path)


def test_of_many_files_any_that_is_gone_and_some_that_are_cut_are_named_before_the_first_step(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(mixed(shared, tmp_path / "curriculum.json"), tmp_path)
    mixture = Mixture(record.prepare(config, 0).parts[-1])
    files = sorted(shared.glob("shards/*/*.bin"))
    assert len(files) > 2
    monkeypatch.setattr(reading, "_SIZES", 2)
    check_inputs(config, mixture)
    told = 0
    for file in files:
        whole = file.read_bytes()
        file.unlink()
        with pytest.raises(ConfigError, match=rf"source .*: {file}: No such file"):
            check_inputs(config, mixture)
        file.write_bytes(whole[:-2])
        try:
            check_inputs(config, mixture)
        except ConfigError as error:
            assert f"{file} has {len(whole) - 2:,} bytes" in str(error)
            told += 1
        file.write_bytes(whole)
    assert told == 2
    whole_folder = files[0].parent.rename(tmp_path / "away")
    with pytest.raises(ConfigError, match=rf"{files[0]}: No such file"):
        check_inputs(config, mixture)
    whole_folder.rename(files[0].parent)


def test_a_row_of_a_step_leads_back_to_the_documents_of_its_cell(
    shared: Path, corpus: Path, tmp_path: Path
) -> None:
    path = mixed(shared, tmp_path / "curriculum.json")
    config = config_of(path, tmp_path)
    config.run_dir.mkdir()
    history = record.prepare(config, 0)
    history.write(config.run_dir)
    tokens_BS = Mixture(history.parts[-1]).batch(8, 4).tokens_BS
    for row in range(4):
        found = locate(config.run_dir, step=3, row=row)
        ids = [token for piece in found.pieces for token in piece.tokens.tolist()]
        assert ids == tokens_BS[row].tolist()
        _, language, domain, quality = found.source.split("/")
        for piece in found.pieces:
            line = (corpus / piece.file).read_text().splitlines()[piece.line - 1]
            document = json.loads(line)
            assert (document["id"], document["language"], document["domain"]) == (
                piece.id,
                language,
                domain,
            )
            assert {0.1: "low", 0.9: "high", None: UNKNOWN}[document["quality"]] == quality


def test_sources_that_are_divided_anew_are_told_by_the_text_that_they_share() -> None:
    def source(name: str, *shards: ShardFile) -> Source:
        return Source(name, "", shards)

    before = [
        source("a", ShardFile("x", 50, "m", 0, 200), ShardFile("y", 10, "n", 5, 90)),
        source("b", ShardFile("x", 100, "m", 100, 200)),
    ]
    others = [
        source("same place", ShardFile("z", 10, "m", 45, 200)),
        source("between", ShardFile("x", 50, "m", 50, 200)),
        source("end", ShardFile("x", 1, "m", 199, 200)),
        source("other file", ShardFile("x", 200, "o", 0, 0)),
        source("before it", ShardFile("y", 5, "n", 0, 90)),
        source("around it", ShardFile("y", 90, "n", 0, 0)),
    ]
    found = curriculum.put_together_otherwise(others, before)
    assert found == ["same place", "end", "around it"]
    assert curriculum.put_together_otherwise(others, []) == []


# ---- the inventory -----------------------------------------------------------------------------


LABEL = st.sampled_from(("a", "b", "ü"))
CELLS = st.lists(
    st.tuples(
        st.builds(Labels, LABEL, LABEL, LABEL, LABEL, LABEL, st.sampled_from(LENGTHS)),
        st.integers(0, 10**14),
        st.booleans(),
    ),
    max_size=30,
)


def cells_of(rows: list[tuple[Labels, int, bool]], packed: bool) -> list[Cell]:
    """In shards that begin where a row says so."""
    cells: list[Cell] = []
    shard = start = first = 0
    for labels, tokens, begins in rows:
        if begins:
            shard, start, first = shard + 1, 0, 0
        of = Packed(8, 1, {LENGTHS[0]: 5}) if packed else None
        pieces = 4 if packed else 0
        cells.append(Cell(f"s/{shard:03}", labels, 3, tokens, 9, of, 1, pieces, start, first))
        start, first = start + tokens, first + cells[-1].in_files
    return [cell for cell in cells if cell.tokens or not cell.start]


@trials(deadline=None, max_examples=20)
@given(rows=CELLS, packed=st.booleans(), block=st.integers(1, 7))
def test_an_inventory_is_read_as_it_was_written_whole_or_block_by_block(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[Labels, int, bool]],
    packed: bool,
    block: int,
) -> None:
    folder = tmp_path_factory.mktemp("inventory")
    cells = list({cell.place: cell for cell in cells_of(rows, packed)}.values())
    made = Inventory(folder, {"path": "t", "sha256": "0"}, 99, ("a", "ü"), tuple(cells))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("data_prep.inventory.BLOCK_CELLS", block)
        write_inventory(made)
    found = read_inventory(folder)
    assert (found.tokenizer, found.vocab_size, found.inputs) == (made.tokenizer, 99, ("a", "ü"))
    assert list(found.cells) == cells and [found.cells[k] for k in range(len(cells))] == cells
    for by in (["language"], ["source", "domain", "length"], ["path"]):
        expected: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
        for cell in cells:
            values = {"path": cell.path, **cell.labels._asdict()}
            row = {"tokens": cell.tokens, "documents": 3, "bytes": 9, "cells": 1, "packed": packed}
            row |= {"filler": int(packed), "cut": 1, "pieces": cell.pieces}
            expected[tuple(values[name] for name in by)].update(row)
        assert {k: +v for k, v in totals(found, by).items()} == {k: +v for k, v in expected.items()}
        assert {k: +v for k, v in totals(made, by).items()} == {k: +v for k, v in expected.items()}


def test_a_damaged_inventory_is_an_error_that_names_it(tmp_path: Path) -> None:
    cell = Cell("s/0", Labels(*"abcdef"), 1, 10, 40)
    write_inventory(Inventory(tmp_path, {}, 9, (), (cell,)))
    path = tmp_path / "inventory.parquet"
    whole = path.read_bytes()
    for content in (b"", whole[:-9], whole[:100]):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"inventory\.parquet is not an inventory"):
            read_inventory(tmp_path)


def _column(table: Any, name: str, values: Any) -> Any:
    return table.set_column(table.column_names.index(name), name, values)


def _about(table: Any, **changes: Any) -> Any:
    about = json.loads(table.schema.metadata[b"inventory"]) | changes
    return table.replace_schema_metadata({"inventory": json.dumps(about)})


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda t: t.drop(["start"]), "0 columns start; valid: one"),
        (lambda t: t.append_column("start", t.column("start")), "2 columns start; valid: one"),
        (lambda t: _column(t, "tokens", pa.array([1.0, 2.0])), "column tokens is of double"),
        (lambda t: _column(t, "path", pa.array([1, 2])), "column path is of int64"),
        (lambda t: _column(t, "tokens", pa.array([1, None])), "column tokens has no value of a "),
        (lambda t: _column(t, "domain", pa.array(["a", None])), "column domain has no value of "),
        (lambda t: _column(t, "bytes", pa.array([1, -1])), "column bytes has -1"),
        (lambda t: _column(t, "path", pa.array(["s/0", "../s"])), "'../s' lies outside of its"),
        (lambda t: t.replace_schema_metadata({}), "is not an inventory"),
        (lambda t: t.replace_schema_metadata({"inventory": "[]"}), "is not an inventory"),
        (lambda t: _about(t, tokenizer=None), "tokenizer = None; valid: an object"),
        (lambda t: _about(t, vocab_size="9"), "vocab_size = '9'; valid: a whole number"),
        (lambda t: _about(t, inputs=[1]), "inputs = .*; valid: a list of names"),
    ],
)
def test_an_inventory_of_another_shape_is_one_line_that_names_the_column(
    tmp_path: Path, change: Callable[[Any], Any], complaint: str
) -> None:
    cells = [Cell("s/0", Labels(*"abcdef"), 1, 10, 40), Cell("s/1", Labels(*"abcdef"), 1, 10, 40)]
    write_inventory(Inventory(tmp_path, {}, 9, (), tuple(cells)))
    path = tmp_path / "inventory.parquet"
    pq.write_table(change(pq.read_table(path)), path)
    with pytest.raises(ConfigError, match=complaint) as told:
        list(read_inventory(tmp_path).cells)
    assert str(path) in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"tokens": "10"}, "tokens = '10'"),
        ({"documents": None}, "documents = None"),
        ({"domain": 7}, "domain = 7"),
        ({"path": "/s"}, "'/s' lies outside of its folder"),
        ({"packed": 7}, "is not an inventory"),
    ],
)
def test_an_inventory_in_json_is_checked_alike(
    tmp_path: Path, change: dict[str, Any], complaint: str
) -> None:
    row = Cell("s/0", Labels(*"abcdef"), 1, 10, 40).as_json() | change
    about = {"version": 1, "tokenizer": {}, "vocab_size": 9, "inputs": [], "shards": [row]}
    (tmp_path / "inventory.json").write_text(json.dumps(about))
    with pytest.raises(
        ConfigError, match=rf"inventory\.json is not an inventory.*{complaint}|{complaint}"
    ):
        read_inventory(tmp_path)


@trials(deadline=None)
@given(rows=CELLS)
def test_neighbours_of_one_source_in_a_shard_are_one_stretch(
    rows: list[tuple[Labels, int, bool]],
) -> None:
    cells = list({cell.place: cell for cell in cells_of(rows, False)}.values())
    made = Inventory(Path("/nowhere"), {}, 9, (), tuple(cells))
    marks = {cell.path: cell.path[2:].rjust(16, "0") for cell in cells}
    found = {part.values: part.shards for part in divided(made, ["source"], marks)}
    taken: dict[str, list[tuple[str, int, int]]] = defaultdict(list)
    for cell in sorted(cells, key=lambda cell: cell.place):
        if not cell.tokens:
            continue
        row = taken[cell.labels.source]
        if row and row[-1][0] == cell.path and row[-1][1] + row[-1][2] == cell.start:
            row[-1] = (cell.path, row[-1][1], row[-1][2] + cell.tokens)
        else:
            row.append((cell.path, cell.start, cell.tokens))
    assert {s: [(f.path, f.start, f.tokens) for f in of] for (s,), of in found.items()} == taken
    of_file = Counter[str]()
    for cell in cells:
        of_file[cell.path] += cell.tokens
    for shards in found.values():
        assert all(f.file_tokens == of_file[f.path] and f.mark == marks[f.path] for f in shards)


def test_columns_keep_what_cells_say() -> None:
    cells = cells_of(
        [(Labels(*"abcde", LENGTHS[2]), 5, True), (Labels(*"abxde", "z"), 7, False)], True
    )
    assert list(Columns.of(cells).cells()) == cells
    assert [Cell.from_json(json.loads(json.dumps(cell.as_json()))) for cell in cells] == cells
