"""The stages of reinforcement learning: they follow the stages before, and ask tasks that exist."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_qwen3.config import load, split
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


def commands_of(stage):
    """The words of each command that trains, in the comment at the head of a stage."""
    head = stage.read_text(encoding="utf-8").partition("\n[")[0]
    text = re.sub(r"^# ?", "", head, flags=re.M).replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.startswith("  ")]
    trained = (line.partition("-m megatron_qwen3.train ") for line in lines)
    return [shlex.split(words) for _, found, words in trained if found]


COMMANDS = [(p.stem, words) for p in sorted(STAGES.glob("*.toml")) for words in commands_of(p)]


@pytest.mark.parametrize(("stage", "words"), COMMANDS)
def test_a_command_at_the_head_of_a_stage_is_taken(stage, words, monkeypatch):
    monkeypatch.chdir(STAGES.parents[1])
    assert load(*split(words)).run.name == stage


def test_stages_that_follow_pretraining_show_how_they_are_begun():
    assert {*CHAIN, "distill_2_on_policy"} <= {stage for stage, _ in COMMANDS}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_stage_of_general_reinforcement_learning_runs_on_a_laptop(tmp_path):
    """The whole block of its head, as it stands there, but for where it writes."""
    head = (STAGES / "post_4_general_rl.toml").read_text(encoding="utf-8").partition("\n[")[0]
    block = re.sub(r"^#\s*", "", head.partition("takes a minute:")[2], flags=re.M)
    block = block.partition("The kinds that")[0].replace("runs/try", str(tmp_path))
    root = STAGES.parents[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(root)
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    subprocess.run(["bash", "-ec", block], cwd=root, env=environment, check=True)
    rows = (tmp_path / "post_4_general_rl/metrics.jsonl").read_text().splitlines()
    assert sum(json.loads(row)["kind"] == "train" for row in rows) == 8
    assert (tmp_path / "report.html").is_file()
