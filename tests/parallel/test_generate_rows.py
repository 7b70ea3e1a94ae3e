"""Each row of a generation has settings of its own: samples, limits, padding, whose weights."""

import functools

import pytest
from ranks import run_ranks

from megatron_qwen3.config import load
from megatron_qwen3.generate.engine import Generator
from megatron_qwen3.generate.sampling import Sampling
from megatron_qwen3.generate.thinking import ThinkingBudget
from megatron_qwen3.parallel.runtime import start
from megatron_qwen3.training.model import Model

SAMPLED = Sampling(temperature=0.8, top_k=40, top_p=0.95, presence_penalty=0.5, seed=3)
OPENS, CLOSES, CUT = 500, 501, (490, 491, 501)
BUDGET, STOPS, NEW = ThinkingBudget(4, OPENS, CLOSES, CUT), tuple(range(0, 512, 20)), 20
PROMPTS = [[5, OPENS, 7, 9], [11], [3, 1, 4, 1, 5, 9, 2, 6]]
LIMITS, SAMPLES, FIRST_ROW = [3, 20, 0], 3, 7
PRESETS = ("tiny-dense", "tiny-moe")


def written(preset):
    settings = [
        f"model.preset={preset}",
        "model.init_std=0.15",
        "train.steps=1",
        "train.precision=fp32",
        "train.global_batch=1",
        "data.sequence_length=32",
    ]
    config = load([], settings)
    model = Model(config, start(config))
    generator = Generator(model)
    generate = functools.partial(
        generator.generate, sampling=SAMPLED, stop_ids=STOPS, budget=BUDGET, first_row=FIRST_ROW
    )
    facts, shapes = {}, []
    embedding = generator.chunks[0].embedding
    embedding.register_forward_hook(lambda module, args, out: shapes.append(tuple(out.shape[:2])))
    facts["samples"] = generate(PROMPTS, max_new_tokens=NEW, samples=SAMPLES)
    facts["shapes"] = list(shapes)
    repeated = [prompt for prompt in PROMPTS for _ in range(SAMPLES)]
    facts["apart"] = generate(repeated, max_new_tokens=NEW)
    facts["without limits"] = generate(PROMPTS, max_new_tokens=NEW)
    facts["limits"] = generate(PROMPTS, max_new_tokens=LIMITS)
    told = []
    generate(PROMPTS, max_new_tokens=2, samples=2, on_token=lambda row, *_: told.append(row))
    facts["told"] = sorted(set(told))
    routers = [m for m in generator.chunks[0].modules() if hasattr(m, "begin_counting")]
    for router in routers:
        router.begin_counting()
    generate(PROMPTS, max_new_tokens=1)
    facts["counted"] = [int(router.sums[0].sum()) for router in routers]
    facts["per token"] = config.model.experts_per_token
    facts["errors"] = []
    for wrong in ({"samples": 0}, {"max_new_tokens": [1, 2]}, {"max_new_tokens": [1, 2, -3]}):
        with pytest.raises(ValueError) as error:
            generate(PROMPTS, **({"max_new_tokens": 1} | wrong))
        facts["errors"].append(str(error.value))
    return facts


@functools.cache
def facts_of(preset):
    return run_ranks(written, 1, preset)[0]


@pytest.mark.parametrize("preset", PRESETS)
def test_samples_of_one_prompt_equal_separate_prompts_of_the_same_rows(preset):
    together, apart = facts_of(preset)["samples"], facts_of(preset)["apart"]
    assert [c.tokens for c in together] == [c.tokens for c in apart]
    assert len({tuple(c.tokens) for c in together}) == len(PROMPTS) * SAMPLES
    for ours, theirs in zip(together, apart, strict=True):
        assert ours.inserted == theirs.inserted and ours.finish_reason == theirs.finish_reason
        assert ours.log_probs == pytest.approx(theirs.log_probs, abs=1e-5)
        assert ours.sampled_log_probs == pytest.approx(theirs.sampled_log_probs, abs=1e-5)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_prompt_is_read_once_whatever_the_samples(preset):
    first, *others = facts_of(preset)["shapes"]
    assert first == (max(map(len, PROMPTS)), len(PROMPTS))
    assert others[0] == (1, len(PROMPTS) * SAMPLES)
    assert all(places == 1 for places, _ in others)


@pytest.mark.parametrize("preset", PRESETS)
def test_each_prompt_has_its_own_limit(preset):
    facts = facts_of(preset)
    for limit, ours, longer in zip(LIMITS, facts["limits"], facts["without limits"], strict=True):
        assert ours.tokens == longer.tokens[:limit]
        is_cut = len(longer.tokens) > limit or longer.finish_reason == "length"
        assert ours.finish_reason == ("length" if is_cut else "stop")
    assert {len(c.tokens) for c in facts["limits"]} >= {0, 3}


@pytest.mark.parametrize("preset", PRESETS)
def test_tokens_are_told_by_the_number_of_their_row(preset):
    assert facts_of(preset)["told"] == list(range(2 * len(PROMPTS)))


def test_padding_after_a_prompt_is_counted_by_no_router():
    facts = facts_of("tiny-moe")
    tokens = sum(map(len, PROMPTS))
    assert facts["counted"] and set(facts["counted"]) == {tokens * facts["per token"]}


def test_what_is_out_of_range_is_refused_by_name():
    samples, too_few, negative = facts_of("tiny-dense")["errors"]
    assert samples == "samples = 0; valid: at least 1"
    assert "2 limits for 3 prompts" in too_few
    assert "max_new_tokens = [1, 2, -3]" in negative
