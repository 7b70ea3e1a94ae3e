"""Sampling equals transformers' logits processors; every row draws by itself."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_qwen3.config import ConfigError
from megatron_qwen3.generate import sampler
from megatron_qwen3.generate.sampler import Sampler
from megatron_qwen3.generate.sampling import Sampling

processors = pytest.importorskip("transformers.generation.logits_process")

# Few different values, so that ties are everywhere, also at the edges of cuts.
LOGITS = st.one_of(st.integers(-4, 4).map(float), st.floats(-20, 20, width=32))
SHARES = st.floats(0.01, 1.0) | st.sampled_from([0.25, 0.5, 0.75, 1.0])


@st.composite
def rows_of_logits(draw):
    rows, vocabulary = draw(st.integers(1, 3)), draw(st.integers(1, 40))
    values = draw(st.lists(LOGITS, min_size=rows * vocabulary, max_size=rows * vocabulary))
    return torch.tensor(values, dtype=torch.float32).view(rows, vocabulary)


def theirs(sampling, logits_BV, seen):
    """Scores as `generate` would make them: its processors in its order."""
    scores = logits_BV.clone()
    if sampling.repetition_penalty != 1:
        penalty = processors.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)
        scores = penalty(seen, scores)
    scores = processors.TemperatureLogitsWarper(sampling.temperature)(None, scores)
    if sampling.top_k:
        scores = processors.TopKLogitsWarper(sampling.top_k)(None, scores)
    if sampling.top_p < 1:
        scores = processors.TopPLogitsWarper(sampling.top_p)(None, scores)
    if sampling.min_p:
        scores = processors.MinPLogitsWarper(sampling.min_p)(None, scores)
    return scores


def spread(scores_BM, ids_BM, vocabulary):
    whole_BV = torch.full((len(scores_BM), vocabulary), -torch.inf)
    return whole_BV.scatter(1, ids_BM, scores_BM)


@settings(max_examples=200, deadline=None)
@given(
    logits_BV=rows_of_logits(),
    temperature=st.floats(0.1, 3.0),
    top_k=st.integers(0, 45),
    top_p=SHARES,
    min_p=st.just(0.0) | SHARES,
    penalty=st.sampled_from([0.5, 1.0, 1.3]),
    seen=st.lists(st.integers(0, 1000), min_size=1, max_size=5),
)
def test_scores_equal_those_of_transformers_processors(
    logits_BV, temperature, top_k, top_p, min_p, penalty, seen
):
    B, V = logits_BV.shape
    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty=penalty)
    seen = [token % V for token in seen]
    ours = Sampler(sampling, [seen] * B, 0, V, torch.device("cpu"))
    scores_BV = logits_BV
    if penalty != 1:
        scores_BV = sampler.penalize_repetition(logits_BV, ours.seen_BV, penalty)
    scores_BV = spread(*sampler.candidates(scores_BV, sampling), V)
    expected_BV = theirs(sampling, logits_BV, torch.tensor([seen] * B))
    assert_same_but_for_equals(scores_BV, expected_BV)


def assert_same_but_for_equals(ours_BV, expected_BV):
    """Equal to the bit; of equally likely tokens at the edge of top-p either may be the one cut."""
    assert torch.equal(ours_BV.sort(-1).values, expected_BV.sort(-1).values)
    for ours_V, expected_V in zip(ours_BV, expected_BV, strict=True):
        other = ours_V != expected_V
        assert torch.maximum(ours_V, expected_V)[other].unique().numel() <= 1


@settings(max_examples=100, deadline=None)
@given(logits_BV=rows_of_logits(), top_k=st.integers(0, 45), top_p=SHARES)
def test_draws_have_the_probabilities_of_the_scores(logits_BV, top_k, top_p):
    """Over evenly spaced numbers each token comes up its share of the times, to within one."""
    sampling, draws = Sampling(1.0, top_k, top_p), 512
    for logits_1V in logits_BV.split(1):
        scores_1M, ids_1M = sampler.candidates(logits_1V, sampling)
        uniform = (torch.arange(draws, dtype=torch.float64) + 0.5) / draws
        tokens = sampler.draw(scores_1M.expand(draws, -1), ids_1M.expand(draws, -1), uniform)
        expected_1V = theirs(sampling, logits_1V, None)
        assert_same_but_for_equals(spread(scores_1M, ids_1M, len(logits_1V[0])), expected_1V)
        expected = expected_1V.double().softmax(-1)[0].sort().values * draws
        counts = torch.bincount(tokens, minlength=logits_1V.shape[1]).sort().values
        assert (counts - expected).abs().max() < 1.001
        assert (counts > 0).sum() <= (expected > 0).sum()


def test_many_draws_follow_the_distribution():
    """Chi-square over 20 tokens: beyond 43.8 once in a thousand seeds, and this is one seed."""
    logits_V = torch.randn(20, generator=torch.Generator().manual_seed(1))
    rows, sampling = 4000, Sampling(temperature=0.8, seed=11)
    ours = Sampler(sampling, [[0]] * rows, 0, 20, torch.device("cpu"))
    counts = torch.bincount(ours.choose(logits_V.expand(rows, -1)), minlength=20)
    expected = (logits_V / 0.8).softmax(-1) * rows
    assert ((counts - expected) ** 2 / expected).sum() < 43.8


def test_scores_that_are_no_numbers_give_some_id_and_leave_other_rows_alone():
    logits_2V = torch.randn(2, 20, generator=torch.Generator().manual_seed(1))
    uniform, ids_2V = torch.tensor([0.3, 0.7], dtype=torch.float64), torch.arange(20).expand(2, -1)
    expected = sampler.draw(logits_2V, ids_2V, uniform)
    logits_2V[0, 3] = torch.nan
    found = sampler.draw(logits_2V, ids_2V, uniform)
    assert 0 <= found[0] < 20 and found[1] == expected[1]


def test_presence_penalty_counts_tokens_of_the_text_once_and_not_the_prompt():
    sampling = Sampling(temperature=0, presence_penalty=1.5)
    ours = Sampler(sampling, [[0, 1]], 0, 4, torch.device("cpu"))
    logits_BV = torch.tensor([[5.0, 4.0, 3.0, 0.0]])
    chosen = []
    for _ in range(5):
        token_B = ours.choose(logits_BV)
        ours.remember(token_B)
        chosen.append(int(token_B))
    # 5, then 4 against 3.5, then 3.5 against 2.5 and 3: nothing is ever subtracted twice.
    assert chosen == [0, 1, 0, 0, 0]


@pytest.mark.parametrize("kept", [[1], [0, 2], [2]])
def test_a_rows_tokens_do_not_depend_on_the_rows_beside_it(kept):
    random = torch.Generator().manual_seed(2)
    logits_TBV = torch.randn(12, 3, 50, generator=random)
    sampling = Sampling(0.9, top_k=10, presence_penalty=1.0, repetition_penalty=1.1, seed=4)

    def run(rows, numbered_from):
        ours = Sampler(sampling, [[r] for r in rows], numbered_from, 50, torch.device("cpu"))
        tokens = []
        for logits_BV in logits_TBV:
            tokens.append(ours.choose(logits_BV[rows]))
            ours.remember(tokens[-1])
        return torch.stack(tokens)

    together = run([0, 1, 2], 7)
    for row in kept:
        assert torch.equal(run([row], 7 + row)[:, 0], together[:, row])
    ours = Sampler(sampling, [[r] for r in range(3)], 7, 50, torch.device("cpu"))
    for step, logits_BV in enumerate(logits_TBV):
        rows = [0, 1, 2] if step < 5 else kept
        if step == 5:
            ours.keep(torch.tensor(kept))
        tokens_B = ours.choose(logits_BV[rows])
        ours.remember(tokens_B)
        assert torch.equal(tokens_B, together[step, rows])


def test_rows_and_seeds_draw_different_tokens():
    logits_BV = torch.zeros(64, 1000)
    device = torch.device("cpu")
    first, second = (
        Sampler(Sampling(seed=seed), [[0]] * 64, 0, 1000, device).choose(logits_BV)
        for seed in (0, 1)
    )
    assert len(set(first.tolist())) > 50
    assert (first == second).sum() < 5


def test_log_probs_are_those_of_the_logits_alone_and_over_the_temperature():
    logits_BV = torch.randn(3, 9)
    tokens_B, rows = torch.tensor([0, 8, 4]), torch.arange(3)
    for temperature in (0.0, 0.6, 1.0):
        expected = [
            (logits_BV / t).log_softmax(-1)[rows, tokens_B] for t in (1.0, temperature or 1.0)
        ]
        ours = sampler.log_probs(logits_BV, tokens_B, temperature)
        torch.testing.assert_close(ours, torch.stack(expected))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -0.5),
        ("min_p", 2.0),
        ("repetition_penalty", 0.0),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=f"{name} = {value}"):
        Sampling(**{name: value})


@pytest.mark.parametrize("vocabulary", [1, 2, 3, 64, 1000])
def test_tokens_are_drawn_alike_where_torch_refuses_its_running_sum(monkeypatch, vocabulary):
    """A GPU's cumsum raises where repeatable results are asked for: run.deterministic."""
    random = torch.Generator().manual_seed(vocabulary)
    logits_BV = 3 * torch.randn(64, vocabulary, generator=random)
    uniform_B = torch.rand(64, dtype=torch.float64, generator=random)
    ways = [Sampling(temperature=0.7), Sampling(top_p=0.8, top_k=20), Sampling(min_p=0.1)]
    expected = [sampler.candidates(logits_BV, way) for way in ways]
    drawn = [sampler.draw(*each, uniform_B) for each in expected]

    def refuse(*args, **kwargs):
        raise RuntimeError("cumsum_cuda_kernel does not have a deterministic implementation")

    monkeypatch.setattr(sampler.kernels, "has_running_sum", lambda x: False)
    monkeypatch.setattr(torch.Tensor, "cumsum", refuse)
    for way, (scores_BM, ids_BM), tokens_B in zip(ways, expected, drawn, strict=True):
        found = sampler.candidates(logits_BV, way)
        assert torch.equal(found[0], scores_BM) and torch.equal(found[1], ids_BM)
        assert torch.equal(sampler.draw(*found, uniform_B), tokens_B)
    x_BM = torch.rand(3, vocabulary, dtype=torch.float64, generator=random)
    expected_BM = torch.stack([x_BM[:, : i + 1].sum(1) for i in range(vocabulary)], 1)
    torch.testing.assert_close(sampler.running_sum(x_BM), expected_BM, rtol=1e-14, atol=0)


def test_a_running_sum_is_refused_on_a_gpu_that_is_to_repeat_itself_alone():
    class OnGpu:
        is_cuda = True

    torch.use_deterministic_algorithms(True)
    try:
        assert sampler.kernels.has_running_sum(torch.ones(1))
        assert not sampler.kernels.has_running_sum(OnGpu())
    finally:
        torch.use_deterministic_algorithms(False)
    assert sampler.kernels.has_running_sum(OnGpu())
