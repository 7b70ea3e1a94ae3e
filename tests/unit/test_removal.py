"""Documents are found by their fields and taken out in place; every run goes on, none trains
on them, and a removal that is killed goes on."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep import curriculum, finding, fingerprint, removal
from data_prep.cells import Cell
from data_prep.curriculum import Curriculum, Stage, StageShare
from data_prep.finding import DocumentQuery, find, paths_of
from data_prep.indexed import IndexedReader, IndexedWriter
from data_prep.inventory import StoredCells, read_inventory, write_inventory
from data_prep.labels import Labels
from data_prep.mixing import recipe as recipes
from data_prep.mixing.plan import plan
from data_prep.removal import is_interrupted, removed_from, removing
from data_prep.seal import is_sealed, provenance_sha256, write_sealed
from data_prep.shards import faults, origin
from data_prep.stretches import ShardFile
from data_prep.tokenization.corpus import CorpusOptions, tokenize
from data_prep.tokenization.plan import Settings
from megatron_qwen3.cli import inspect_shards
from megatron_qwen3.config import ConfigError
from megatron_qwen3.pretrain.data import Mixture
from megatron_qwen3.pretrain.record import Feed, RunPart, RunRecord, Start
from megatron_qwen3.pretrain.rows import arrays_of
from megatron_qwen3.pretrain.sources import simple_sources
from megatron_qwen3.pretrain.stream import Cursor
from megatron_qwen3.pretrain.times_read import readers, times
from megatron_qwen3.settings import DataConfig, SourceConfig
from megatron_qwen3.storage import lock
from tests.corpora import WORDS, digests, dying

pytestmark = pytest.mark.usefixtures("small_units")
ODD = 'https://a.b/ü?q="x"\\y&n=1'


def url(k: int) -> str:
    return ODD if k == 7 else f"https://site{k % 3}.org/{k}"


def corpus(folder: Path, count: int = 80) -> Path:
    folder.mkdir()
    chance = random.Random(3)
    with (folder / "a.jsonl").open("w") as file:
        for k in range(count):
            text = " ".join(chance.choices(WORDS, k=chance.randint(1, 60)))
            row = {"id": f"d{k}", "text": text, "url": url(k), "n": k, "metadata": {"ok": k > 40}}
            file.write(json.dumps(row) + "\n")
    return folder


@pytest.fixture(params=[0, 32], ids=["plain", "packed"])
def shards(request: pytest.FixtureRequest, tmp_path: Path, tokenizer: str) -> Path:
    out = tmp_path / "tokens"
    pack = request.param
    tokenize([corpus(tmp_path / "in")], out, Settings(tokenizer, shard_tokens=600, pack=pack),
             CorpusOptions())  # fmt: skip
    return out


def found(folder: Path, *values: str, **how: Any) -> set[str]:
    query = DocumentQuery(frozenset(values), **how)
    return {one.origin.id for one in find(read_inventory(folder), query, 1)}


def prefixes(folder: Path) -> list[Path]:
    return sorted(Path(str(path)[:-4]) for path in folder.rglob("*.bin"))


def tokens_of(folder: Path) -> dict[Path, list[list[int]]]:
    return {
        prefix: [reader.tokens[a:b].tolist() for a, b in pairwise(reader.document_offsets)]
        for prefix in prefixes(folder)
        for reader in [IndexedReader(prefix)]
    }


def faults_of(folder: Path) -> list[str]:
    """The output of `verify`."""
    cells = groupby(read_inventory(folder).cells, lambda cell: cell.path)
    return [fault for _, some in cells for fault in faults(folder, list(some))]


def take(folder: Path, *values: str, reason: str = "asked for") -> int:
    with removing(folder) as begun:
        where: dict[str, list[int]] = {}
        for one in find(read_inventory(folder), DocumentQuery(frozenset(values)), 1):
            where.setdefault(one.path, []).append(one.document)
        return begun.take(where, reason)


# ---- finding -----------------------------------------------------------------------------------


def test_documents_are_found_by_any_field_whole_or_in_part(shards: Path) -> None:
    assert found(shards, url(5)) == found(shards, url(5), field="url") == {"d5"}
    assert found(shards, ODD, field="url") == {"d7"} and found(shards, '"x"\\y', is_part=True)
    assert found(shards, "d1") == found(shards, "d1", field="id") == {"d1"}
    assert found(shards, "12", field="n") == {"d12"}
    assert found(shards, "true", field="ok") == {f"d{k}" for k in range(41, 80)}
    assert found(shards, "site1.org", field="url", is_part=True) == {
        f"d{k}" for k in range(80) if k % 3 == 1 and k != 7
    }
    assert found(shards, "site1.org") == found(shards, url(5), field="id") == set()
    many = [url(k) for k in range(20)]
    assert found(shards, *many, "absent") == {f"d{k}" for k in range(20)}
    assert found(shards, line=("a.jsonl", 31)) == {"d30"}


def test_what_cannot_be_looked_for_is_refused(shards: Path) -> None:
    with pytest.raises(ConfigError, match="nothing is looked for"):
        found(shards)
    with pytest.raises(ConfigError, match=r"b\.jsonl is none of the 1 inputs .*: a\.jsonl"):
        found(shards, line=("b.jsonl", 1))
    docs = prefixes(shards)[0].with_suffix(".docs")
    docs.write_bytes(docs.read_bytes()[:30])
    with pytest.raises(ConfigError, match="is cut short: 30 bytes"):
        found(shards, "x")


@pytest.mark.parametrize("block", [1, 7, 64])
def test_what_is_looked_for_is_found_wherever_blocks_of_provenance_end(
    shards: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    asked = [{"is_part": True}, {"field": "url", "is_part": True}, {}]
    values = ["site1.org", "/4", "d1", ODD]
    expected = [[found(shards, value, **how) for value in values] for how in asked]
    assert all(map(any, expected))
    monkeypatch.setattr(finding, "_BLOCK_BYTES", block)
    assert [[found(shards, value, **how) for value in values] for how in asked] == expected


def test_however_many_documents_match_each_is_read_when_it_is_asked_for(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, origin_of = [], finding.origin_of
    monkeypatch.setattr(finding, "origin_of", lambda *row: read.append(1) or origin_of(*row))
    matches = find(read_inventory(shards), DocumentQuery(frozenset(["site"]), is_part=True), 1)
    for count in range(1, 50):
        next(matches)
        assert len(read) == count


def test_verifying_holds_the_cells_of_one_shard_at_a_time(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_prep.inventory.BLOCK_CELLS", 1)
    write_inventory(read_inventory(shards), list(read_inventory(shards).cells))
    count = len(read_inventory(shards).cells)
    blocks, left, columns_of = [], [], StoredCells.columns_of
    monkeypatch.setattr(
        StoredCells, "columns_of", lambda self, n: blocks.append(n) or columns_of(self, n)
    )
    monkeypatch.setattr(
        inspect_shards, "faults", lambda _, cells: left.append(count - len(blocks)) or ()
    )
    assert inspect_shards.main(["verify", str(shards)]) == 0
    assert len(left) > 2 and left == sorted(left, reverse=True) and left[0] > 0 == left[-1]


def test_damaged_provenance_is_one_line_that_names_it(shards: Path) -> None:
    docs = prefixes(shards)[0].with_suffix(".docs")
    whole = docs.read_bytes()
    for content, complaint in (
        (whole.replace(b'"url":"', b'"url":""', 1), "is damaged: document "),
        (whole[:8] + b"\x09" + whole[9:], "of another folder: a document of input 9 of 1"),
    ):
        docs.write_bytes(content)
        with pytest.raises(ConfigError, match=complaint):
            found(shards, "d", is_part=True)
        if "input" in complaint:
            with pytest.raises(ConfigError, match=complaint):
                origin(prefixes(shards)[0], 0)


# ---- removing ----------------------------------------------------------------------------------


def test_a_document_becomes_end_of_text_and_nothing_else_moves(shards: Path) -> None:
    end = read_inventory(shards).tokenizer["end_of_document"]
    before, marks = tokens_of(shards), fingerprint.marks([str(p) for p in prefixes(shards)])
    provenance = [provenance_sha256(prefix) for prefix in prefixes(shards)]
    inventory = digests(shards)["inventory.parquet"]
    assert take(shards, url(5), ODD, reason="a\nb") > 0
    gone = 0
    for prefix, documents in tokens_of(shards).items():
        listed = removed_from(prefix)
        for n, (now, then) in enumerate(zip(documents, before[prefix], strict=True)):
            is_gone = origin(prefix, n).id in ("d5", "d7")
            assert now == ([end] * len(then) if is_gone else then)
            assert (n in listed) == is_gone
            gone += is_gone
        assert all(row["reason"] == "a\nb" and row["date"][:2] == "20" for row in listed.values())
    assert gone >= 2 and not is_interrupted(shards)
    assert faults_of(shards) == []
    assert fingerprint.marks([str(p) for p in prefixes(shards)]) == marks
    assert [provenance_sha256(prefix) for prefix in prefixes(shards)] == provenance
    assert digests(shards)["inventory.parquet"] == inventory


def test_the_mark_of_a_changed_page_is_that_of_before_only_as_the_removal_left_it(
    tmp_path: Path,
) -> None:
    prefix = tmp_path / "one"
    with IndexedWriter(prefix, np.int32) as writer:
        writer.add_documents(np.arange(30_000), [100] * 300)
    write_sealed(prefix, (Cell("one", Labels(*"abcdef"), 300, 30_000, 9),), [])
    first = fingerprint.mark(prefix)
    begun = removal.Removal(tmp_path, 7)
    for documents in ([0, 1], [299], [0, 150]):
        begun.take({"one": documents}, "")
        assert fingerprint.mark(prefix) == first != fingerprint.mark_of_bytes(str(prefix))
    reader = IndexedReader(prefix)
    assert reader.removed and reader.removed.ranges.tolist() == [
        [0, 200], [15_000, 15_100], [29_900, 30_000]]  # fmt: skip
    expected = np.arange(30_000)
    for a, b in reader.removed.ranges.tolist():
        expected[a:b] = 7
    assert np.array_equal(reader.tokens, expected)
    with open(f"{prefix}.bin", "r+b") as file:
        file.write(b"\1")
    with pytest.raises(ConfigError, match="was changed after documents were removed from it"):
        fingerprint.mark(prefix)


def test_a_damaged_record_of_removals_is_refused(shards: Path) -> None:
    take(shards, url(5))
    index = next(p for p in shards.rglob("*.idx") if IndexedReader(str(p)[:-4]).removed)
    content = index.read_bytes()
    index.write_bytes(content[:-48] + b"\xff" * 8 + content[-40:])
    with pytest.raises(ConfigError, match="damaged, removed documents do not follow each other"):
        IndexedReader(str(index)[:-4])
    index.write_bytes(content[:-16] + b"\xff" * 8 + content[-8:])
    with pytest.raises(ConfigError, match="damaged"):
        IndexedReader(str(index)[:-4])


# ---- training goes on --------------------------------------------------------------------------


def mixture_of(folder: Path, length: int) -> Mixture:
    inventory = read_inventory(folder)
    marks = {p: fingerprint.mark(folder / p) for p in paths_of(inventory)}
    (folder / "r.toml").write_text(
        f"held_out = 0.1\n[stages.one]\ntokens = 4096\nsequence_length = {length}\nmax_epochs = 9\n"
    )
    stage = plan(inventory, recipes.load(folder / "r.toml", []), marks).stages[0]
    feeds = tuple(Feed(share.source, share.tokens, Start(1)) for share in stage.shares)
    return Mixture(RunPart(0, 4, length, stage.tokens // length, feeds))


@pytest.mark.parametrize("is_listed", [False, True])
def test_no_list_of_removals_writes_outside_of_its_folder(shards: Path, is_listed: bool) -> None:
    other = shards.parent / "other"
    shutil.copytree(shards, other)
    before = digests(other)
    path = f"../other/{prefixes(shards)[0].relative_to(shards)}"
    if is_listed:  # as it is left by a removal that was killed, or by a stranger
        asked = {"version": 1, "date": "", "reason": "", "documents": {path: [0]}}
        (shards / "removing.json").write_text(json.dumps(asked))
    with pytest.raises(ConfigError, match="lies outside of it"), removing(shards) as begun:
        begun.take({path: [0]}, "none of theirs")
    assert digests(other) == before


@pytest.mark.parametrize("apart", [False, True])
def test_a_mixture_of_before_goes_on_with_the_same_places_and_trains_nothing_removed(
    shards: Path, apart: bool
) -> None:
    mixture = mixture_of(shards, 64)
    samples = mixture.part.sequences or 0
    before = arrays_of(mixture.batch(0, samples, apart))
    assert mixture.batch(0, samples).is_removed_BS is None
    take(shards, url(5), url(6), ODD)
    from megatron_qwen3.pretrain import files

    files._reader.cache_clear()  # another process would begin with none
    again = Mixture(mixture.part)  # with the marks of before
    after = arrays_of(again.batch(0, samples, apart))
    zeroed = 0
    for i in range(samples):
        place, done = again.locate(i), 0
        for first, last in place.ranges:
            for token in range(first, last):
                gone = False
                for t in {token, min(token + 1, again.sources[place.source].tokens - 1)}:
                    prefix, at = again.files[place.source].place(t)
                    n = IndexedReader(prefix).document_of(at)
                    gone |= n in removed_from(prefix)
                expected = 0 if gone else before.weights_BS[i, done]
                assert after.weights_BS[i, done] == expected, (i, done)
                zeroed += gone
                done += 1
    assert zeroed
    kept = after.weights_BS > 0
    assert np.array_equal(before.tokens_BS[kept], after.tokens_BS[kept])
    assert np.array_equal(before.labels_BS[kept], after.labels_BS[kept])
    fresh = mixture_of(shards, 64)
    assert [s.identity for s in fresh.sources] == [s.identity for s in mixture.sources]


@pytest.mark.parametrize("row_length", [1, 16])
def test_how_often_tokens_were_read_is_what_counting_says(tmp_path: Path, row_length: int) -> None:
    prefix = tmp_path / "s"
    with IndexedWriter(prefix, np.int32) as writer:
        writer.add_documents(np.arange(3_200), [100] * 32)
        if row_length > 1:
            writer.pack(row_length, np.full(3_200 // row_length, row_length))
    sources = (SourceConfig("s", str(prefix), 1.0),)
    (source, share), = simple_sources(
        DataConfig(sequence_length=48, held_out=0.1, sources=sources))  # fmt: skip
    part = RunPart(0, 4, 48, None, (Feed(source, share, Start(5)),))
    mixture = Mixture(part)
    counts = np.zeros((61, source.tokens), int)
    for step in range(60):
        counts[step + 1] = counts[step]
        for i in range(4 * step, 4 * step + 4):
            for a, b in mixture.locate(i).ranges:
                counts[step + 1, a:b] += 1
    ranges = [(0, 1), (100, 101), (1_599, 1_600), (2_879, 2_880), (3_000, 3_100)]
    for begin, end in [(0, 1), (0, 7), (0, 60), (13, 60), (20, 21)]:
        before = part.starts_after(begin)[source.identity].cursor
        start = part.starts_after(end)[source.identity]
        expected = [int((counts[end] - counts[begin])[a]) for a, _ in ranges]
        expected[-1] = 0  # held out
        assert times(source, start, before, ranges) == expected


def test_runs_and_curricula_that_read_documents_are_told_with_the_number_of_times(
    tmp_path: Path,
) -> None:
    prefix = tmp_path / "s"
    with IndexedWriter(prefix, np.int32) as writer:
        writer.add_documents(np.arange(3_200), [100] * 32)
    data = DataConfig(
        sequence_length=32, held_out=0.0, sources=(SourceConfig("s", str(prefix), 1.0),)
    )
    ((source, share),) = simple_sources(data)
    record = RunRecord((RunPart(0, 100, 32, None, (Feed(source, share, Start(5)),)),))
    run = tmp_path / "runs" / "a"
    run.mkdir(parents=True)
    record.write(run)
    (reader,) = readers([tmp_path / "runs"], {str(prefix): [(0, 100)]})
    assert (reader.path, reader.what, reader.most) == (run, "up to step 0", 0)
    manifest = tmp_path / "runs" / "plan.json"
    named = (source.shards[0]._replace(path="s"),)
    source = replace(source, folder=str(tmp_path), shards=named)
    shares = (StageShare(source, 3_072, 0), StageShare(source, 6_400, 3_072))
    stages = tuple(Stage(f"s{k}", 32, 9.0, (share,)) for k, share in enumerate(shares))
    curriculum.write(Curriculum(5, {}, 5_000, stages), manifest)
    first, second, _ = readers([tmp_path / "runs"], {str(prefix): [(0, 100)]})
    assert (first.path, first.what, first.verb) == (manifest, "stage s0", "reads")
    assert first.most == 1 and second.least >= 2
    assert list(readers([tmp_path / "runs"], {})) == []
    (tmp_path / "other").mkdir()
    assert list(readers([tmp_path / "other"], {str(prefix): [(0, 1)]})) == []
    with pytest.raises(ConfigError, match="--runs .*nowhere does not exist"):
        list(readers([tmp_path / "nowhere"], {}))
    assert Cursor(10, ((2, 4),)).read_of(1, 12) == 7


def test_a_run_of_many_sources_is_looked_through_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with IndexedWriter(tmp_path / "s", np.int32) as writer:
        writer.add_document(np.arange(100))
    shard = ShardFile("s", 100, fingerprint.mark(tmp_path / "s"))
    sources = [curriculum.Source(f"s{k}", str(tmp_path), (shard,)) for k in range(20)]
    feeds = tuple(Feed(source, 1, Start(5)) for source in sources)
    RunRecord((RunPart(0, 20, 8, None, feeds),)).write(tmp_path)
    calls, made = [], RunRecord.sources
    monkeypatch.setattr(RunRecord, "sources", lambda self: calls.append(1) or made(self))
    assert list(readers([tmp_path], {str(tmp_path / "s"): [(0, 9)]}))
    assert len(calls) == 1


# ---- killed ------------------------------------------------------------------------------------


def dies_at(call: int, folder: Path) -> bool:
    """Remove in a process that is killed in the middle of its n-th write, renaming or syncing."""
    child = os.fork()
    if not child:
        try:
            left = [call]
            os.pwrite = dying(_halved(os.pwrite, left), left)  # type: ignore[assignment]
            for owner, name in ((os, "fsync"), (Path, "replace"), (Path, "unlink")):
                setattr(owner, name, dying(getattr(owner, name), left))
            take(folder, url(5), ODD, url(30))
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def _halved(pwrite: Any, left: list[int]) -> Any:
    """Of each write only a part is done, so that a kill comes between."""

    def call(descriptor: int, data: Any, at: int) -> int:
        return int(pwrite(descriptor, memoryview(data)[: len(data) // 2 + 1], at))

    return call


def test_a_removal_killed_at_any_point_goes_on_to_the_same_shards(
    tmp_path: Path, tokenizer: str
) -> None:
    import shutil

    folder, settings = corpus(tmp_path / "in"), Settings(tokenizer, shard_tokens=2_000)
    tokenize([folder], tmp_path / "whole", settings, CorpusOptions())
    shutil.copytree(tmp_path / "whole", tmp_path / "untouched")
    was = tokens_of(tmp_path / "whole")
    take(tmp_path / "whole", url(5), ODD, url(30))
    whole = {k: v for k, v in digests(tmp_path / "whole").items() if k.endswith(("bin", "idx"))}
    calls = 0
    while True:
        calls += 1
        out = tmp_path / f"{calls}"
        shutil.copytree(tmp_path / "untouched", out)
        died = dies_at(calls, out)
        _is_safe(out, was, tmp_path / "whole")
        with removing(out) as begun:
            begun.end()
        if any(removed_from(p) for p in prefixes(out)):  # or it died before it was noted
            now = {k: v for k, v in digests(out).items() if k.endswith(("bin", "idx"))}
            assert now == whole
        else:
            assert tokens_of(out) == {out / p.relative_to(tmp_path / "whole"): d
                                      for p, d in was.items()}  # fmt: skip
        assert faults_of(out) == []
        shutil.rmtree(out)
        if not died:
            break
    assert calls > 20


def _is_safe(out: Path, was: dict[Path, list[list[int]]], whole: Path) -> None:
    """Changed documents of a shard that opens are not trained on."""
    for prefix in prefixes(out):
        reader = IndexedReader(prefix)
        ranges = reader.removed.ranges.tolist() if reader.removed else []
        flat = [t for d in was[whole / prefix.relative_to(out)] for t in d]
        changed = np.flatnonzero(reader.tokens != np.array(flat))
        assert all(any(a <= t < b for a, b in ranges) for t in changed.tolist())


@pytest.mark.parametrize("suffix", ["bin", "idx"])
def test_damage_of_before_is_not_covered_by_new_checksums(shards: Path, suffix: str) -> None:
    inventory = read_inventory(shards)
    one, *_ = find(inventory, DocumentQuery(frozenset([url(5)])), 1)
    prefix = shards / one.path
    file = prefix.with_suffix(f".{suffix}")
    whole = file.read_bytes()
    at = -1 if suffix == "idx" else 0  # the last boundary of documents, or tokens of a row
    file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + (whole[at + 1 :] if at + 1 else b""))
    before = digests(shards)
    with pytest.raises(ConfigError, match=rf"{file}(: damaged| is not what was written)"):
        take(shards, url(5))
    (shards / removal.LOCK).unlink(missing_ok=True)
    assert digests(shards) == before and not is_interrupted(shards)
    file.write_bytes(whole)
    assert take(shards, url(5)) > 0 and faults_of(shards) == []


def test_damage_between_a_kill_and_its_end_is_not_covered_either(
    tmp_path: Path, tokenizer: str
) -> None:
    out = tmp_path / "out"
    tokenize([corpus(tmp_path / "in")], out, Settings(tokenizer), CorpusOptions())
    shutil.copytree(out, tmp_path / "whole")
    take(tmp_path / "whole", url(5), ODD, url(30))
    calls = 0
    while not is_interrupted(out) or not any(IndexedReader(p).removed for p in prefixes(out)):
        calls += 1
        assert dies_at(calls, out)
    (prefix,) = prefixes(out)
    file = prefix.with_suffix(".bin")
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"\.bin was damaged while documents were removed"):
            take(out, url(1))
    assert is_interrupted(out) and not removed_from(prefix)
    file.write_bytes(whole)
    with removing(out) as begun:
        begun.end()
    assert faults_of(out) == []
    names = [n for n in digests(out) if n.endswith((".bin", ".idx"))]
    assert all(digests(out)[n] == digests(tmp_path / "whole")[n] for n in names)


def test_a_removal_that_was_killed_while_it_wrote_is_ended_by_the_next_command(
    tmp_path: Path, tokenizer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    tokenize([corpus(tmp_path / "in")], out, Settings(tokenizer), CorpusOptions())
    (prefix,) = prefixes(out)
    data = DataConfig(16, held_out=0.0, sources=(SourceConfig("s", str(prefix), 1.0),))
    ((source, share),) = simple_sources(data)
    run = tmp_path / "runs/one"
    run.mkdir(parents=True)
    RunRecord((RunPart(0, 4, 16, None, (Feed(source, share, Start(5)),)),)).write(run)
    calls = 0
    while (fault := fault_of_mark(prefix)) == "":
        calls += 1
        assert dies_at(calls, out)
    assert "was changed after documents were removed from it" in fault
    command = ["remove", str(out), url(1), "--reason", "x", "--runs", str(run)]
    assert inspect_shards.main(command) == 0
    told = capsys.readouterr().out
    assert "a removal of 3 documents was interrupted: it is ended" in told
    assert told.count("runs/one: up to step 0: has read them 0 times") == 2
    assert len(removed_from(prefix)) == 4 and faults_of(out) == [] and fault_of_mark(prefix) == ""


def fault_of_mark(prefix: Path) -> str:
    try:
        fingerprint.mark(prefix)
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("documents", "complaint"),
    [
        ({"": [-2]}, "has documents 0 to .*, not -2"),
        ({"": [99]}, "has documents 0 to .*, not 99"),
        ({"": ["1"]}, "is no number of a document"),
        ({"": [True]}, "is no number of a document"),
        ({"": 1}, "is no list of documents to remove"),
        ([], "is no list of documents to remove"),
        ({"nowhere/": [1]}, "names what is not there: .*nowhere.*does not exist"),
    ],
)
def test_a_list_of_removals_that_cannot_be_is_told_before_anything_is_written(
    tmp_path: Path, tokenizer: str, documents: Any, complaint: str
) -> None:
    out = tmp_path / "out"
    tokenize([corpus(tmp_path / "in", 9)], out, Settings(tokenizer), CorpusOptions())
    path = str(prefixes(out)[0].relative_to(out))
    if isinstance(documents, dict):
        documents = {f"{where}{path}": numbers for where, numbers in documents.items()}
    asked = {"version": 1, "date": "", "reason": "", "documents": documents}
    (out / removal.JOURNAL).write_text(json.dumps(asked))
    before = digests(out)
    with pytest.raises(ConfigError, match=complaint), removing(out) as begun:
        begun.end()
    (out / removal.LOCK).unlink()
    assert digests(out) == before


def test_a_damaged_seal_is_named_and_the_list_of_removals_is_kept(
    tmp_path: Path, tokenizer: str
) -> None:
    out = tmp_path / "out"
    tokenize([corpus(tmp_path / "in", 9)], out, Settings(tokenizer), CorpusOptions())
    (prefix,) = prefixes(out)
    docs = prefix.with_suffix(".docs")
    whole = docs.read_bytes()
    docs.write_bytes(whole.replace(b'"sha256"', b'"sha255"'))
    asked = {
        "version": 1,
        "date": "",
        "reason": "",
        "documents": {str(prefix.relative_to(out)): [1]},
    }
    (out / removal.JOURNAL).write_text(json.dumps(asked))
    with pytest.raises(ConfigError) as told, removing(out) as begun:
        begun.end()
    assert f"{docs}: the seal of the shard is damaged" in str(told.value)
    assert removal.JOURNAL not in str(told.value) and is_interrupted(out)
    docs.write_bytes(whole)
    with removing(out) as begun:
        begun.end()
    assert list(removed_from(prefix)) == [1] and faults_of(out) == []


def test_documents_of_old_shards_are_found_and_taken_out(tmp_path: Path) -> None:
    with tarfile.open(Path(__file__).parents[1] / "old/old.tar.xz") as archive:
        of_tokens = [m for m in archive.getmembers() if m.name.startswith("tokens/")]
        archive.extractall(tmp_path, of_tokens, filter="data")
    folder = tmp_path / "tokens"
    whole = prefixes(folder)
    assert len(whole) == 3 and all(map(is_sealed, whole)) and faults_of(folder) == []
    one = next(find(read_inventory(folder), DocumentQuery(line=("00000.jsonl.zst", 2)), 1))
    with removing(folder) as begun:
        assert begun.take({one.path: [one.document]}, "asked for") > 0
    prefix = folder / one.path
    assert removed_from(prefix)[one.document]["reason"] == "asked for"
    assert prefix.with_suffix(".json").exists() and faults_of(folder) == []


# ---- the commands ------------------------------------------------------------------------------


def test_the_commands_find_remove_and_tell(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main, folder = inspect_shards.main, str(shards)
    assert main(["find", folder, url(5), "--field", "url"]) == 0
    assert f"url {url(5)}  n 5" in (out := capsys.readouterr().out) and "a.jsonl:6  id d5" in out
    assert main(["find", folder, "absent"]) == 1
    asked = ["--reason", "request 12"]
    assert main(["remove", folder, "site", "--contains", *asked, "--most", "9"]) == 2
    assert "documents match, --most = 9: nothing was removed; --most " in capsys.readouterr().err
    assert main(["remove", folder, url(5), *asked, "--dry-run"]) == 0
    assert "--dry-run: " in capsys.readouterr().out
    assert not any(removed_from(p) for p in prefixes(shards))
    assert main(["remove", folder, url(5), *asked]) == 0
    out = capsys.readouterr().out
    assert "removed " in out and "(--runs): their readers are not known" in out
    assert main(["remove", folder, url(5), *asked]) == 0
    assert "removed before" in capsys.readouterr().out
    assert main(["find", folder, url(5), "--json"]) == 0
    row = json.loads(capsys.readouterr().out.splitlines()[0])
    assert row["fields"]["url"] == url(5) and row["removed"]["reason"] == "request 12"
    assert main(["show", str(shards / row["shard"]), str(row["document"])]) == 0
    assert "request 12" in capsys.readouterr().out
    assert main(["verify", folder]) == 0
    (shards / removal.JOURNAL).write_text("{}")
    assert main(["verify", folder]) == 1
    assert "was interrupted" in capsys.readouterr().out


def test_a_dry_run_writes_nothing_and_ends_nothing(
    tmp_path: Path, tokenizer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    tokenize([corpus(tmp_path / "in", 20)], out, Settings(tokenizer), CorpusOptions())
    documents = {str(prefixes(out)[0].relative_to(out)): [1, 2]}
    asked = {"version": 1, "date": "", "reason": "", "documents": documents}
    for is_begun in (False, True):
        if is_begun:
            (out / removal.JOURNAL).write_text(json.dumps(asked))
        before = digests(out)
        command = ["remove", str(out), url(5), "--reason", "x", "--dry-run"]
        assert inspect_shards.main(command) == 0
        assert digests(out) == before
        told = capsys.readouterr().out
        assert ("a removal of 2 documents was interrupted: it would be ended" in told) == is_begun
        assert re.search(r"--dry-run: 1 document, \d+ tokens would be removed", told)
        assert inspect_shards.main([*command, "--json"]) == 0
        row = json.loads(capsys.readouterr().out)
        assert row["dry_run"] and row["tokens"] > 0 and digests(out) == before
    with _reading(f"{prefixes(out)[0]}.bin"):  # who reads keeps what was begun from its end, too
        assert inspect_shards.main(["remove", str(out), url(5), "--reason", "x"]) == 2
    (out / removal.LOCK).unlink()
    assert digests(out) == before


def test_what_was_removed_is_one_object_of_json_and_nothing_else(
    tmp_path: Path, tokenizer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    tokenize([corpus(tmp_path / "in", 20)], out, Settings(tokenizer), CorpusOptions())
    command = ["remove", str(out), url(5), url(6), "--reason", "x", "--json"]
    assert inspect_shards.main([*command, "--most", "1"]) == 2
    told = capsys.readouterr()
    assert not told.out and "2 documents match, --most = 1" in told.err
    for gone in (0, 2):
        assert inspect_shards.main(command) == 0
        row = json.loads(capsys.readouterr().out)
        names = {document["id"] for document in row["documents"]}
        assert names == (set() if gone else {"d5", "d6"}) and row["removed_before"] == gone
        assert (row["shards"], row["tokens"] > 0) == ((0, False) if gone else (1, True))
        assert row["readers"] == [] and not row["dry_run"]
    (out / removal.JOURNAL).write_text("{}")
    assert inspect_shards.main(["find", str(out), url(5), "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["removed"]["reason"] == "x" and "was interrupted" in told.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--line", "a.jsonl", "x"], "the line is a number, from 1"),
        (["v", "--line", "a.jsonl", "1"], "--line names a document by itself"),
        (["v", "--workers", "0"], "--workers = 0; valid: 1 or more"),
        ([""], "nothing is looked for"),
    ],
)
def test_wrong_searches_are_refused(
    tmp_path: Path, tokenizer: str, arguments: list[str], message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    tokenize([corpus(tmp_path / "in", 3)], tmp_path / "out", Settings(tokenizer), CorpusOptions())
    assert inspect_shards.main(["find", str(tmp_path / "out"), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_shards_that_somebody_reads_are_left_alone(
    tmp_path: Path, tokenizer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    tokenize([corpus(tmp_path / "in", 20)], out, Settings(tokenizer), CorpusOptions())
    before = digests(out)
    with _reading(f"{prefixes(out)[0]}.bin") as process:
        assert inspect_shards.main(["remove", str(out), url(5), "--reason", "x"]) == 2
    assert f"process {process.pid} (" in capsys.readouterr().err
    prefix = str(prefixes(out)[0])
    data = DataConfig(sequence_length=16, held_out=0.0, sources=(SourceConfig("s", prefix, 1.0),))
    ((source, share),) = simple_sources(data)
    run = tmp_path / "runs/one"
    run.mkdir(parents=True)
    RunRecord((RunPart(0, 4, 16, None, (Feed(source, share, Start(5)),)),)).write(run)
    with lock.owned(run):
        arguments = ["remove", str(out), url(5), "--reason", "x", "--runs", str(tmp_path / "runs")]
        assert inspect_shards.main(arguments) == 2
    told = capsys.readouterr()
    assert (
        "runs/one: up to step 0: has read them 0 times" in told.out
        and "one is at work (host" in told.err
    )
    (out / removal.LOCK).unlink()
    assert digests(out) == before


@contextmanager
def _reading(path: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has a file mapped."""
    program = (
        "import mmap, sys; file = open(sys.argv[1], 'rb'); "
        "held = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ); print('open', flush=True); "
        "sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, path]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout and process.stdout.readline() == b"open\n"
        yield process
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
