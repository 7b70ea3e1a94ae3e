"""Tasks of reasoning-gym: the same each time, and only a score of 1 is right."""

import pytest

from megatron_qwen3.config import ConfigError
from megatron_qwen3.posttrain.verifiers import check_spec, gym, verdict

pytest.importorskip("reasoning_gym")

# Small ones of many kinds that have one answer.
NAMES = ["chain_sum", "gcd", "lcm", "simple_equations", "base_conversion", "number_sorting"]
NAMES += ["letter_counting", "caesar_cipher", "word_sorting", "leg_counting", "calendar_arithmetic"]


def spec_of(name, index=0, **settings):
    spec = {"kind": "reasoning_gym", "dataset": name, "seed": 5, "size": 3, "index": index}
    return spec | ({"settings": settings} if settings else {})


@pytest.mark.parametrize("name", NAMES)
def test_its_own_answer_is_right_and_another_is_wrong(name):
    for index in range(3):
        spec = spec_of(name, index)
        check_spec(spec)
        gold = gym.task(name, 5, 3, index, {})[1]["answer"]
        assert verdict(spec, f"<think>\n0\n</think>\n\n<answer> {gold} </answer>").score == 1.0
        assert (
            verdict(spec, f"\\boxed{{0}} <answer>x</answer> <answer>{gold}</answer>").score == 1.0
        )
        assert verdict(spec, f"<think>\n<answer>{gold}</answer>").score == 0.0
        assert verdict(spec, "<answer>no idea</answer>").score == 0.0
        assert verdict(spec, "").score == 0.0


def test_a_part_of_a_point_is_none():
    gold = gym.task("chain_sum", 5, 3, 0, {})[1]["answer"]
    made, entry = gym.task("chain_sum", 5, 3, 0, {})
    text = f"the answer is {gold}"
    assert 0 < made.score_answer(text, entry) < 1
    judged = verdict(spec_of("chain_sum"), text)
    assert judged.score == 0.0 and judged.reason.startswith("scored 0.")


def test_an_answer_that_the_scorer_cannot_read_is_wrong_with_its_reason():
    made, entry = gym.task("prime_factorization", 5, 3, 0, {})
    with pytest.raises(ValueError):
        made.score_answer("no × idea", entry)
    judged = verdict(spec_of("prime_factorization"), "no × idea")
    assert judged.score == 0.0 and judged.reason.startswith("the scorer cannot read it: ValueError")


def test_tasks_depend_on_seed_and_settings_and_nothing_else():
    question = gym.question("chain_sum", 5, 3, 1, {})
    assert question == gym.question("chain_sum", 5, 30, 1, {})
    assert question != gym.question("chain_sum", 6, 3, 1, {})
    long = gym.question("chain_sum", 5, 3, 1, {"min_terms": 9, "max_terms": 9})
    assert long.count(" + ") + long.count(" - ") == 8


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (spec_of("chain_sums"), "did you mean chain_sum"),
        (spec_of("xyz"), "the nearest are"),
        (spec_of("composite"), "no generator"),
        (spec_of("chain_sum", 3), "valid: 0 to 2"),
        (spec_of("chain_sum", min_terms=-3), "min_terms"),
        (spec_of("chain_sum", no_such=3), "no_such"),
    ],
)
def test_a_generator_that_is_none_is_refused(spec, message):
    with pytest.raises(ConfigError, match=message):
        check_spec(spec)
