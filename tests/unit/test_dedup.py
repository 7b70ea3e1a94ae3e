"""Near-duplicates are found over all tasks and earlier corpora, as one task would find them."""

import json
import multiprocessing
import random
import tracemalloc
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("datatrove")

from data_prep.clean import plan, stages
from data_prep.clean.dedup import equal, pairs
from data_prep.clean.dedup.groups import Forest
from data_prep.clean.dedup.pairs import PAIR, FindPairs
from data_prep.clean.dedup.sign import SortBands, save_digests
from data_prep.clean.dedup.stretches import (
    KEYED,
    KEYS,
    Rows,
    read,
    read_all,
    read_range,
    write,
    write_sorted,
)
from data_prep.clean.files import load, new_rows, read_documents, save
from data_prep.clean.settings import CleaningInput, CleanSettings
from data_prep.minhash import Signing
from megatron_qwen3.config import ConfigError
from megatron_qwen3.storage import lock

WORDS = [f"{first}{last}" for first in "bdfgklmnprst" for last in ("alo", "emi", "uro", "ina")]
Kept = dict[str, str]  # id of a document that was dropped as a duplicate: of the one kept instead


def _text(generator: random.Random, words: int = 120) -> list[str]:
    return [generator.choice(WORDS) + generator.choice(WORDS) for _ in range(words)]


def _changed(text: list[str], times: int, generator: random.Random) -> list[str]:
    """With some words replaced."""
    changed = list(text)
    for at in generator.sample(range(len(text)), times):
        changed[at] = generator.choice(WORDS) + "x"
    return changed


def _families(count: int, members: int, seed: int) -> list[tuple[str, list[str]]]:
    """Documents and changed copies of them, of copies too, and exact ones, in random order."""
    generator = random.Random(seed)
    found = []
    for family in range(count):
        texts = [_text(generator)]
        for _ in range(members - 1):
            texts.append(
                _changed(generator.choice(texts), generator.choice((0, 1, 3, 8)), generator)
            )
        found += [(f"{seed}-{family}-{k}", text) for k, text in enumerate(texts)]
    generator.shuffle(found)
    return found


def _write(folder: Path, documents: Iterable[tuple[str, list[str]]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [json.dumps({"id": name, "text": " ".join(text)}) for name, text in documents]
    (folder / "a.jsonl").write_text("\n".join(rows))
    return folder


def _settings(inputs: list[Path], out: Path, **settings: Any) -> CleanSettings:
    given = tuple(CleaningInput("here", str(path)) for path in inputs)
    steps = ("domain", "normalize")  # nothing but duplicates is to decide
    return CleanSettings(given, str(out), **{"steps": steps, "filters": False} | settings)


def _run(settings: CleanSettings, parts: int = 1) -> tuple[list[str], Kept]:
    """All stages; the ids of kept documents, in order, and the kept one of each removed one."""
    files = plan.find_files(settings)
    size = max(plan.input_bytes(files), int(stages._DOCUMENTS_PER_PART * (parts - 0.5) * 650))
    listed = stages.stages(settings, size)  # first, as the command does: it refuses
    plan.begin(settings, files)
    assert next(stage.tasks for stage in listed if stage.name == "equal") == parts
    for stage in listed:
        for task in range(stage.tasks):
            _do(stage, task)
    return _result(settings)


def _tasks_of(settings: CleanSettings) -> Iterator[tuple[stages.CleaningStage, int]]:
    files = plan.find_files(settings)
    plan.begin(settings, files)
    for stage in stages.stages(settings, plan.input_bytes(files)):
        yield from ((stage, task) for task in range(stage.tasks))


def _do(stage: stages.CleaningStage, task: int) -> None:
    data: Any = None
    for step in stage.pipeline:
        data = step(data, task, stage.tasks)
    assert list(data) == []


def _result(settings: CleanSettings) -> tuple[list[str], Kept]:
    kept = [document.id for document in _documents(settings, "documents")]
    gone = {d.id: d.metadata["kept"] for d in _documents(settings, "duplicates")}
    return kept, gone


def _documents(settings: CleanSettings, folder: str) -> Iterator[Any]:
    for path in sorted(settings.folder(folder).glob("*.zst")):
        yield from read_documents(path)


def _jaccard(a: list[str], b: list[str]) -> float:
    """Of their runs of five words, exactly."""
    runs = [{tuple(text[k : k + 5]) for k in range(len(text) - 4)} for text in (a, b)]
    return len(runs[0] & runs[1]) / len(runs[0] | runs[1])


def test_what_is_alike_by_exact_similarity_is_found_and_what_is_unlike_is_not(
    tmp_path: Path,
) -> None:
    """Pairs of one document and one copy, so that no chain of others joins them."""
    generator = random.Random(4)
    originals = [_text(generator) for _ in range(150)]
    pairs = [(text, _changed(text, k % 12, generator)) for k, text in enumerate(originals)]
    documents = [(f"{side}{k}", pair[side]) for k, pair in enumerate(pairs) for side in (0, 1)]
    settings = _settings([_write(tmp_path / "in", documents)], tmp_path / "out", tasks=3)
    _, gone = _run(settings)
    exact = [_jaccard(*pair) for pair in pairs]
    alike = [k for k, share in enumerate(exact) if share >= 0.85]
    unlike = [k for k, share in enumerate(exact) if share < 0.6]
    assert len(alike) > 30 and len(unlike) > 30
    assert sum(gone.get(f"1{k}") == f"0{k}" for k in alike) >= 0.98 * len(alike)
    assert not any(f"1{k}" in gone for k in unlike)
    assert all(first[1:] == later[1:] for later, first in gone.items())  # never another text's


@pytest.mark.parametrize(("tasks", "parts"), [(1, 4), (5, 1), (4, 2)])
def test_several_tasks_and_parts_find_what_one_finds(
    tmp_path: Path, tasks: int, parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = _write(tmp_path / "in", _families(25, 5, seed=0))
    whole = _run(_settings([source], tmp_path / "one"))
    assert 40 < len(whole[1]) < 100
    monkeypatch.setattr(equal, "_AT_ONCE", 8)  # documents that are sorted at once
    monkeypatch.setattr(equal, "_OF_EACH", 1)
    assert _run(_settings([source], tmp_path / "many", tasks=tasks), parts) == whole


@pytest.mark.parametrize("tasks", [1, 3])
def test_a_cleaning_against_an_earlier_one_drops_what_one_of_both_would_drop(
    tmp_path: Path, tasks: int
) -> None:
    """Also documents like one that the earlier cleaning dropped; the kept one is named for each."""
    documents = _families(30, 6, seed=1)
    old = _write(tmp_path / "old", documents[:110])
    new = _write(tmp_path / "new", documents[110:])
    names = {name for name, _ in documents[110:]}
    whole_kept, whole_gone = _run(_settings([old, new], tmp_path / "whole"))
    earlier = _settings([old], tmp_path / "earlier", tasks=2, keep_index=True)
    earlier_kept, _ = _run(earlier)
    assert not earlier.folder("work").exists()
    later = _settings([new], tmp_path / "later", tasks=tasks, against=(earlier.out,))
    kept, gone = _run(later)
    assert kept == [name for name in whole_kept if name in names]
    assert gone.keys() == whole_gone.keys() & names
    assert set(gone.values()) <= {*earlier_kept, *kept}
    assert any(name in earlier_kept for name in gone.values())


def test_a_third_cleaning_names_all_earlier_ones(tmp_path: Path) -> None:
    documents = _families(24, 6, seed=2)
    parts = [_write(tmp_path / f"in{k}", documents[48 * k : 48 * k + 48]) for k in range(3)]
    whole, _ = _run(_settings(parts, tmp_path / "whole"))
    outs: list[str] = []
    for number, part in enumerate(parts):
        settings = _settings(
            [part], tmp_path / f"out{number}", against=tuple(outs), keep_index=True, tasks=2
        )
        kept, _ = _run(settings)
        outs.append(settings.out)
    last = {name for name, _ in documents[96:]}
    assert kept == [name for name in whole if name in last]
    alone = _settings([parts[2]], tmp_path / "alone", against=(outs[1],))
    with pytest.raises(ConfigError, match=f"out1 leaves out documents of {outs[0]}; name that too"):
        _run(alone)


def test_an_earlier_cleaning_that_cannot_be_compared_with_is_refused(tmp_path: Path) -> None:
    source = _write(tmp_path / "in", _families(2, 2, seed=3))
    bare = _settings([source], tmp_path / "bare")
    _run(bare)
    indexed = _settings([source], tmp_path / "indexed", keep_index=True)
    _run(indexed)
    signing = replace(bare.signatures, rows=5)
    for settings, message in (
        ({"against": (str(tmp_path),)}, "holds no cleaning that has ended"),
        ({"against": (bare.out,)}, "left no index; clean it again with --keep-index"),
        ({"against": (indexed.out,), "signatures": signing}, "'rows': 6.* must be the same"),
    ):
        with pytest.raises(ConfigError, match=message):
            _run(_settings([source], tmp_path / "out", **settings))


def test_equal_are_only_those_that_are_in_all_128_bits(tmp_path: Path) -> None:
    settings = CleanSettings((), str(tmp_path), tasks=2)
    digests = np.array([[7, 1], [7, 2], [9, 1], [7, 1], [2**64 - 1, 0], [7, 2]], "<u8")
    for task in range(2):
        save_digests(settings, task, digests[3 * task : 3 * task + 3].tobytes())
        with new_rows(settings.file("work/signatures", task, ".npy"), np.uint16, 120) as rows:
            rows.write(np.zeros((3, 120), np.uint16))
    list(equal.FindEqual(settings, 1).run(None, 0))
    found = [equal.copies_of(settings, 1, task).tolist() for task in range(2)]
    assert found == [[], [(3, 0), (5, 1)]]


def test_a_reader_finds_its_rows_alone(tmp_path: Path) -> None:
    counts = np.array([3, 0, 2])
    write(tmp_path / "rows", counts, [np.arange(4), np.arange(4, 5)])
    found = [np.concatenate([[], *read(tmp_path / "rows", np.dtype("<i8"), k)]) for k in range(3)]
    assert [rows.tolist() for rows in found] == [[0, 1, 2], [], [3, 4]]


@pytest.mark.parametrize("left", [0, 5, 11, 16, 30, 60, 71])
def test_rows_that_a_file_lost_are_told_and_not_passed_over(tmp_path: Path, left: int) -> None:
    path, counts = tmp_path / "rows", np.array([3, 0, 2])
    write(path, counts, [np.arange(5)])
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(ConfigError, match="rows is cut short.*remove logs and work.*anew"):
        for reader in range(3):
            list(read(path, np.dtype("<i8"), reader))
    keyed = np.zeros(2, KEYED)
    write_sorted(path, lambda _: keyed, 1, 2)
    path.write_bytes(path.read_bytes()[: min(left, 39)])
    with pytest.raises(ConfigError, match="rows is cut short"):
        read_range(path, KEYED, 0, 1, 0, KEYS)


@pytest.mark.parametrize("folder", ["signatures", "digests", "bands", "pairs", "lent", "alike",
                                    "removed", "equal", "labelled", "ids", "id_ends"])  # fmt: skip
def test_a_file_between_stages_that_was_cut_short_ends_the_cleaning_in_a_line(
    tmp_path: Path, folder: str
) -> None:
    settings = _settings([_write(tmp_path / "in", _families(4, 4, 0))], tmp_path / "out", tasks=2)
    cut = False
    with pytest.raises(ConfigError, match=rf"{folder}/0000\d.*is cut short.*") as error:
        for stage, task in _tasks_of(settings):
            for path in settings.folder("work").glob(f"{folder}/*"):
                if not cut and path.stat().st_size > (135 if path.suffix == ".npy" else 31):
                    path.write_bytes(path.read_bytes()[:-7])
                    cut = True
            _do(stage, task)
    assert cut and "\n" not in str(error.value)
    assert not settings.folder("report.json").exists()


@pytest.mark.parametrize("documents", [0, 1, 30_000])
def test_ranges_of_keys_are_read_whole_and_once(tmp_path: Path, documents: int) -> None:
    keys = np.random.default_rng(0).integers(0, 2**64, (3, documents), np.uint64)
    keys[1, : documents // 2] = 2**64 - 1  # many alike, and the last key there is

    def rows(band: int) -> Rows:
        made = np.empty(documents, KEYED)
        made["key"], made["number"] = keys[band], np.arange(documents)
        return made

    write_sorted(tmp_path / "keys", rows, 3, documents)
    for band in range(3):
        bounds = [k * KEYS // 7 for k in range(8)]
        pieces = [
            read_range(tmp_path / "keys", KEYED, band, 3, low, high)
            for low, high in zip(bounds, bounds[1:], strict=False)
        ]
        order = np.argsort(keys[band], kind="stable")
        assert np.concatenate(pieces)["number"].tolist() == order.tolist()


def test_pairs_take_at_most_24_bytes_for_each_document_of_the_part(tmp_path: Path) -> None:
    """One in five documents of the second and third task has the signature of one of the first."""
    settings = CleanSettings((), str(tmp_path), tasks=3, signatures=Signing(2, 4))
    alike, count = np.random.default_rng(0).integers(0, 1 << 16, (20_000, 8), np.uint16), 100_000
    for task in range(3):
        generator = np.random.default_rng(1 + task)
        signatures = generator.integers(0, 1 << 16, (count, 8), np.uint16)
        signatures[task * 7 : task * 7 + len(alike)] = alike
        with new_rows(settings.file("work/signatures", task, ".npy"), np.uint16, 8) as rows:
            rows.write(signatures)
        save_digests(settings, task, generator.bytes(16 * count))
    list(equal.FindEqual(settings, 1).run(None, 0))
    for task in range(3):
        list(SortBands(settings, 1).run(None, task))
    tracemalloc.start()
    list(FindPairs(settings, 1).run(None, 1))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 24 * 3 * count
    found = np.concatenate(list(read(settings.file("work/pairs", 1, ""), PAIR, 0)))
    expected = {(k, place * count + place * 7 + k) for k in range(20_000) for place in (1, 2)}
    assert expected <= set(found.tolist())


def test_groups_take_at_most_40_bytes_for_each_document_that_goes() -> None:
    """Of pairs, which have the most documents for each that goes, and of larger groups."""
    count = 200_000
    pairs = np.random.default_rng(0).permutation(2 * count).reshape(-1, 2)
    pairs.sort(axis=1)
    chains = np.stack([np.arange(count), np.arange(count) + 1], axis=1)[np.arange(count) % 9 > 0]
    for links in (pairs, chains):
        tracemalloc.start()
        forest = Forest(lambda links=links: np.array_split(links, 20))
        gone = sum(len(rows) for rows in forest.later(0, 2 * count))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert gone == len(links)
        assert most / gone < 40 + 30e6 / gone  # what is at work at once


def _write_pairs(settings: CleanSettings, count: int, files: int) -> None:
    """As of one group of all documents: each with the first, in every file, and with the one
    before it in one; signatures are all alike."""
    each = count // settings.tasks
    save(settings.file("work", 0, "").with_name("sizes.npy"), np.full(settings.tasks, each))
    for task in range(settings.tasks):
        with new_rows(settings.file("work/signatures", task, ".npy"), np.uint16, 8) as rows:
            rows.write(np.ones((each, 8), np.uint16))
    pairs = np.zeros(count - 1, PAIR)
    pairs["b"] = np.arange(1, count)
    for file in range(files):
        if file == files - 1:
            pairs["a"] = pairs["b"] - 1
        counts = np.bincount(pairs["a"] // each, minlength=settings.tasks)
        write(settings.file("work/pairs", file, ""), counts, [pairs])


def test_memory_of_comparing_does_not_grow_with_the_largest_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairs, "_PAIRS_AT_ONCE", 1 << 15)
    most: dict[str, dict[int, int]] = {"lend": {}, "compare": {}}
    for count in (84_000, 168_000):
        settings = CleanSettings(
            (), str(tmp_path / f"{count}"), tasks=3, signatures=Signing(2, 4), similarity=0.75
        )
        _write_pairs(settings, count, files=4)
        for name, step in (
            ("lend", pairs.LendSignatures(settings, 4)),
            ("compare", pairs.ComparePairs(settings)),
        ):
            tracemalloc.start()
            for task in range(3):
                list(step.run(None, task))
            most[name][count] = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        links = [load(settings.file("work/alike", task, ".npy")) for task in range(3)]
        assert len(Forest.of(np.concatenate(links)).links()) == count - 1
    assert most["lend"][168_000] < 1.2 * most["lend"][84_000]
    # Links of a task are as many as it has documents, whatever groups these are in.
    assert most["compare"][168_000] < 260 * 56_000


def test_pairs_are_lent_once_and_in_order_however_few_are_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = CleanSettings((), str(tmp_path), tasks=3, signatures=Signing(2, 4))
    _write_pairs(settings, 3000, files=5)
    found = []
    for held in (100, 1000, 1 << 20):
        monkeypatch.setattr(pairs, "_PAIRS_AT_ONCE", held)
        for task in range(3):
            list(pairs.LendSignatures(settings, 5).run(None, task))
        paths = [settings.file("work/lent", task, "") for task in range(3)]
        lent = [
            read_all([path], pairs._lent(settings), task) for path in paths for task in range(3)
        ]
        found.append([sorted(rows[["a", "b"]].tolist()) for rows in lent])
    assert found[0] == found[1] == found[2]
    assert [len(rows) for rows in found[0]] == [1997, 1001, 1000, 0, 999, 1, 0, 0, 999]


def _whole_cleaning(settings: CleanSettings, has_locks: bool) -> None:
    """In a process of its own: every task of every stage, as an executor runs them."""
    if not has_locks:
        lock._lock = lambda *_: True  # type: ignore[assignment]
        lock.fcntl.lockf = lambda *_: None  # type: ignore[assignment]
    files = plan.find_files(settings)
    for stage in stages.stages(settings, plan.input_bytes(files)):
        executor = stages._Local(stage, stages._logs(settings, stage))
        for task in range(stage.tasks):
            executor.run_task(task)


@pytest.mark.parametrize("has_locks", [True, False])
def test_two_cleanings_in_one_folder_at_once_leave_one_whole_result(
    tmp_path: Path, has_locks: bool
) -> None:
    """As of a job that a queue starts a second time; where there are no locks one may find that
    its input is gone, for the result is there."""
    source = _write(tmp_path / "in", _families(30, 4, seed=5))
    whole = _settings([source], tmp_path / "one", tasks=3)
    expected = _run(whole)
    twice = replace(whole, out=str(tmp_path / "two"))
    plan.begin(twice, plan.find_files(twice))
    context = multiprocessing.get_context("fork")
    two = [context.Process(target=_whole_cleaning, args=(twice, has_locks)) for _ in range(2)]
    for process in two:
        process.start()
    for process in two:
        process.join(120)
    assert 0 in [process.exitcode for process in two]
    assert not has_locks or [process.exitcode for process in two] == [0, 0]
    assert _result(twice) == expected
    assert twice.folder("report.json").read_bytes() == whole.folder("report.json").read_bytes()
    assert not list(tmp_path.rglob("*.partial"))
    assert load(twice.folder("plan/share_ends.npy")).shape == (3,)
