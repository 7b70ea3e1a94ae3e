"""Generated text equals transformers' `generate`, token by token, and its scores a fresh pass.

Prompts are of different lengths, one of a single token. Ours run on a rank of their own;
transformers runs here, with the weights that the rank sends.
"""

import functools

import pytest
import torch
from ranks import run_ranks
from test_transformers import MODELS, tiny
from theirs import as_theirs, randomize, theirs

from megatron_qwen3.generate import cache
from megatron_qwen3.generate.engine import Generator
from megatron_qwen3.generate.sampling import Sampling
from megatron_qwen3.model.outputs import log_probs
from megatron_qwen3.parallel.runtime import start
from megatron_qwen3.training.batch import TokenBatch
from megatron_qwen3.training.engine import Engine

transformers = pytest.importorskip("transformers")

LENGTHS, NEW = (3, 11, 1, 7, 19), 40
MODES = {
    "greedy": Sampling(temperature=0),
    "greedy-repetition": Sampling(temperature=0, repetition_penalty=1.3),
    "greedy-presence": Sampling(temperature=0, presence_penalty=1.5),
    "sampled": Sampling(temperature=0.9, top_k=50, top_p=0.9, min_p=0.01, seed=5),
}
FIRST = 7  # of every prompt, and padding: transformers' repetition penalty counts padding as seen


def prompts():
    random = torch.Generator().manual_seed(3)
    return [[FIRST] + torch.randint(512, (n - 1,), generator=random).tolist() for n in LENGTHS]


def ours(name):
    """Weights, and for each mode the completions and the scores of a fresh pass."""
    config = tiny(*MODELS[name], "data.sequence_length=64")
    layout = start(config)
    engine = Engine(config, layout)
    randomize(engine.model.chunks[0])
    generator = Generator(engine.model)
    cache._LEAST_GROWTH = 8  # so that caches grow, several times
    results = {}
    for mode, sampling in MODES.items():
        completions = generator.generate(prompts(), sampling, NEW)
        rows = [p + c.tokens for p, c in zip(prompts(), completions, strict=True)]
        results[mode] = completions, [fresh_scores(engine, row) for row in rows]
    return {name: p.data for name, p in engine.model.chunks[0].named_parameters()}, results


def fresh_scores(engine, row):
    """log p of all tokens of a row but the first, from one pass over the row alone."""
    ids = torch.tensor([row])
    return engine.model.score(TokenBatch.of(ids[:, :-1], ids[:, 1:]), log_probs)["log_prob"][
        0
    ].tolist()


@functools.cache
def ours_and_theirs(name):
    weights, results = run_ranks(ours, 1, name)[0]
    config = tiny(*MODELS[name])
    return results, theirs(config.model, as_theirs(weights, config.model), config.rope).eval()


@pytest.mark.parametrize("mode", ["greedy", "greedy-repetition"])
@pytest.mark.parametrize("name", ["dense", "moe", "dense-yarn"])
def test_greedy_tokens_equal_transformers_generate(name, mode):
    results, network = ours_and_theirs(name)
    longest = max(LENGTHS)
    padded = [[FIRST] * (longest - len(p)) + p for p in prompts()]
    mask = [[0] * (longest - len(p)) + [1] * len(p) for p in prompts()]
    written = network.generate(
        input_ids=torch.tensor(padded),
        attention_mask=torch.tensor(mask),
        max_new_tokens=NEW,
        do_sample=False,
        repetition_penalty=MODES[mode].repetition_penalty,
        pad_token_id=FIRST,
    )[:, longest:].tolist()
    completions, _ = results[mode]
    assert [c.tokens for c in completions] == written
    assert len({tuple(row) for row in written}) == len(LENGTHS)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["dense", "moe", "dense-yarn"])
def test_log_probs_equal_a_fresh_forward_pass(name, mode):
    results, _ = ours_and_theirs(name)
    completions, scores = results[mode]
    for prompt, completion, row in zip(prompts(), completions, scores, strict=True):
        expected = row[len(prompt) - 1 :]
        assert completion.log_probs == pytest.approx(expected, abs=1e-5)
        assert len(completion.tokens) == NEW


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["dense", "moe"])
def test_sampled_log_probs_are_those_of_transformers_logits_at_the_temperature(name, mode):
    """Of all logits over the temperature, before any token is cut and without penalties."""
    results, network = ours_and_theirs(name)
    completions, _ = results[mode]
    temperature = MODES[mode].temperature or 1
    for prompt, completion in zip(prompts(), completions, strict=True):
        ids = torch.tensor([prompt + completion.tokens])
        with torch.no_grad():
            logits_SV = network(ids).logits[0, len(prompt) - 1 : -1]
        log_p_SV = (logits_SV / temperature).log_softmax(-1)
        expected = log_p_SV.gather(1, ids[0, len(prompt) :, None]).flatten().tolist()
        assert completion.sampled_log_probs == pytest.approx(expected, abs=1e-5)
    if not MODES[mode].temperature:
        assert all(c.sampled_log_probs == c.log_probs for c in completions)
