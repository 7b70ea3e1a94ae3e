"""The command line: from Hugging Face's folder and from our checkpoint, on one rank and on more."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from ranks import run_ranks

from data_prep import tokenizer as tokenizers
from megatron_qwen3.cli import chat
from megatron_qwen3.convert.stream import from_hf
from megatron_qwen3.generate.__main__ import main

ROOT = Path(__file__).parents[2]

CHAT = {"messages": [{"role": "user", "content": "a b"}], "id": 5}
OWN = {"prompt": "c", "id": 7, "answer": "mine", "tokens": 3, "thinking": None, "text": [1]}
LINES = [{"prompt": "abc"}, {"prompt": "a b a b c"}, CHAT, OWN]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny sparse model with random weights in Hugging Face's format."""
    folder = tmp_path_factory.mktemp("hf")
    tiny.save(folder, tiny.SPARSE)
    return folder


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    text = "\n".join(json.dumps(line) for line in LINES) + "\n\n"
    path.write_text(text, encoding="utf-8-sig")  # as editors of Windows save it
    return path


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "megatron_qwen3.generate", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def records(source, prompts, out, ranks, *settings):
    options = ["--file", prompts, "--out", out, "--max-new-tokens", 12, "--seed", 3, "--batch", 2]
    arguments = [str(a) for a in (source, *options, *settings)]
    assert run_ranks(main, ranks, arguments) == [0] * ranks
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def test_a_file_of_prompts_gives_the_same_from_any_source_in_any_layout(folder, prompts, tmp_path):
    from_folder = records(folder, prompts, tmp_path / "1.jsonl", 1)
    completions = [record.pop("completion") for record in from_folder]
    assert from_folder == LINES
    assert all(0 < len(completion["tokens"]) <= 12 for completion in completions)
    assert len({completion["text"] for completion in completions}) == len(LINES)
    from_hf(folder, tmp_path / "checkpoint")
    for name, source, *settings in (
        ("tp2-ep2", tmp_path / "checkpoint", "parallel.tensor=2", "parallel.expert=2"),
        ("ep2", folder, "parallel.expert=2"),
    ):
        others = records(source, prompts, tmp_path / f"{name}.jsonl", 2, *settings)
        for ours, expected in zip(others, completions, strict=True):
            made = ours["completion"]
            assert made.pop("log_probs") == pytest.approx(expected["log_probs"], abs=1e-4)
            assert made == {k: v for k, v in expected.items() if k != "log_probs"}


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_generation_stops_at_every_end_that_the_folder_names(folder, prompts, tmp_path, file):
    copy = tmp_path / "hf"
    shutil.copytree(folder, copy)
    content = json.loads((copy / file).read_text()) if (copy / file).exists() else {}
    content["eos_token_id"] = list(range(320))  # any token
    (copy / file).write_text(json.dumps(content))
    from_hf(copy, tmp_path / "ours")
    for name in ("hf", "ours"):
        for record in records(tmp_path / name, prompts, tmp_path / f"{name}.jsonl", 1):
            completion = record["completion"]
            assert (len(completion["tokens"]), completion["finish_reason"]) == (1, "stop")


def test_thinking_is_cut_at_the_budget_and_the_answer_goes_on(folder, tmp_path):
    path = tmp_path / "open.jsonl"
    path.write_text(json.dumps({"prompt": "<think>a"}))
    options = ["--file", path, "--thinking-budget", 3, "--max-new-tokens", 300, "--seed", 1]
    ((text,),) = run_ranks(printed, 1, [folder, *options])
    record = json.loads(text)["completion"]
    assert record["inserted"][0] == 2
    cut = tokenizers.load(folder).decode([record["tokens"][k] for k in record["inserted"]])
    assert cut.startswith("\n\nConsidering the limited time") and cut.endswith("</think>\n\n")
    assert (
        "based on the thinking directly now." in record["thinking"]
    )  # random weights may think on
    assert max(record["inserted"]) < len(record["tokens"]) - 1


def printed(*runs):
    """On a rank: the output of the command with each of these arguments."""
    texts = []
    for arguments in runs:
        out = io.TextIOWrapper(io.BytesIO(), "utf-8")
        with contextlib.redirect_stdout(out):
            assert main([str(argument) for argument in arguments]) == 0
        out.seek(0)
        texts.append(out.read())
    return texts


def test_one_prompt_is_streamed_and_a_seed_gives_the_same_text(folder):
    options = [folder, "--prompt", "a b", "--max-new-tokens", 9, "--seed"]
    done = command(*options, 1)
    ((again, other),) = run_ranks(printed, 1, [*options, 1], [*options, 2])
    assert done.stdout == again != other
    assert "tokens/s" in done.stderr


def talk(arguments, typed):
    """On a rank: the exit status of a conversation, and its messages."""
    sys.stdin = io.StringIO(typed)
    with contextlib.redirect_stderr(io.StringIO()) as told:
        status = main(arguments)
    return status, told.getvalue()


def test_a_conversation_goes_on_until_standard_input_ends(folder):
    options = [str(folder), "--chat", "--no-think", "--max-new-tokens", "4"]
    ((status, told),) = run_ranks(talk, 1, options, "a b\n\nc\n")
    assert status == 0 and told.count("tokens/s") == 2


def talk_by_commands(arguments, typed):
    """On a rank: the exit status of mq3 chat, its answers, and its messages."""
    sys.stdin = io.StringIO(typed)
    with (
        contextlib.redirect_stderr(io.StringIO()) as told,
        contextlib.redirect_stdout(io.StringIO()) as out,
    ):
        status = chat.main(arguments)
    return status, out.getvalue(), told.getvalue()


def test_a_chat_obeys_commands_and_answers_alike_in_another_layout(folder, tmp_path):
    options = [str(folder), "--max-new-tokens", "6", "--temperature", "0", "--no-think"]
    typed = "a b\n/quack\nc\n/save {}\n/reset\n/budget 2\n/think\na\n/exit\nd\n"
    found = []
    for ranks, settings in ((1, []), (2, ["parallel.tensor=2"])):
        saved = tmp_path / f"{ranks}.jsonl"
        arguments = [*options, *settings]
        first, *others = run_ranks(
            talk_by_commands, ranks, arguments, typed.replace("{}", str(saved))
        )
        status, out, told = first
        assert status == 0 and told.count("tokens/s") == 3 and "/quack is no command" in told
        assert all(other == (0, "", "") for other in others)
        messages = json.loads(saved.read_text(encoding="utf-8"))["messages"]
        said = [(m["role"], m["content"]) for m in messages]
        assert [role for role, _ in said] == ["user", "assistant"] * 2
        assert said[0][1] == "a b" and said[2][1] == "c" and said[1][1] in out
        found.append((said, out))
    assert found[0] == found[1]


def test_a_chat_goes_on_from_a_saved_conversation(folder, tmp_path):
    history = tmp_path / "talk.jsonl"
    said = [*CHAT["messages"], {"role": "assistant", "content": "c"}]
    history.write_text(json.dumps({"messages": said}))
    options = [str(folder), "--max-new-tokens", "3", "--history", str(history), "--system", "d"]
    typed = f"/history\n/save {tmp_path / 'again.jsonl'}\n"
    ((status, _, told),) = run_ranks(talk_by_commands, 1, options, typed)
    assert status == 0 and "user: a b\n" in told
    again = json.loads((tmp_path / "again.jsonl").read_text())["messages"]
    assert again == [{"role": "system", "content": "d"}, *said]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "--prompt", "a"], "nowhere is no checkpoint"),
        (["HF", "--prompt", "a", "--top-p", "0"], "top_p = 0.0"),
        (["HF", "--prompt", "a", "parallel.tensor=3"], "parallel.tensor = 3"),
        (["HF", "--prompt", "a", "parallel.context=2"], "parallel.context = 2: text is generated"),
        (["HF", "--prompt", "a", "data.tokenizer=gone"], "data.tokenizer = gone"),
        (["HF", "--prompt", ""], "prompt is empty"),
        (["HF", "--prompt", "a", "model.num_layers=3"], "model.num_layers = 3, but"),
        (["HF", "--prompt", "a", "--presence-penalty", "nan"], "presence_penalty = nan"),
        (["HF", "--prompt", "a", "--temperature", "inf"], "temperature = inf"),
        (["HF", "--prompt", "a", "data.tokenizer=README.md"], "README.md is not a tokenizer.json"),
        (["HF", "--prompt", "a", "--out", "x.jsonl"], "--out x.jsonl goes with --file"),
        (["HF", "--file", "README.md", "--out", "no/x.jsonl"], "--out no/x.jsonl: no file can be"),
        (["HF", "--file", "README.md", "--out", "tests"], "--out tests: no file can be written"),
        (["HF", "--file", "gone.jsonl"], "gone.jsonl: cannot be read"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(folder, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(ROOT)
    assert main([str(folder) if word == "HF" else word for word in arguments]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and message in told, told


def test_what_is_wrong_ends_the_command_with_its_status():
    done = command("nowhere", "--prompt", "a")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_a_damaged_checkpoint_is_named_and_no_earlier_step_is_taken(folder, tmp_path, capsys):
    for step in (2, 4):
        from_hf(folder, tmp_path / "checkpoints" / f"step_{step:08d}")
    cut = tmp_path / "checkpoints" / "step_00000004"
    os.truncate(cut / "__0_0.distcp", 1000)
    for source, told in ((cut, "step_00000004 is damaged"), (tmp_path, "step_00000002 is whole")):
        assert main([str(source), "--prompt", "a"]) == 2
        message = capsys.readouterr().err
        assert told in message and "__0_0.distcp: 1,000 bytes, saved with" in message


def test_a_tokenizer_larger_than_the_model_is_refused(folder, tmp_path, capsys):
    words = " ".join(f"{a}{b}{c}" for a in "abcdefg" for b in "hijklmn" for c in "opqrstu")
    tokenizers.train([words] * 9, 400, tmp_path)
    assert main([str(folder), "--prompt", "a", f"data.tokenizer={tmp_path}"]) == 2
    assert "has 400 tokens, more than model.vocab_size = 320" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"text": "b"}, 'needs "prompt" (text) or "messages" (list)'),
        ({"prompt": ""}, "a prompt is empty"),
        ({"prompt": "a", "completion": "b"}, 'has "completion" already'),
        ({"prompt": "a\ud83d"}, "in it is no character"),
        ({"prompt": "a", "id": "\ud83d"}, "in it is no character"),
        ({"messages": [{"role": "user", "content": "\ud83d"}]}, "in it is no character"),
        ({"messages": ["hi"]}, "message 0 is not a table with role and content: 'hi'"),
        ({**CHAT, "tools": 5}, "tools are not a list of tables: 5"),
        ({**CHAT, "tools": "f"}, "tools are not a list of tables: 'f'"),
        ({"messages": [{"role": "assistant", "tool_calls": 5}]}, "tool_calls that are no list: 5"),
    ],
)
def test_a_line_that_cannot_be_a_prompt_is_named(folder, tmp_path, capsys, line, message):
    path = tmp_path / "prompts.jsonl"
    path.write_text(f'{{"prompt": "a"}}\n\n{json.dumps(line)}\n')
    assert main([str(folder), "--file", str(path)]) == 2
    told = capsys.readouterr().err
    assert f"{path}, line 3: " in told and message in told
