"""Dual Chunk Attention in whole runs: generated tokens are scored alike, in every layout."""

import itertools

import pytest
import torch
from live_memory import LiveMemory
from ranks import run_ranks

from megatron_qwen3.config import load
from megatron_qwen3.generate.engine import Generator
from megatron_qwen3.generate.sampling import Sampling
from megatron_qwen3.model.outputs import log_probs
from megatron_qwen3.model.stretches import Stretches
from megatron_qwen3.parallel.runtime import start
from megatron_qwen3.training.batch import TokenBatch
from megatron_qwen3.training.engine import Engine
from megatron_qwen3.training.model import Model
from megatron_qwen3.training.objectives import cross_entropy

CHUNKS = ("rope.dca_chunk_size=24", "rope.dca_local_size=8")  # chunks of 16 places
RULES = {
    "code": CHUNKS,
    "paper": (*CHUNKS, "rope.dca_rule=paper"),
    "scaled": (*CHUNKS, "rope.dca_scale=1.1"),
}
VOCABULARY, NEW = 512, 24
# Below, at and past one, two and four chunks, where the prompt ends and while tokens come.
LENGTHS = (1, 9, 15, 16, 17, 31, 32, 33, 47, 63, 64, 65)


def config_of(*settings):
    small = ["train.steps=9", "train.precision=fp32", "data.sequence_length=80"]
    wide = ["model.init_std=0.15", "model.router_aux_loss=0.0", "train.global_batch=4"]
    return load([], [*small, *wide, *settings])


def prompts():
    random = torch.Generator().manual_seed(3)
    return [torch.randint(VOCABULARY, (n,), generator=random).tolist() for n in LENGTHS]


def generated_and_scored(*settings):
    """Of each prompt the tokens, their log-probabilities, and those of one pass over all."""
    config = config_of(*settings)
    model = Model(config, start(config))
    completions = Generator(model).generate(prompts(), Sampling(temperature=1, seed=2), NEW)
    found = []
    for prompt, completion in zip(prompts(), completions, strict=True):
        row = prompt + completion.tokens
        ids = torch.tensor([row + [0] * (1 + len(row) % 2)])  # tensor ranks share its places
        scores = model.score(TokenBatch.of(ids[:, :-1], ids[:, 1:]), log_probs)["log_prob"][0]
        of_new = scores[len(prompt) - 1 : len(row) - 1].tolist()
        found.append((completion.tokens, completion.log_probs, of_new))
    return found


@pytest.mark.parametrize(
    ("rule", "ranks", "layout"),
    [
        ("code", 1, ("model.preset=tiny-dense",)),
        ("paper", 1, ("model.preset=tiny-dense",)),
        ("scaled", 2, ("model.preset=tiny-moe", "parallel.tensor=2")),
        ("code", 2, ("model.preset=tiny-dense", "parallel.pipeline=2")),
    ],
)
def test_what_is_generated_in_chunks_scores_as_in_one_pass(rule, ranks, layout):
    for found in run_ranks(generated_and_scored, ranks, *RULES[rule], *layout):
        for tokens, log_probs_of_decode, log_probs_of_pass in found:
            assert len(tokens) == NEW
            assert log_probs_of_decode == pytest.approx(log_probs_of_pass, abs=2e-5)


LENGTHS_OF_ROWS = ((80,), (1, 79), (10, 4, 66), (20, 20, 20, 20))


def batch():
    random = torch.Generator().manual_seed(3)
    ids = torch.randint(0, VOCABULARY, (len(LENGTHS_OF_ROWS), 81), generator=random)
    starts = [[0, *itertools.accumulate(lengths[:-1])] for lengths in LENGTHS_OF_ROWS]
    return TokenBatch.of(ids[:, :-1], ids[:, 1:], Stretches.of(starts, 80))


def metrics(*settings):
    """Loss and gradient norm of two steps on packed rows."""
    config = config_of(*settings)
    engine = Engine(config, start(config))
    rows = batch().rows // engine.layout.data
    mine = [*batch().split(rows)][engine.data_rank]
    return [engine.train_step(mine, cross_entropy, 1e-3) for _ in range(2)]


LAYOUTS = [
    ("tiny-dense", 1, ("parallel.recompute=full", "train.micro_batch=2")),
    ("tiny-dense", 2, ("parallel.tensor=2", "train.micro_batch=2")),
    ("tiny-dense", 2, ("parallel.pipeline=2", "parallel.virtual_pipeline=2")),
    pytest.param("tiny-dense", 2, (), marks=pytest.mark.slow),
    pytest.param("tiny-moe", 4, ("parallel.tensor=2", "parallel.expert=2"), marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("preset", "ranks", "layout"), LAYOUTS)
def test_training_in_chunks_does_not_depend_on_layout(preset, ranks, layout):
    settings = (f"model.preset={preset}", *RULES["scaled"])
    (expected,) = run_ranks(metrics, 1, *settings, "train.micro_batch=4")
    for found in run_ranks(metrics, ranks, *settings, *layout):
        for step, wanted in zip(found, expected, strict=True):
            assert step["loss"] == pytest.approx(wanted["loss"], rel=1e-6)
            assert step["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=1e-5)


def largest_tensors(length, *settings):
    """Bytes of the largest tensor of a step on packed rows, and of prompts of many lengths."""
    small = ("model.num_layers=1", "model.vocab_size=64", f"data.sequence_length={length}")
    config = config_of("model.preset=tiny-dense", *small, *settings)
    engine = Engine(config, start(config))
    ids = torch.arange(length + 1)[None] % 64
    stretches = Stretches.of([[0, 5, length // 2]], length)
    packed = TokenBatch.of(ids[:, :-1], ids[:, 1:], stretches)
    rows = (packed, TokenBatch.of(ids[:, :-1], ids[:, 1:]))
    prompts = [[1] * length, [1] * 3, [1] * (length // 2)]
    found = []
    with LiveMemory() as memory:
        for batch in rows:
            engine.train_step(batch, cross_entropy, 1e-3)
        found.append(memory.largest_bytes)
    with LiveMemory() as memory:
        Generator(engine.model).generate(prompts, Sampling(temperature=0), 2)
        found.append(memory.largest_bytes)
    return found


@pytest.mark.parametrize("settings", [(), ("rope.dca_chunk_size=320", "rope.dca_local_size=64")])
def test_no_tensor_of_a_step_or_of_padded_prompts_grows_with_the_square(settings):
    """Twice the length makes the largest tensor at most twice as large, and no mask is among
    them: [S, S] alone would be of 4 MiB as bytes and 16 as numbers."""
    settings = (*settings, "train.global_batch=1")
    (short,), (long,) = (run_ranks(largest_tensors, 1, n, *settings) for n in (1024, 2048))
    for before, after in zip(short, long, strict=True):
        assert after <= 2.1 * before
