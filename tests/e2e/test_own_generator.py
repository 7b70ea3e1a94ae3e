"""A model of ours as a generator, on real ranks: what it answers, in which layout it may be."""

import dataclasses

import pytest
import torch
from ranks import run_ranks

from data_prep import tokenizer as tokenizers
from megatron_qwen3.chat import ChatTokenizer
from megatron_qwen3.convert.stream import from_hf
from megatron_qwen3.generate.load import Source, stop_ids
from megatron_qwen3.posttrain.generators import Local, Request, open_generator

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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny dense model with random weights in Hugging Face's format."""
    folder = tmp_path_factory.mktemp("hf")
    tokenizers.train(["a b c abc ab"] * 9, 300, folder)
    config = transformers.Qwen3Config(
        vocab_size=320,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=64,
        initializer_range=0.2,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=False,
    )
    transformers.set_seed(0)
    transformers.Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


def ask(folder, requests, local):
    with open_generator(str(folder), local=local) as generator:
        if not generator.leads:
            return generator.follow()
        return dict(generator.answers(requests))


def answered(folder, requests=REQUESTS, ranks=1, rows=64, settings=()):
    first, *others = run_ranks(ask, ranks, str(folder), requests, Local(rows, settings))
    assert others == [None] * (ranks - 1)
    return [first[number] for number in range(len(requests))]


def test_every_layout_and_every_batch_gives_a_request_its_own_answers(folder, tmp_path):
    expected = answered(folder)
    assert [len(group) for group in expected] == [3, 1, 2, 3, 3, 1]
    assert all(a.finish == "error" and "role 'nobody'" in a.error for a in expected[2])
    assert len({a.ids for a in [*expected[0], *expected[4]]}) == 6  # a seed and a number each
    from_hf(folder, tmp_path / "checkpoint")
    for ranks, rows, settings in ((1, 1, ()), (2, 64, ()), (2, 4, ("parallel.tensor=2",))):
        assert answered(tmp_path / "checkpoint", REQUESTS, ranks, rows, settings) == expected
    backwards = answered(folder, REQUESTS[::-1])
    assert backwards[::-1] == expected


def test_the_likeliest_tokens_are_those_of_transformers(folder):
    found = answered(folder)
    model = transformers.Qwen3ForCausalLM.from_pretrained(folder)
    tokenizer = tokenizers.load(folder)
    source = Source(folder)
    ends = stop_ids(source, source.config([], 1), tokenizer)
    for request, (answer,) in ((REQUESTS[1], found[1]), (REQUESTS[5], found[5])):
        prompt = ChatTokenizer(tokenizer).encode_prompt(
            request.messages, enable_thinking=request.enable_thinking
        )
        # Qwen3's presence penalty for answers without thinking is none of transformers'.
        if request.enable_thinking:
            made = model.generate(
                torch.tensor([prompt]), max_new_tokens=20, do_sample=False, eos_token_id=ends
            )
            assert made[0, len(prompt) :].tolist() == list(answer.ids)
        ids = answer.ids[:-1] if answer.finish == "stop" else answer.ids
        assert answer.text == tokenizer.decode(list(ids), skip_special_tokens=False)


def test_a_budget_ends_the_thinking(folder):
    thinks = [*ASKED, {"role": "assistant", "content": "", "reasoning_content": "a"}]
    request = Request([*thinks, *ASKED], max_tokens=200, temperature=1.0, thinking_budget=0)
    cut = "Considering the limited time"
    seeds = [dataclasses.replace(request, seed=seed, samples=8) for seed in range(8)]
    texts = [a.text for group in answered(folder, seeds) for a in group]
    assert any("<think>" in text for text in texts)
    assert all((cut in text) == ("<think>" in text.partition(cut)[0]) for text in texts)
