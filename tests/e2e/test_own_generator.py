"""A model of ours as a generator, on real ranks: its answers, and the layouts that it may have."""

import json
import shutil

import pytest
import tiny
import torch
from ranks import run_ranks

from data_prep import tokenizer as tokenizers
from megatron_qwen3.chat import ChatTokenizer
from megatron_qwen3.cli import build_dialogs
from megatron_qwen3.convert.stream import from_hf
from megatron_qwen3.generate.load import ModelSource, stop_ids
from megatron_qwen3.generate.thinking import CUT_TEXT
from megatron_qwen3.posttrain.generators.answers import Request
from megatron_qwen3.posttrain.generators.opened import open_generator
from megatron_qwen3.posttrain.generators.own_generator import OwnGenerator
from megatron_qwen3.posttrain.generators.settings import Local

transformers = pytest.importorskip("transformers")

ASKED = [{"role": "user", "content": "a b"}]
LONGER = [{"role": "system", "content": "abc a b c"}, *ASKED]
REQUESTS = [
    Request(ASKED, samples=3, max_tokens=20, temperature=1.0, seed=4),
    Request(LONGER, max_tokens=20, temperature=0.0),
    Request([{"role": "nobody", "content": ""}], samples=2),
    Request(LONGER, samples=3, max_tokens=9, temperature=1.0, seed=5),
    Request(ASKED, samples=3, max_tokens=20, temperature=1.0, seed=5),
    Request(ASKED, max_tokens=20, temperature=0.0, enable_thinking=False),
]
BUDGET = [
    Request(ASKED, samples=16, max_tokens=150, temperature=1.0, thinking_budget=0, seed=seed)
    for seed in range(3)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny dense model with random weights in Hugging Face's format."""
    folder = tmp_path_factory.mktemp("hf")
    tiny.save(folder)
    return folder


def ask(folder, rows, settings, backwards):
    """Answers in order, and those of the requests backwards, one row at a time."""
    with open_generator(str(folder), local=Local(rows, settings)) as generator:
        if not generator.leads:
            return generator.follow()
        found = dict(generator.answers(REQUESTS))
        generator._rows = 1
        others = dict(generator.answers(REQUESTS[::-1])) if backwards else {}
        budget = [a for _, own in generator.answers(BUDGET) for a in own] if backwards else []
    return [found[n] for n in range(len(REQUESTS))], others, budget


@pytest.fixture(scope="module")
def on_one_rank(folder):
    return run_ranks(ask, 1, str(folder), 64, (), True)[0]


def test_a_request_has_its_own_answers_in_every_layout_and_every_batch(
    folder, on_one_rank, tmp_path
):
    expected, backwards, _ = on_one_rank
    assert [len(group) for group in expected] == [3, 1, 2, 3, 3, 1]
    assert all(a.finish == "error" and "role 'nobody'" in a.error for a in expected[2])
    assert len({a.ids for a in [*expected[0], *expected[4]]}) == 6  # a seed and a number each
    assert [backwards[len(REQUESTS) - 1 - n] for n in range(len(REQUESTS))] == expected
    from_hf(folder, tmp_path / "checkpoint")
    for rows, settings in ((64, ()), (4, ("parallel.tensor=2",))):
        first, second = run_ranks(ask, 2, str(tmp_path / "checkpoint"), rows, settings, False)
        assert second is None and first[0] == expected


def test_a_run_is_another_model_with_each_checkpoint(folder, tmp_path):
    """Answers that are kept for one are not those of the next."""
    labels = []
    from_hf(folder, tmp_path / "checkpoints" / "step_00000001")
    labels.append(OwnGenerator(tmp_path, Local()).label)
    shutil.copytree(tmp_path / "checkpoints/step_00000001", tmp_path / "checkpoints/step_00000002")
    labels.append(OwnGenerator(tmp_path, Local()).label)
    folders = [label.rpartition(" (")[0] for label in labels]
    assert folders == [str(tmp_path / f"checkpoints/step_0000000{step}") for step in (1, 2)]


def test_the_likeliest_tokens_are_those_of_transformers(folder, on_one_rank):
    model = transformers.Qwen3ForCausalLM.from_pretrained(folder)
    tokenizer = tokenizers.load(folder)
    source = ModelSource(folder)
    ends = stop_ids(source, source.config([], 1), tokenizer)
    (answer,) = on_one_rank[0][1]
    prompt = ChatTokenizer(tokenizer).encode_prompt(LONGER)
    made = model.generate(
        torch.tensor([prompt]), max_new_tokens=20, do_sample=False, eos_token_id=ends
    )
    assert made[0, len(prompt) :].tolist() == list(answer.ids)
    ids = answer.ids[:-1] if answer.finish == "stop" else answer.ids
    assert answer.text == tokenizer.decode(list(ids), skip_special_tokens=False)


def test_a_budget_ends_the_thinking(on_one_rank):
    after = [a.text.partition("<think>")[2] for a in on_one_rank[2] if "<think>" in a.text]
    assert after
    for text in after:  # the limit of tokens may cut it
        assert text.startswith(CUT_TEXT) or CUT_TEXT.startswith(text)


@pytest.mark.slow
def test_a_model_of_ours_on_several_ranks_answers_for_the_command_line(folder, tmp_path):
    """Random weights say nothing worth keeping: the test is that both ranks come to the end."""
    queries = tmp_path / "q.jsonl"
    queries.write_text(json.dumps({"messages": ASKED}) + "\n")
    arguments = ["distill", "--queries", queries, "--generator", folder, "--out", tmp_path / "out"]
    arguments += ["--samples", 3, "--max-tokens", 8, "--local", "parallel.tensor=2"]
    statuses = run_ranks(build_dialogs.main, 2, [str(word) for word in arguments])
    assert statuses == [2, 0]  # not one dialog
    lines = (tmp_path / "out" / "answers.jsonl").read_text().splitlines()
    assert [len(json.loads(line)["answers"]) for line in lines] == [3, 3]  # in both modes
    assert (tmp_path / "out" / "report.html").exists()
