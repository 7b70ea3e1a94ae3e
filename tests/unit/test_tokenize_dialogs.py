"""Files of dialogs become one set: the same bytes whoever does the work, and never half."""

import gzip
import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.tokenization import plan
from data_prep.tokenizer import load, train
from megatron_qwen3.chat import ChatTokenizer, render, split_by_query, turns_to_train
from megatron_qwen3.cli import inspect_shards, tokenize_dialogs
from megatron_qwen3.config import ConfigError
from megatron_qwen3.posttrain.dialogs import tokenizing
from megatron_qwen3.posttrain.dialogs.dialog_set import MODES, DialogSet
from megatron_qwen3.posttrain.dialogs.encoder import ChatEncoder
from megatron_qwen3.posttrain.dialogs.limits import CUT, DROPPED, IN_THINKING, UNTRAINED, limited
from megatron_qwen3.posttrain.dialogs.lines import DIALOGS, SPLIT
from megatron_qwen3.posttrain.dialogs.samples import Choices
from megatron_qwen3.posttrain.dialogs.tokenizing import DialogOptions, tokenize
from tests.conversations import assistant, user

ROOT = Path(__file__).resolve().parents[2]
WORDS = ["river", "town", "hills", "sea", "water", "mill", "rivière", "город"]
ONE = DialogOptions()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    train([" ".join(WORDS) * 50], 500, folder)
    return str(folder)


@pytest.fixture(scope="module")
def encoder(tokenizer: str) -> ChatEncoder:
    return ChatEncoder(tokenizer)


@pytest.fixture(autouse=True)
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes at which a test's dialogs take several units and stretches."""
    monkeypatch.setattr(plan, "UNIT_BYTES", 1 << 13)
    monkeypatch.setattr(tokenizing, "STRETCH_TOKENS", 500)


def dialogs(count: int, seed: int) -> list[dict[str, Any]]:
    chance = random.Random(seed)

    def text() -> str:
        return " ".join(chance.choices(WORDS, k=chance.randint(1, 20)))

    rows = []
    for k in range(count):
        messages: list[Any] = []
        for _ in range(chance.randint(1, 3)):
            thinks = chance.random() < 0.5
            answer = assistant(text(), reasoning_content=text() if thinks else "")
            messages += [user(text() + (" /think" if thinks else " /no_think")), answer]
        row = {"id": f"{seed}-{k}", "messages": messages, "weight": chance.choice([1, 0.5])}
        rows.append({**row, "source": chance.choice(["web", "code", "maths"])})
    return rows


FILES = {"a.jsonl": (100, 0), "b.jsonl.gz": (40, 1), "more/c.jsonl": (60, 2)}


def write(path: Path, rows: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    content = b"".join(line + b"\n" for line in lines)
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    for name, (count, seed) in FILES.items():
        write(tmp_path / "corpus" / name, dialogs(count, seed))
    return tmp_path / "corpus"


def digests(prefix: Path) -> dict[str, str]:
    files = sorted(path for path in prefix.parent.rglob("*") if path.is_file())
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_set_holds_each_answer_once_as_the_reference_encodes_it(
    corpus: Path, tmp_path: Path, tokenizer: str
) -> None:
    report = tokenize([corpus], tmp_path / "set/chat", tokenizer, Choices(), ONE)
    chat, rows = ChatTokenizer(load(tokenizer)), [r for f in FILES.values() for r in dialogs(*f)]
    found = DialogSet(tmp_path / "set/chat")
    n = 0
    for line, row in enumerate(rows):
        for messages in split_by_query(row["messages"]):
            expected = chat.encode_conversation(messages, train_history=False)
            ids, trained = found.read(n)
            assert (ids.tolist(), trained.tolist()) == (expected.ids, expected.trained)
            assert found.dialogs_N[n] == line and found.weights_N[n] == row["weight"]
            assert found.sources[found.sources_N[n]] == row["source"]
            thinks = bool(messages[-1]["reasoning_content"])
            assert MODES[found.modes_N[n]] == ("thinking" if thinks else "non-thinking")
            n += 1
    assert n == len(found)
    several = sum(len(row["messages"]) > 2 for row in rows)
    assert report.counts == {DIALOGS: 200, SPLIT: several} and not report.problems
    assert sum(row[2] for row in report.table) == len(found)
    assert sum(row[3] for row in report.table) == found.lengths_N.sum()
    trained_tokens = [found.read(n).trained.sum() for n in range(len(found))]
    assert sum(row[4] for row in report.table) == sum(trained_tokens)
    names = {name for name, *_ in report.table}
    for name in names:
        which = found.sources_N == found.sources.index(name)
        assert sum(row[4] for row in report.table if row[0] == name) == np.sum(
            np.array(trained_tokens)[which]
        )


@pytest.mark.parametrize("options", [DialogOptions(workers=3), DialogOptions(engine="huggingface")])
def test_workers_and_engine_do_not_change_a_byte(
    corpus: Path, tmp_path: Path, tokenizer: str, options: DialogOptions
) -> None:
    tokenize([corpus], tmp_path / "one/chat", tokenizer, Choices(), ONE)
    tokenize([corpus], tmp_path / "other/chat", tokenizer, Choices(), options)
    assert digests(tmp_path / "one/chat") == digests(tmp_path / "other/chat")
    assert not (tmp_path / "one/chat.work").exists()


def test_a_run_that_was_killed_goes_on_and_gives_the_same_bytes(
    corpus: Path, tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenize([corpus], tmp_path / "whole/chat", tokenizer, Choices(), ONE)
    script = (
        "import sys; from data_prep.tokenization import plan; plan.UNIT_BYTES = 1 << 13\n"
        "from megatron_qwen3.posttrain.dialogs import encoder; import time\n"
        "encode = encoder.ChatEncoder.encode\n"
        "def slow(self, dialogs): time.sleep(0.2); return encode(self, dialogs)\n"
        "encoder.ChatEncoder.encode = slow\n"
        "from megatron_qwen3.cli.tokenize_dialogs import main; main(sys.argv[1:])\n"
    )
    words = [str(corpus), "--out", str(tmp_path / "part/chat"), "--tokenizer", tokenizer]
    run = subprocess.Popen([sys.executable, "-c", script, *words, "--workers", "1"], cwd=ROOT)
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "part").glob("chat.work/*.json"))) < 4:  # the plan and three units
        assert time.monotonic() < deadline and run.poll() is None
        time.sleep(0.02)
    run.send_signal(signal.SIGKILL)
    run.wait()
    with pytest.raises(ConfigError, match="the set of dialogs is not whole"):
        DialogSet(tmp_path / "part/chat")
    done = []
    encode = tokenizing.tokenize_unit
    monkeypatch.setattr(
        tokenizing, "tokenize_unit", lambda job, unit, tick: done.append(encode(job, unit, tick))
    )
    tokenize([corpus], tmp_path / "part/chat", tokenizer, Choices(), ONE)
    units = sum(len(plan.parts(file)) for file in plan.find_inputs([corpus]))
    assert 0 < len(done) <= units - 3
    assert digests(tmp_path / "part/chat") == digests(tmp_path / "whole/chat")


def test_a_set_that_is_there_is_left_alone_and_of_other_choices_refused(
    corpus: Path, tmp_path: Path, tokenizer: str
) -> None:
    prefix = tmp_path / "set/chat"
    first = tokenize([corpus], prefix, tokenizer, Choices(), ONE)
    before = {path: path.stat().st_mtime_ns for path in prefix.parent.iterdir()}
    assert tokenize([corpus], prefix, tokenizer, Choices(), ONE) == first
    assert {path: path.stat().st_mtime_ns for path in prefix.parent.iterdir()} == before
    with pytest.raises(ConfigError, match="chat.json was begun with .*train_on was all, is last"):
        tokenize([corpus], prefix, tokenizer, Choices(train_on="last"), ONE)
    (corpus / "a.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"1 inputs missing \(a.jsonl\)"):
        tokenize([corpus], prefix, tokenizer, Choices(), ONE)


def test_bad_lines_are_counted_and_listed_with_file_and_line_or_stop_the_run(
    corpus: Path, tmp_path: Path, tokenizer: str
) -> None:
    bad = {
        b'{"messages": [{"role": "user", "content": "cut': "broken JSON",
        b'{"messages": [{"role": "user", "content": "\xff"}]}': "invalid UTF-8",
        b'{"messages": "q"}': "missing or wrong field",
        b'{"id": 3, "messages": [{"role": "user", "content": "q"}]}': "roles out of order",
        b'{"messages": [{"role": "user", "content": "q"}, '
        b'{"role": "assistant", "content": ""}]}': "empty answer",
    }
    tokenize([corpus], tmp_path / "clean/chat", tokenizer, Choices(), ONE)
    rows: list[Any] = dialogs(*FILES["a.jsonl"])
    places = [0, 30, 31, 80, len(rows) + 4]
    for place, line in zip(places, bad, strict=True):
        rows.insert(place, line)
    write(corpus / "a.jsonl", [*rows, b"", b"  "])
    report = tokenize([corpus], tmp_path / "set/chat", tokenizer, Choices(), ONE)
    assert report.problems == dict.fromkeys(bad.values(), 1)
    listed = (tmp_path / "set/chat.problems.jsonl").read_text().splitlines()
    found = [(row["file"], row["line"], row["kind"]) for row in map(json.loads, listed)]
    expected = zip(places, bad.values(), strict=True)
    assert found == [("a.jsonl", place + 1, kind) for place, kind in expected]
    assert json.loads(listed[3])["detail"].startswith("id 3: the last message (user)")
    clean, left = DialogSet(tmp_path / "clean/chat"), DialogSet(tmp_path / "set/chat")
    assert len(clean) == len(left) and not np.array_equal(clean.dialogs_N, left.dialogs_N)
    assert all(np.array_equal(clean.read(n).ids, left.read(n).ids) for n in range(len(clean)))
    with pytest.raises(ConfigError, match=r"a.jsonl:1: broken JSON: "):
        tokenize(
            [corpus], tmp_path / "stop/chat", tokenizer, Choices(), DialogOptions(1, "auto", True)
        )
    with pytest.raises(ConfigError, match="not whole"):
        DialogSet(tmp_path / "stop/chat")


def test_a_damaged_file_keeps_what_came_before(tmp_path: Path, tokenizer: str) -> None:
    write(tmp_path / "a.jsonl.gz", dialogs(300, 0))
    whole = (tmp_path / "a.jsonl.gz").read_bytes()
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    paths = [tmp_path / "a.jsonl.gz"]
    report = tokenize(paths, tmp_path / "set/chat", tokenizer, Choices(), ONE)
    assert report.problems == {"damaged file": 1} and 0 < report.counts[DIALOGS] < 300


def test_nothing_to_train_on_is_an_error_that_says_why(tmp_path: Path, tokenizer: str) -> None:
    write(tmp_path / "a.jsonl", [{"messages": [user("q")]}] * 3)
    with pytest.raises(
        ConfigError,
        match=r"no sample among 3 lines: 3 roles out of order; the first: a.jsonl:1: the last mess",
    ):
        tokenize([tmp_path / "a.jsonl"], tmp_path / "chat", tokenizer, Choices(), ONE)
    write(tmp_path / "b.jsonl", [])
    with pytest.raises(ConfigError, match="no sample among 0 lines: there is no text"):
        tokenize([tmp_path / "b.jsonl"], tmp_path / "other", tokenizer, Choices(), ONE)


@pytest.mark.parametrize("stops", [False, True])
def test_a_run_without_a_sample_leaves_the_name_to_mended_files(
    tmp_path: Path, tokenizer: str, stops: bool
) -> None:
    file, out, options = tmp_path / "a.jsonl", tmp_path / "chat", DialogOptions(1, "auto", stops)
    write(file, [{"messages": [user("q")]}] * 3)
    with pytest.raises(ConfigError, match="the last message"):
        tokenize([file], out, tokenizer, Choices(), options)
    write(file, [{"messages": [user("q"), assistant("a")]}] * 4)
    tokenize([file], out, tokenizer, Choices(source="mended"), options)
    assert len(DialogSet(out)) == 4 and not Path(f"{out}.work").exists()


def test_pairs_taken_for_dialogs_are_told_their_kind(tmp_path: Path, tokenizer: str) -> None:
    write(tmp_path / "a.jsonl", [{"messages": [user("q")], "chosen": "a", "rejected": "b"}])
    with pytest.raises(ConfigError, match="is no answer; .* is one of --kind pairs"):
        tokenize([tmp_path / "a.jsonl"], tmp_path / "chat", tokenizer, Choices(), ONE)


def test_the_table_of_pairs_counts_pairs_and_has_no_mode(
    tmp_path: Path, tokenizer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "p.jsonl", [{"messages": [user("q")], "chosen": "a", "rejected": "b"}] * 7)
    words = [str(tmp_path / "p.jsonl"), "--out", str(tmp_path / "p"), "--tokenizer", tokenizer]
    assert tokenize_dialogs.main([*words, "--kind", "pairs", "--workers", "1"]) == 0
    told = capsys.readouterr().out
    assert " 7 pairs" in told and "dialogs" not in told and "thinking" not in told
    assert "mode" not in told and not DialogSet(tmp_path / "p").modes_N.any()


def test_a_set_within_its_input_is_refused(corpus: Path, tokenizer: str) -> None:
    with pytest.raises(ConfigError, match="lies within the input"):
        tokenize([corpus], corpus / "chat", tokenizer, Choices(), ONE)


@pytest.mark.parametrize("name", ["chat.bin", "chat.json"])
def test_files_of_somebody_else_are_not_written_over(
    corpus: Path, tmp_path: Path, tokenizer: str, name: str
) -> None:
    (tmp_path / name).write_text('{"version": 1}')
    with pytest.raises(ConfigError, match=f"{name}: there without|{name} was begun with other"):
        tokenize([corpus], tmp_path / "chat", tokenizer, Choices(), ONE)
    assert (tmp_path / name).read_text() == '{"version": 1}'


def lengths_of(rows: list[Any], tokenizer: str) -> list[int]:
    chat = ChatTokenizer(load(tokenizer))
    return [len(chat.encode_conversation(row["messages"]).ids) for row in rows]


def test_samples_that_are_too_long_are_dropped_and_counted(
    corpus: Path, tmp_path: Path, tokenizer: str
) -> None:
    tokenize([corpus], tmp_path / "all/chat", tokenizer, Choices(), ONE)
    every = DialogSet(tmp_path / "all/chat")
    most = int(np.median(every.lengths_N))
    report = tokenize([corpus], tmp_path / "set/chat", tokenizer, Choices(max_tokens=most), ONE)
    left, fit = DialogSet(tmp_path / "set/chat"), np.flatnonzero(every.lengths_N <= most)
    assert report.counts[DROPPED] == len(every) - len(fit) > 0
    assert np.array_equal(left.dialogs_N, every.dialogs_N[fit])
    for k, n in enumerate(fit):
        assert np.array_equal(left.read(k).ids, every.read(n).ids)
        assert np.array_equal(left.read(k).trained, every.read(n).trained)


def test_a_cut_never_leaves_an_open_think_block_or_nothing_trained(
    tmp_path: Path, tokenizer: str
) -> None:
    """One dialog for each fate: of each, as many tokens are kept as the limit says, or none."""
    word = "river "
    rows = [
        {"messages": [user("q"), assistant(word * 60, reasoning_content="a")]},  # cut
        {"messages": [user("q"), assistant("a", reasoning_content=word * 60)]},  # within thinking
        {"messages": [user(word * 60), assistant("a")]},  # nothing trained
        {"messages": [user("q"), assistant("a")]},  # fits
    ]
    write(tmp_path / "a.jsonl", rows)
    choices = Choices(max_tokens=40, too_long="cut")
    report = tokenize([tmp_path / "a.jsonl"], tmp_path / "set/chat", tokenizer, choices, ONE)
    assert [report.counts[kind] for kind in (CUT, IN_THINKING, UNTRAINED, DROPPED)] == [1, 1, 1, 0]
    found, whole = DialogSet(tmp_path / "set/chat"), lengths_of(rows, tokenizer)
    assert min(whole[:3]) > 40 and found.lengths_N.tolist() == [40, whole[3]]
    assert found.dialogs_N.tolist() == [0, 3]
    expected = ChatTokenizer(load(tokenizer)).encode_conversation(rows[0]["messages"])
    assert found.read(0).ids.tolist() == expected.ids[:40]
    assert found.read(0).trained.tolist() == expected.trained[:40]


@pytest.mark.parametrize("most", range(20, 90))
def test_at_every_cut_an_open_think_block_is_dropped(most: int, encoder: ChatEncoder) -> None:
    call = {"name": "f", "arguments": {"a": "river"}}
    messages = [
        user("<think> river"),
        assistant("mill", reasoning_content="sea " * 4, tool_calls=[call]),
        {"role": "tool", "content": "water " * 4},
        assistant("town " * 4, reasoning_content="hills " * 4),
    ]
    choices = Choices(max_tokens=most, too_long="cut")
    encoded, counts = encoder.encode([turns_to_train(messages, None, True)]), Counter[str]()
    kept = limited(encoded, choices, encoder, counts)
    head, learnt = encoded.tokens[:most], encoded.trained[:most]
    opened = [t for t, is_learnt in zip(head, learnt, strict=True) if is_learnt]
    is_open = opened.count(encoder.think) > opened.count(encoder.end_think)
    if len(encoded.tokens) <= most:
        assert not counts and len(kept.samples) == 1
    elif is_open or not learnt.any():
        assert len(kept.samples) == 0 == len(kept.encoded.tokens)
        assert counts == {IN_THINKING if is_open else UNTRAINED: 1}
    else:
        assert kept.encoded.tokens.tolist() == head.tolist() and counts == {CUT: 1}


def test_pairs_are_kept_together_and_mark_the_end_of_their_last_turn(
    tmp_path: Path, tokenizer: str
) -> None:
    rows = [
        {"messages": [user("q")], "chosen": "river", "rejected": "sea " * k, "margin": k}
        for k in range(1, 61)
    ]
    rows += [{"messages": [user("q")], "chosen": "a", "rejected": "a"}]
    write(tmp_path / "p.jsonl", rows)
    choices = Choices(kind="pairs", max_tokens=40)
    report = tokenize([tmp_path / "p.jsonl"], tmp_path / "set/pairs", tokenizer, choices, ONE)
    found = DialogSet(tmp_path / "set/pairs")
    chat = ChatTokenizer(load(tokenizer))
    assert found.kind == "pairs" and report.problems == {"equal answers": 1}
    assert len(found) % 2 == 0 and len(found) + report.counts[DROPPED] == 120 > len(found)
    for n in range(len(found)):
        row = rows[int(found.dialogs_N[n])]
        answer = assistant(row["rejected" if n % 2 else "chosen"])
        ids, trained = found.read(n)
        assert ids.tolist() == chat.encode_conversation([user("q"), answer]).ids
        assert np.flatnonzero(trained).tolist() == [len(ids) - 2]
        assert ids[-2] == chat.turn_end and found.margins_N[n] == row["margin"]
    assert (found.lengths_N <= 40).all()


def test_the_command_says_what_was_done(
    corpus: Path, tmp_path: Path, tokenizer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(corpus / "d.jsonl", [b"{", {"messages": [user("q"), assistant("a")]}])
    prefix = tmp_path / "set/chat"
    words = [str(corpus), "--out", str(prefix), "--tokenizer", tokenizer, "--workers", "1"]
    assert tokenize_dialogs.main([*words, "--default", "source=made-up"]) == 0
    told = capsys.readouterr().out
    for text in ("made-up", "non-thinking", "201 dialogs", "1 lines left out: broken JSON"):
        assert text in told
    assert "1 empty think block trained, and nothing asks for it" in told
    assert f"{prefix}.problems.jsonl" in told
    assert tokenize_dialogs.main([*words, "--default", "mod=x"]) == 2
    assert "--default: mod is unknown; valid: source, mode" in capsys.readouterr().err
    assert tokenize_dialogs.main([*words, "--max-tokens", "1"]) == 2
    assert "error: max_tokens = 1" in capsys.readouterr().err


def test_a_sample_is_shown_with_what_is_trained_and_a_set_is_verified(
    corpus: Path, tmp_path: Path, tokenizer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    prefix = tmp_path / "set/chat"
    tokenize([corpus], prefix, tokenizer, Choices(), ONE)
    found = DialogSet(prefix)
    n = int(np.flatnonzero(found.dialogs_N == 120)[0])  # of the second file, 100 lines before it
    assert found.origin(n) == ("b.jsonl.gz", 21)
    show = ["show", str(prefix), str(n), "--tokenizer", tokenizer]
    assert inspect_shards.main(show) == 0
    head, _, text = capsys.readouterr().out.partition("\n\n")
    row = dialogs(*FILES["b.jsonl.gz"])[20]
    first = render(row["messages"][:2])
    start = first.index("<|im_start|>assistant\n") + len("<|im_start|>assistant\n")
    assert text == f"{first[:start]}⟦{first[start:-1]}⟧\n\n"
    assert head.startswith(f"b.jsonl.gz:21  {row['source']}, ")
    assert inspect_shards.main(show[:3]) == 2
    assert "--tokenizer names its tokenizer" in capsys.readouterr().err
    assert inspect_shards.main([*show[:2], "9999", *show[3:]]) == 2
    assert inspect_shards.main(["verify", str(prefix)]) == 0
    with open(f"{prefix}.trained", "r+b") as file:
        file.write(b"\1")
    assert inspect_shards.main(["verify", str(prefix)]) == 1
    assert "chat.trained was changed after it was written" in capsys.readouterr().out
