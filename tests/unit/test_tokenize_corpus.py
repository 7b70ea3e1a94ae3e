"""Documents become shards: the same bytes whoever does the work, Megatron's, and never half."""

import contextlib
import errno
import filecmp
import gzip
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest

from data_prep.indexed import IndexedReader
from data_prep.inventory import read_inventory
from data_prep.shards import origin
from data_prep.tokenization import plan
from data_prep.tokenization.corpus import CorpusOptions, tokenize
from data_prep.tokenization.plan import Settings
from data_prep.tokenizer import DocumentTokenizer
from megatron_qwen3.cli import inspect_shards, tokenize_corpus
from megatron_qwen3.config import ConfigError
from tests.corpora import WORDS, dies_after, digests

ROOT = Path(__file__).resolve().parents[2]
ONE = CorpusOptions()

pytestmark = pytest.mark.usefixtures("small_units")


def settings(tokenizer: str, **others: Any) -> Settings:
    return Settings(tokenizer, shard_tokens=4000, group_bytes=40_000, **others)


def documents(count: int, seed: int = 0) -> list[dict[str, Any]]:
    chance = random.Random(seed)
    rows = []
    for k in range(count):
        text = " ".join(chance.choices(WORDS, k=chance.randint(1, 60)))
        row = {
            "id": f"{seed}-{k}",
            "text": text,
            "language": chance.choice(["eng_Latn", "rus_Cyrl"]),
        }
        row["metadata"] = {"quality": chance.choice([0.1, 0.9, None])}
        rows.append(row)
    return rows


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Three files in three groups, one of them compressed, one in a folder of its own."""
    folder = tmp_path / "corpus"
    (folder / "more").mkdir(parents=True)
    for seed, (name, count) in enumerate(
        {"a.jsonl": 300, "b.jsonl.gz": 200, "more/c.jsonl": 100}.items()
    ):
        content = b"".join(json.dumps(row).encode() + b"\n" for row in documents(count, seed))
        (folder / name).write_bytes(
            gzip.compress(content, mtime=0) if name.endswith("gz") else content
        )
    return folder


def sequences(out: Path) -> dict[str, list[list[int]]]:
    """Every shard's documents as ids."""
    found = {}
    for path in sorted({cell.path for cell in read_inventory(out).cells}):
        reader = IndexedReader(out / path)
        found[path] = [reader.tokens[a:b].tolist() for a, b in pairwise(reader.document_offsets)]
    return found


def test_every_document_is_in_one_shard_of_its_labels_with_the_ids_of_hugging_face(
    corpus: Path, tmp_path: Path, tokenizer: str
) -> None:
    report = tokenize([corpus], tmp_path / "out", settings(tokenizer), ONE)
    assert report is not None and report.lines == 600 and not report.problems
    reference = DocumentTokenizer(tokenizer, "huggingface")
    expected = {
        row["id"]: row for seed, n in ((0, 300), (1, 200), (2, 100)) for row in documents(n, seed)
    }
    inventory = read_inventory(tmp_path / "out")
    assert len(inventory.cells) >= 12
    shards = sequences(tmp_path / "out")
    for cell in inventory.cells:
        documents_before = shards[cell.path][: cell.first]
        assert sum(map(len, documents_before)) == cell.start
        written = shards[cell.path][cell.first : cell.first + cell.documents]
        assert len(written) == cell.documents and sum(map(len, written)) == cell.tokens
        for k, ids in enumerate(written, cell.first):
            place = origin(tmp_path / "out" / cell.path, k)
            row = expected.pop(place.id)
            assert ids == reference.encode_document(row["text"]).tolist()
            quality = {0.1: "low", 0.9: "high", None: "unknown"}[row["metadata"]["quality"]]
            assert (cell.labels.language, cell.labels.quality) == (row["language"], quality)
            content = (corpus / place.file).read_bytes()
            lines = (
                gzip.decompress(content) if place.file.endswith("gz") else content
            ).splitlines()
            assert json.loads(lines[place.line - 1])["id"] == place.id
    assert not expected
    assert sum(cell.bytes for cell in inventory.cells) == sum(
        len(row["text"].encode())
        for seed, n in ((0, 300), (1, 200), (2, 100))
        for row in documents(n, seed)
    )


def test_shards_are_byte_identical_to_megatrons(
    corpus: Path, tmp_path: Path, tokenizer: str
) -> None:
    torch = pytest.importorskip("torch")
    megatron = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    out = tmp_path / "out"
    tokenize([corpus], out, settings(tokenizer), ONE)
    for number, (path, written) in enumerate(sequences(out).items()):
        theirs = tmp_path / f"theirs-{number}"
        builder = megatron.IndexedDatasetBuilder(f"{theirs}.bin", dtype=np.uint16)
        for ids in written:
            builder.add_document(torch.tensor(ids), [len(ids)])
        builder.finalize(f"{theirs}.idx")
        for suffix in ("bin", "idx"):
            ours = out / f"{path}.{suffix}"
            assert filecmp.cmp(ours, f"{theirs}.{suffix}", shallow=False)


def test_megatrons_gptdataset_gives_the_same_tokens(
    corpus: Path, tmp_path: Path, tokenizer: str
) -> None:
    gpt = pytest.importorskip("megatron.core.datasets.gpt_dataset")
    blended = pytest.importorskip("megatron.core.datasets.blended_megatron_dataset_builder")
    out, length = tmp_path / "out", 32
    tokenize([corpus], out, settings(tokenizer), ONE)
    path, written = max(sequences(out).items(), key=lambda item: len(item[1]))
    config = gpt.GPTDatasetConfig(
        random_seed=1,
        sequence_length=length,
        blend=([str(out / path)], None),
        split="1,0,0",
        path_to_cache=str(tmp_path / "cache"),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        tokenizer=SimpleNamespace(eod=474, pad=474, vocab_size=500, unique_identifiers={}),
        mid_level_dataset_surplus=0.005,
    )
    builder = blended.BlendedMegatronDatasetBuilder(
        gpt.GPTDataset, [20, 0, 0], lambda: True, config
    )
    dataset = builder.build()[0]
    stream = [token for k in dataset.document_index for token in written[k]]
    for sample in range(20):
        start = int(dataset.shuffle_index[sample]) * length
        tokens, labels = (dataset[sample][name].tolist() for name in ("tokens", "labels"))
        assert tokens + labels[-1:] == stream[start : start + length + 1]


@pytest.mark.parametrize("options", [CorpusOptions(workers=3), CorpusOptions(engine="huggingface")])
def test_workers_and_engine_do_not_change_a_byte(
    corpus: Path, tmp_path: Path, tokenizer: str, options: CorpusOptions
) -> None:
    for name, chosen in (("one", ONE), ("other", options)):
        tokenize([corpus], tmp_path / name, settings(tokenizer), chosen)
    assert digests(tmp_path / "one") == digests(tmp_path / "other")


def test_more_units_than_files_may_be_open_at_once(
    tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "UNIT_BYTES", 200)
    rows = [json.dumps(row) for row in documents(500)]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, before[1]))
    try:
        report = tokenize([tmp_path / "a.jsonl"], tmp_path / "out", Settings(tokenizer), ONE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert report is not None
    assert sum(shard.documents for shard in report.inventory.cells) == 500


def test_tasks_share_a_folder_and_the_last_one_writes_the_inventory(
    corpus: Path, tmp_path: Path, tokenizer: str
) -> None:
    tokenize([corpus], tmp_path / "one", settings(tokenizer), ONE)
    reports = [
        tokenize([corpus], tmp_path / "two", settings(tokenizer), CorpusOptions(task=task, tasks=2))
        for task in (1, 0)
    ]
    assert reports[0] is None and reports[1] is not None
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


def test_the_seed_decides_the_order_and_the_order_is_not_that_of_the_input(
    corpus: Path, tmp_path: Path, tokenizer: str
) -> None:
    for seed in (0, 1):
        tokenize([corpus], tmp_path / str(seed), settings(tokenizer, seed=seed), ONE)
    first, second = (sequences(tmp_path / str(seed)) for seed in (0, 1))
    everything = [
        sorted(ids for part in found.values() for ids in part) for found in (first, second)
    ]
    assert everything[0] == everything[1]
    assert first != second
    out = tmp_path / "0"
    cell = max(read_inventory(out).cells, key=lambda cell: cell.documents)
    lines = [origin(out / cell.path, cell.first + k).line for k in range(cell.documents)]
    assert abs(np.corrcoef(lines, range(len(lines)))[0, 1]) < 0.5


def test_the_commands_say_what_was_done_and_show_where_a_document_came_from(
    corpus: Path, tmp_path: Path, tokenizer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    command = [str(corpus), "--out", out, "--tokenizer", tokenizer, "--workers", "1"]
    assert tokenize_corpus.main([*command, "--default", "source=made-up"]) == 0
    assert "made-up" in capsys.readouterr().out
    assert tokenize_corpus.main([*command, "--default", "source"]) == 2
    assert "--default: 'source' is not NAME=VALUE" in capsys.readouterr().err
    assert inspect_shards.main(["table", out, "--by", "language", "quality"]) == 0
    assert "rus_Cyrl" in capsys.readouterr().out
    shard = read_inventory(out).cells[0]
    assert inspect_shards.main(["show", f"{out}/{shard.path}", "0"]) == 0
    place = origin(f"{out}/{shard.path}", 0)
    seed, number = map(int, place.id.split("-"))
    text = documents(300, seed)[number]["text"]
    shown = capsys.readouterr().out
    assert f"{place.file}:{place.line}  id {place.id}" in shown and text in shown
    capsys.readouterr()
    assert inspect_shards.main(["show", f"{out}/{shard.path}", "0", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["file"], told["line"], told["text"]) == (place.file, place.line, text)
    assert inspect_shards.main(["table", out, "--by", "source", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["source"] == "made-up" and row["tokens"] > 0
    assert inspect_shards.main(["verify", out, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["faults"] == []
    Path(f"{out}/{shard.path}.bin").write_bytes(b"")
    assert inspect_shards.main(["verify", out]) == 1
    assert inspect_shards.main(["show", f"{out}/{shard.path}", "9999"]) == 2


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("{}.docs", None),
        ("tokenizer/tokenizer.json", None),
        ("tokenizer/tokenizer.json", "{"),
        ("inventory.parquet", "[]"),
    ],
)
def test_a_folder_that_lost_a_file_is_an_error_that_names_it(
    corpus: Path, tmp_path: Path, tokenizer: str, capsys: Any, file: str, content: str | None
) -> None:
    out = tmp_path / "out"
    tokenize([corpus], out, settings(tokenizer), ONE)
    shard = read_inventory(out).cells[0]
    path = out / file.format(shard.path)
    path.unlink()
    if content:
        path.write_text(content)
    assert inspect_shards.main(["show", f"{out / shard.path}", "1"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and str(path) in told


BAD_LINES = [
    (b'{"text": "cut', "broken JSON"),
    (b'{"text": "\xff"}', "invalid UTF-8"),
    (b'{"id": "no text"}', "missing or wrong field"),
    (b'{"text": ""}', "empty document"),
]


def test_bad_lines_are_counted_and_listed_with_their_file_and_line_and_cost_no_other(
    corpus: Path, tmp_path: Path, tokenizer: str
) -> None:
    tokenize([corpus], tmp_path / "clean", settings(tokenizer), ONE)
    lines = (corpus / "a.jsonl").read_bytes().splitlines()
    expected = set()
    for place, (line, kind) in zip((0, 100, 200, 303), BAD_LINES, strict=True):
        lines.insert(place, line)
        expected.add(("a.jsonl", place + 1, kind))
    (corpus / "a.jsonl").write_bytes(b"\n".join(lines))
    whole = (corpus / "b.jsonl.gz").read_bytes()
    (corpus / "b.jsonl.gz").write_bytes(whole[:-4])
    expected.add(("b.jsonl.gz", 201, "damaged file"))
    report = tokenize([corpus], tmp_path / "out", settings(tokenizer), ONE)
    assert report is not None
    assert report.problems == {kind: 1 for _, _, kind in expected}
    listed = b"".join(path.read_bytes() for path in (tmp_path / "out/problems").iterdir())
    rows = [json.loads(line) for line in listed.splitlines()]
    assert {(row["file"], row["line"], row["kind"]) for row in rows} == expected
    ids = [
        sorted(ids for part in sequences(tmp_path / name).values() for ids in part)
        for name in ("clean", "out")
    ]
    assert ids[0] == ids[1]


def test_a_run_told_to_stop_at_a_bad_line_names_it_and_leaves_no_inventory(
    corpus: Path, tmp_path: Path, tokenizer: str
) -> None:
    with (corpus / "a.jsonl").open("ab") as file:
        file.write(b"[]\n")
    with pytest.raises(
        ConfigError, match=r"a\.jsonl:301: missing or wrong field: Expected `object`"
    ):
        tokenize([corpus], tmp_path / "out", settings(tokenizer), CorpusOptions(stop_on_error=True))
    assert not (tmp_path / "out/inventory.parquet").exists()


def test_a_folder_begun_with_other_inputs_or_settings_is_refused(
    corpus: Path, tmp_path: Path, tokenizer: str
) -> None:
    out = tmp_path / "out"
    tokenize([corpus], out, settings(tokenizer), ONE)
    before = digests(out)
    tokenize([corpus], out, settings(tokenizer), ONE)  # the same again does nothing
    with pytest.raises(ConfigError, match="seed was 0, is 1"):
        tokenize([corpus], out, settings(tokenizer, seed=1), ONE)
    with pytest.raises(ConfigError, match=r"2 inputs missing \(b\.jsonl\.gz, more/c\.jsonl\)"):
        tokenize([corpus / "a.jsonl"], out, settings(tokenizer), ONE)
    (corpus / "d.jsonl").write_text('{"text": "new"}')
    with pytest.raises(ConfigError, match=r"1 inputs new \(d\.jsonl\)"):
        tokenize([corpus], out, settings(tokenizer), ONE)
    (corpus / "d.jsonl").unlink()
    os.utime(corpus / "a.jsonl")
    with pytest.raises(ConfigError, match=r"1 inputs changed \(a\.jsonl\)"):
        tokenize([corpus], out, settings(tokenizer), ONE)
    assert digests(out) == before


def test_a_tokenizer_of_another_folder_is_not_written_over(
    corpus: Path, tmp_path: Path, tokenizer: str
) -> None:
    mine = tmp_path / "data/tokenizer/tokenizer.json"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(ConfigError, match=r"data holds tokenizer without plan\.json"):
        tokenize([corpus], tmp_path / "data", settings(tokenizer), ONE)
    assert mine.read_text() == "mine"


def test_shards_within_their_own_input_are_refused(corpus: Path, tokenizer: str) -> None:
    with pytest.raises(ConfigError, match=r"out lies within the input .*corpus"):
        tokenize([corpus], corpus / "out", settings(tokenizer), ONE)
    assert not (corpus / "out").exists()


def test_what_a_cleaning_dropped_or_has_not_finished_is_refused(
    corpus: Path, tmp_path: Path, tokenizer: str
) -> None:
    clean = tmp_path / "clean"
    (clean / "dropped").mkdir(parents=True)
    corpus.rename(clean / "documents")
    (clean / "settings.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"dropped; its result is .*clean/documents"):
        tokenize([clean], tmp_path / "out", settings(tokenizer), ONE)
    with pytest.raises(ConfigError, match=r"the cleaning of .*clean has not ended"):
        tokenize([clean / "documents"], tmp_path / "out", settings(tokenizer), ONE)
    (clean / "report.json").write_text("{}")
    assert tokenize([clean / "documents"], tmp_path / "out", settings(tokenizer), ONE)


def test_a_full_disk_stops_the_run_with_the_way_out_and_the_next_run_goes_on(
    corpus: Path, tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenize([corpus], tmp_path / "whole", settings(tokenizer), ONE)
    with monkeypatch.context() as patch:
        left = iter(range(20))

        def full(descriptor: int) -> None:
            if next(left, None) is None:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patch.setattr(os, "fsync", full)
        with pytest.raises(ConfigError, match="out: No space left on device; what is done is kept"):
            tokenize([corpus], tmp_path / "out", settings(tokenizer), ONE)
    tokenize([corpus], tmp_path / "out", settings(tokenizer), ONE)
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


def test_empty_inputs_are_called_empty(tmp_path: Path, tokenizer: str) -> None:
    (tmp_path / "a.jsonl").touch()
    with pytest.raises(ConfigError, match="no document among 0 lines: the inputs are empty"):
        tokenize([tmp_path / "a.jsonl"], tmp_path / "out", settings(tokenizer), ONE)


def test_inputs_without_one_good_document_are_an_error(tmp_path: Path, tokenizer: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"content": "x"}\n' * 3)
    with pytest.raises(ConfigError, match="no document among 3 lines: .*missing or wrong field"):
        tokenize([tmp_path / "a.jsonl"], tmp_path / "out", settings(tokenizer), ONE)
    with pytest.raises(ConfigError, match="no documents in .*; files of these kinds are"):
        tokenize([tmp_path / "out/tokenizer"], tmp_path / "b", settings(tokenizer), ONE)
    with pytest.raises(ConfigError, match="nowhere does not exist"):
        tokenize([tmp_path / "nowhere"], tmp_path / "b", settings(tokenizer), ONE)
    with pytest.raises(ConfigError, match=r"names: txt is unknown; valid: text, id"):
        tokenize([tmp_path], tmp_path / "b", settings(tokenizer, names={"txt": "x"}), ONE)
    with pytest.raises(ConfigError, match=r"id and source would both be read from the field url"):
        names = {"id": "url", "source": "url"}
        tokenize([tmp_path], tmp_path / "b", settings(tokenizer, names=names), ONE)


@pytest.mark.parametrize("option", ["--shard-mtokens", "--group-gb"])
@pytest.mark.parametrize("value", ["nan", "inf", "0", "-1"])
def test_sizes_that_are_none_are_refused_by_their_option(
    corpus: Path, tmp_path: Path, tokenizer: str, capsys: Any, option: str, value: str
) -> None:
    command = [str(corpus), "--out", str(tmp_path / "out"), "--tokenizer", tokenizer]
    assert tokenize_corpus.main([*command, option, value]) == 2
    assert f"error: {option} = {value}; valid: a number of at least" in capsys.readouterr().err


def test_labels_come_from_the_document_then_its_metadata_then_the_defaults(
    tmp_path: Path, tokenizer: str
) -> None:
    rows = [
        {"text": "a", "source": "own", "metadata": {"source": "meta", "domain": "code"}},
        {"text": "b", "metadata": {"source": "meta", "education": 0.5}},
        {"text": "c"},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    chosen = settings(tokenizer, defaults={"source": "default", "language": "eng_Latn"})
    report = tokenize([tmp_path / "a.jsonl"], tmp_path / "out", chosen, ONE)
    assert report is not None
    assert [tuple(shard.labels) for shard in report.inventory.cells] == [
        ("default", "eng_Latn", "unknown", "unknown", "unknown", "0-4k"),
        ("meta", "eng_Latn", "unknown", "unknown", "medium", "0-4k"),
        ("own", "eng_Latn", "code", "unknown", "unknown", "0-4k"),
    ]


def test_documents_are_kept_apart_by_their_length_in_tokens(tmp_path: Path, tokenizer: str) -> None:
    lengths = [4094, 4095, 16_383, 32_767]  # and <|endoftext|>
    rows = [json.dumps({"text": "1" * length}) for length in lengths]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    report = tokenize([tmp_path / "a.jsonl"], tmp_path / "out", settings(tokenizer), ONE)
    assert report is not None
    found = {shard.labels.length: shard.tokens for shard in report.inventory.cells}
    assert found == {"0-4k": 4095, "4k-16k": 4096, "16k-32k": 16_384, "32k+": 32_768}


@pytest.mark.parametrize("seed", range(2))
def test_a_run_killed_again_and_again_ends_with_the_files_of_one_that_was_not(
    corpus: Path, tmp_path: Path, tokenizer: str, seed: int
) -> None:
    tokenize([corpus], tmp_path / "whole", settings(tokenizer), ONE)
    chance, deaths = random.Random(seed), 0
    while dies_after(chance.randint(1, 60), corpus, tmp_path / "killed", settings(tokenizer)):
        if (tmp_path / "killed" / "inventory.parquet").exists():  # which is written last
            assert digests(tmp_path / "killed") == digests(tmp_path / "whole")
        deaths += 1
    assert deaths > 2
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")


@pytest.mark.slow
def test_killing_workers_or_the_run_itself_changes_no_byte(tmp_path: Path, tokenizer: str) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for seed in range(24):
        rows = (json.dumps(row) for row in documents(8000, seed))
        (corpus / f"{seed:02}.jsonl").write_text("\n".join(rows))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(corpus, whole, tokenizer).wait() == 0
    chance, deaths = random.Random(1), 0
    while True:
        run = start(corpus, killed, tokenizer)
        victim = some_process(run, chance)
        if victim is not None and deaths < 6:  # on a busy machine they come before any work
            victim.kill()
            deaths += 1
        status = run.wait()
        assert status in (0, 2, -signal.SIGKILL)
        if status == 0:
            break
    assert deaths >= 3
    assert digests(killed) == digests(whole)


def start(corpus: Path, out: Path, tokenizer: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, ROOT / "tools" / "tokenize_corpus.py", corpus, "--out", out]
    command += ["--tokenizer", tokenizer, "--workers", "2", "--group-gb", "0.004"]
    return subprocess.Popen([*command, "--shard-mtokens", "0.05"], stdout=subprocess.DEVNULL)


def some_process(run: subprocess.Popen[bytes], chance: random.Random) -> psutil.Process | None:
    """One of the run's processes, at some moment of its work; None if it was faster."""
    main = psutil.Process(run.pid)
    workers: list[psutil.Process] = []
    while len(workers) < 2 and run.poll() is None:
        time.sleep(0.05)
        with contextlib.suppress(psutil.NoSuchProcess):
            workers = [p for p in main.children() if "spawn_main" in " ".join(p.cmdline())]
    time.sleep(chance.uniform(0.5, 2.5))
    return chance.choice([main, *workers]) if run.poll() is None else None
