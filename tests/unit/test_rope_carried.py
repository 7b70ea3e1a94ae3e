"""A model's settings of positions go with it, to generation, teachers, judges and servers."""

import json

import pytest

from megatron_qwen3.cli import convert_checkpoint
from megatron_qwen3.config import ConfigError, load, to_toml
from megatron_qwen3.convert import hf_config
from megatron_qwen3.generate.load import ModelSource
from megatron_qwen3.posttrain.rewards import model_settings
from megatron_qwen3.posttrain.rollouts import refit
from megatron_qwen3.posttrain.teachers import teacher_settings
from megatron_qwen3.settings_rope import RopeConfig

BASE = ["model.preset=tiny-dense", "train.steps=1", "train.precision=fp32"]
YARN = RopeConfig(yarn_factor=4.0, yarn_original_length=64)
PAIRS = ["rope.yarn_factor=4", "rope.yarn_original_length=64"]
CHUNKS = ["rope.dca_chunk_size=64", "rope.dca_local_size=16"]
VLLM = ["rollouts.engine=vllm", "rollouts.vllm.python=python", "rollouts.max_new_tokens=100"]
TASKS = 'rollouts.tasks=[{name="a",path="x"}]'


@pytest.fixture
def folder(tmp_path):
    model = load([], BASE).model
    hf_config.write_config(tmp_path, model, YARN, 4096, "float32", {})
    return tmp_path


def test_whoever_generates_has_the_models_own_and_may_change_it(folder):
    assert ModelSource(folder).config([], 1).rope == YARN
    longer = ModelSource(folder).config(["rope.yarn_factor=8", *CHUNKS], 1).rope
    assert (longer.yarn_factor, longer.yarn_original_length) == (8, 64)
    assert (longer.dca_chunk_size, longer.dca_scale) == (64, 1)


@pytest.mark.parametrize("student", [[], CHUNKS])
def test_a_teacher_keeps_its_own(folder, student):
    given = ["run.mode=sft", "sft.objective=both", f"sft.teacher.path={folder}", *student]
    config = load([], [*BASE, *given, 'sft.sources=[{name="a",path="x"}]'])
    assert teacher_settings.settings_of(config, 1).rope == YARN


def test_a_teacher_with_chunks_may_teach_a_student_that_vllm_samples(folder, monkeypatch):
    """It is not the teacher that vLLM runs."""
    saved = load([], [*BASE, *CHUNKS])
    student = load([], [*BASE, "run.mode=distill", *VLLM, f"distill.teacher.path={folder}"])
    monkeypatch.setattr(ModelSource, "config", lambda *_: saved)
    assert teacher_settings.settings_of(student, 1).rope == saved.rope


def test_a_judge_keeps_its_own(tmp_path):
    judge = load([], [*BASE, "run.mode=reward"]).model
    hf_config.write_config(tmp_path, judge, YARN, 4096, "float32", {"pad": 0})
    config = load([], [*BASE, "run.mode=rl", TASKS, f"rl.judge.model={tmp_path}"])
    assert model_settings.settings_of(config, 1).rope == YARN


def test_servers_of_vllm_are_told_of_yarn(tmp_path):
    given = ["run.mode=rl", *VLLM, TASKS, *PAIRS, "data.sequence_length=256"]
    config = load([], [*BASE, *given])
    refit.write_config(config, tmp_path / "model")
    fields = json.loads((tmp_path / "model" / "config.json").read_text())
    assert fields["rope_scaling"]["factor"] == 4 and fields["max_position_embeddings"] == 256
    assert hf_config.read_config(tmp_path / "model").rope == YARN


def test_a_model_that_vllm_sampled_is_exported_with_chunks(tmp_path):
    """The engine has no Dual Chunk Attention, but it is no part of the model."""
    config = load([], [*BASE, "run.mode=rl", *VLLM, TASKS, *PAIRS, "data.sequence_length=256"])
    (tmp_path / "config.toml").write_text(to_toml(config), encoding="utf-8")
    rope = convert_checkpoint._rope_of(tmp_path, [*CHUNKS, "rope.yarn_factor=2"])
    assert (rope.yarn_factor, rope.yarn_original_length, rope.dca_chunk_size) == (2, 64, 64)


def test_servers_of_vllm_take_no_more_positions_than_yarn_reaches():
    given = [*BASE, "run.mode=rl", *VLLM, TASKS, *PAIRS]
    with pytest.raises(ConfigError, match=r"data.sequence_length = 257 exceeds .* = 4 \* 64 = 256"):
        load([], [*given, "data.sequence_length=257"])
