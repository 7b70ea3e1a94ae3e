"""The stages of reinforcement learning: they follow the stages before, and ask what there is."""

from pathlib import Path

import pytest

from megatron_qwen3.config import load
from megatron_qwen3.posttrain.evaluation.tasks import open_source
from megatron_qwen3.posttrain.rewards.rewards import Rewards
from megatron_qwen3.posttrain.rollouts.asking import thinks

STAGES = Path(__file__).resolve().parents[2] / "examples/stages"
MODEL = STAGES.parent / "models/qwen3_8b.toml"
CHAIN = ["post_1_cold_start", "post_2_reasoning_rl", "post_3_fusion", "post_4_general_rl"]


@pytest.mark.parametrize(("before", "name"), list(zip(CHAIN, CHAIN[1:], strict=False)))
def test_each_stage_begins_with_the_weights_of_the_one_before(before, name):
    config = load([STAGES / f"{name}.toml", MODEL], [])
    assert config.run.name == name
    first = load([STAGES / f"{before}.toml", MODEL], [])
    assert Path(config.checkpoint.init_from) == first.run_dir
    assert config.data.tokenizer == first.data.tokenizer


@pytest.mark.parametrize("name", [name for name in CHAIN if name.endswith("_rl")])
def test_generated_tasks_can_be_made_and_rewarded(name, tmp_path):
    config = load([STAGES / f"{name}.toml", MODEL], [])
    rewards = Rewards(config, tmp_path)
    for source in config.rollouts.tasks:
        if ":" in source.path:
            rewards.check(open_source(source.path, source.name).task(0))
        else:
            assert source.path.startswith("data/post/")


def test_the_report_says_how_long_and_how_tasks_are_answered():
    reasoning = load([STAGES / "post_2_reasoning_rl.toml", MODEL], [])
    assert reasoning.steps == 170 * reasoning.rl.updates and reasoning.rl.updates > 1
    assert reasoning.rollouts.prompts * reasoning.rollouts.samples >= 2048
    assert all(thinks(reasoning, s, 1) for s in reasoning.rollouts.tasks)
    general = load([STAGES / "post_4_general_rl.toml", MODEL], [])
    modes = {thinks(general, s, n) for s in general.rollouts.tasks for n in range(1, 5)}
    assert modes == {True, False} and general.rollouts.switch == "flag"
    assert general.rl.rewards.mode > 0
