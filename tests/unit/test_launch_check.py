"""The check of memory before a run starts."""

import dataclasses
import time
from types import SimpleNamespace

import numpy as np
import pytest

from megatron_qwen3 import train
from megatron_qwen3.config import ConfigError, load
from megatron_qwen3.convert import hf_config
from megatron_qwen3.planner import candidates, launch_check, moments
from megatron_qwen3.planner.job import Job
from megatron_qwen3.planner.launch_check import (
    Device,
    memory_fault,
    nearest_layout,
)
from megatron_qwen3.planner.memory import Memory
from megatron_qwen3.planner.moments import compared_width, fullest, scores_bytes, teacher_bytes
from megatron_qwen3.posttrain.rollouts.own import OwnEngine
from megatron_qwen3.posttrain.rollouts.record import RolloutRecord, TaskName, of_groups
from megatron_qwen3.posttrain.rollouts.rollout import Ask, Rollout
from megatron_qwen3.posttrain.rollouts.rows import RolloutRows
from megatron_qwen3.settings_rope import RopeConfig
from tests import dialog_sets

H100 = Device("a H100", 80e9, is_gpu=True)


def config_of(*overrides, preset="qwen3-8b"):
    samples = {"run.mode=rl", "run.mode=distill"} & set(overrides)
    batch = [] if samples else ["train.global_batch=64"]
    return load([], [f"model.preset={preset}", "train.steps=1", *batch, *overrides])


def test_what_fits_is_let_through_in_milliseconds():
    config = config_of("parallel.tensor=4", "parallel.pipeline=8", preset="qwen3-235b-a22b")
    start = time.process_time()
    assert memory_fault(config, 1024, Device("a GPU", 1e15, is_gpu=True)) == ""
    assert time.process_time() - start < 0.5


@pytest.mark.parametrize(
    ("preset", "world", "overrides"),
    [
        ("qwen3-8b", 8, ["train.micro_batch=4"]),
        ("qwen3-8b", 8, ["data.sequence_length=32768"]),
        ("qwen3-8b", 8, ["data.sequence_length=32768", "parallel.context=8"]),
        ("qwen3-14b", 8, ["parallel.context=2", "train.micro_batch=8"]),
        ("qwen3-32b", 16, ["parallel.tensor=2"]),
        ("qwen3-30b-a3b", 16, ["parallel.pipeline=2", "parallel.pipeline_layers=[25, 23]"]),
    ],
)
def test_the_nearest_layout_fits_and_is_accepted(preset, world, overrides):
    config = config_of(*overrides, preset=preset)
    text = memory_fault(config, world, H100)
    changes = nearest_layout(config, world, H100)
    assert changes and " ".join(changes) in text
    job = Job.of(config_of(*overrides, *changes, preset=preset), world)
    assert Memory.of(job).total <= H100.bytes


def test_parts_are_named_largest_first():
    text = memory_fault(config_of("train.micro_batch=4"), 8, H100)
    assert "of the 80 GB of a H100" in text
    assert text.index("activations") < text.index("gradients") < text.index("weights")


def test_where_nothing_fits_the_next_number_of_ranks_is_named():
    text = memory_fault(config_of(preset="qwen3-235b-a22b"), 8, H100)
    assert "no layout on 8 ranks fits; doubling, 64 is the first that does" in text


def test_refusing_is_an_error_warning_is_a_line_and_off_is_silent(capsys):
    device = Device("run.memory_gb", 1e9, is_gpu=True)
    with pytest.raises(ConfigError, match="needs about"):
        train.check_memory(config_of("run.memory_check=refuse"), 8, device)
    train.check_memory(config_of(), 8, device)
    assert capsys.readouterr().err.startswith("warning: memory: pipeline rank 0 needs about")
    train.check_memory(config_of("run.memory_check=off"), 8, device)
    assert capsys.readouterr().err == ""


def test_a_planner_that_cannot_say_is_a_note_and_stops_nothing(capsys):
    config = config_of("run.memory_check=refuse")
    unread = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=0))
    told = train.check_memory(unread, 8, H100)
    assert told.startswith('note: run.memory_check = "refuse", but memory was not checked: ')
    assert "train.steps" in told and "\n" not in told and not capsys.readouterr().err
    assert train.check_memory(config_of(), 8, H100) == ""


def test_a_fault_that_stops_planner_and_run_is_told_once(capsys, tmp_path):
    """A teacher that is not there: the planner cannot count its weights, the mode refuses it."""
    source = {"name": "a", "path": dialog_sets.write(tmp_path / "a", [5] * 40)}
    arguments = [*dialog_sets.settings(source), "train.steps=1", "sft.objective=both"]
    arguments += [f"run.dir={tmp_path}/runs", f"sft.teacher.path={tmp_path}/none"]
    assert train.main(arguments) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: sft.teacher: ") and told.count("sft.teacher") == 1


def test_training_asks_before_it_starts(capsys, tmp_path):
    arguments = ["model.preset=tiny-dense", "train.steps=1", "run.device=cpu"]
    arguments += [f"run.dir={tmp_path}", "run.memory_check=refuse", "run.memory_gb=0.5"]
    assert train.main(arguments) == 2
    assert "of the 0.5 GB of run.memory_gb" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_stage_of_dialogs_needs_as_much_memory_as_pretraining_in_the_same_rows():
    dialogs = ["run.mode=sft", "sft.sources=[{name='a', path='p'}]", "sft.loss=dialog"]
    more = ["train.micro_batch=4"]
    assert memory_fault(config_of(*more, *dialogs), 8, H100) == memory_fault(
        config_of(*more), 8, H100
    )


def test_a_teacher_in_memory_takes_its_weights_and_targets_of_what_there_is(tmp_path):
    """A teacher of 8e9 parameters in bf16, cut in two, beside a student that fits alone."""
    teacher = config_of(preset="qwen3-8b").model
    hf_config.write_config(tmp_path, teacher, RopeConfig(), 4096, "bfloat16", {})
    student = ["run.mode=sft", "sft.sources=[{name='a', path='p'}]", "sft.objective=both"]
    asked = [*student, f"sft.teacher.path={tmp_path}", "sft.teacher.top_k=8"]
    alone = config_of(*student, preset="qwen3-1.7b")
    whole = config_of(*asked, preset="qwen3-1.7b")
    halved = config_of(*asked, "sft.teacher.tensor=2", preset="qwen3-1.7b")
    rows = 64 // 8 * 4096 * (8 * 12 + 4)
    weights = 2 * 8.19e9
    assert teacher_bytes(alone, 8) == 0
    assert teacher_bytes(whole, 8) == pytest.approx(weights + rows, rel=0.01)
    assert teacher_bytes(halved, 8) == pytest.approx(weights / 2 + rows, rel=0.01)
    fits = Device("a GPU", Memory.of(Job.of(alone, 8)).total + 1e9, is_gpu=True)
    assert not memory_fault(alone, 8, fits)
    assert "teacher 16.4" in memory_fault(whole, 8, fits)
    assert not memory_fault(whole, 8, fits._replace(bytes=fits.bytes + weights + rows))


def test_a_teacher_that_takes_turns_leaves_room_for_the_students_optimizer(tmp_path):
    """On one rank: of 8e9 parameters beside 1.7e9, whose whole distributions are compared."""
    teacher = config_of(preset="qwen3-8b").model
    hf_config.write_config(tmp_path, teacher, RopeConfig(), 4096, "bfloat16", {})
    base = ["run.mode=distill", f"distill.teacher.path={tmp_path}", "rollouts.max_new_tokens=1000"]
    beside, turns, ids = (
        config_of(*base, *more, preset="qwen3-1.7b")
        for more in ([], ["distill.teacher.in_turns=true"], ["distill.top_k=8"])
    )
    assert teacher_bytes(beside, 1) == pytest.approx(2 * 8.19e9, rel=0.01)
    states, matrix = 32 * 8 * 4096 * 4096 * 2, 151_936 * 4096 * 2
    job, width = Job.of(beside, 1), compared_width(beside)
    assert scores_bytes(beside, job, 0, width) == pytest.approx(states + matrix)
    of_ids = 32 * 8 * 4096 * (8 * 12 + 4)
    assert scores_bytes(ids, job, 0, compared_width(ids)) == pytest.approx(of_ids)
    (_, all_there), (_, by_turns) = (fullest(c, job, 1, is_gpu=True) for c in (beside, turns))
    least = min(all_there["teacher"], all_there["optimizer"])
    assert sum(by_turns.values()) < sum(all_there.values()) - 0.9 * least


def test_what_a_teacher_says_of_prompts_is_counted(tmp_path):
    """Of answers of 16 tokens after prompts of 240: each place of their rows has hidden states."""
    teacher = config_of(preset="qwen3-8b").model
    hf_config.write_config(tmp_path, teacher, RopeConfig(), 4096, "bfloat16", {})
    base = ["run.mode=distill", f"distill.teacher.path={tmp_path}", "data.sequence_length=256"]
    base += ["rollouts.max_new_tokens=16", "rollouts.prompts=4", "rollouts.samples=2"]
    config = config_of(*base, preset="qwen3-1.7b")
    prompt, said = (1,) * 240, (2,) * 16
    one = Rollout("t", prompt, said, (0.0,) * 16, (True,) * 16, "length", (0, 0), True, 0)
    columns = of_groups([[one, one]] * 4, [TaskName("t", "s", "thinking")] * 4)
    zeros, one_part = np.zeros(8, np.float32), np.zeros((8, 1), np.float32)
    record = RolloutRecord(0, 0, 0, ("verifier",), **columns, reward_N=zeros, advantage_N=zeros,
                    parts_NP=one_part, is_trained_N=np.ones(8, bool))  # fmt: skip
    rows = RolloutRows.of(record, range(8), length=256, ranks=1)
    places = rows.batch(0, {}, {}).tokens_BS.numel()
    job, width = Job.of(config, 1), compared_width(config)
    of_states = scores_bytes(config, job, 0, width) - moments.matrix_bytes(job, 0, width)
    assert places * width * 2 <= of_states <= 1.01 * places * width * 2


def rl_config(*overrides, preset="qwen3-8b"):
    asked = ["run.mode=rl", "rollouts.tasks=[{name='a', path='gym:chain_sum'}]"]
    return config_of(*asked, "parallel.tensor=2", *overrides, preset=preset)


def test_the_layout_that_a_run_which_samples_is_told_of_may_have_more_data_ranks_than_eight():
    """64 GPUs share an update's answers, whatever train.global_batch is of other modes."""
    asked = ["run.mode=rl", "rollouts.tasks=[{name='a', path='gym:chain_sum'}]"]
    config = config_of(*asked, "train.micro_batch=4", "rollouts.rows=8")
    device = Device("a H100", 80e9, is_gpu=True)
    changes = nearest_layout(config, 64, device)
    assert changes and " ".join(changes) in memory_fault(config, 64, device)
    found = Job.of(config_of(*asked, "rollouts.rows=8", *changes), 64)
    assert found.layout.data > 8


def test_a_reference_takes_its_weights_in_the_policys_layout():
    alone, with_one = rl_config(), rl_config("rl.kl.coefficient=0.01")
    halves = 2 * 8.19e9 / 2
    _, without = moments.fullest(alone, Job.of(alone, 8), 8, is_gpu=True)
    _, parts = moments.fullest(with_one, Job.of(with_one, 8), 8, is_gpu=True)
    assert without["reference"] == 0
    assert parts["reference"] == pytest.approx(halves, rel=0.01)
    device = Device("a GPU", sum(parts.values()) - halves / 2, is_gpu=True)
    assert not memory_fault(alone, 8, device)
    assert "reference 8.19" in memory_fault(with_one, 8, device)


def test_a_reward_model_takes_its_weights_in_its_own_layout(tmp_path):
    """A model of 8e9 parameters in bf16 without its head of 0.6e9, cut in four."""
    model = dataclasses.replace(config_of().model, head="scalar")
    hf_config.write_config(tmp_path, model, RopeConfig(), 4096, "bfloat16", {"pad": 0})
    asked = ["rl.rewards.model=1.0", f"rl.judge.model={tmp_path}", "rl.judge.tensor=4"]
    config = rl_config(*asked, preset="qwen3-1.7b")
    found = moments.reward_model_bytes(config, 8)
    assert found == pytest.approx(2 * (8.19e9 - 151936 * 4096) / 4, rel=0.01)
    _, parts = moments.fullest(config, Job.of(config, 8), 8, is_gpu=True)
    assert parts["reward model"] == found
    assert moments.reward_model_bytes(rl_config(), 8) == 0


def test_caches_of_rollouts_stand_where_activations_of_an_update_do():
    """8e9's caches: 36 layers, 8 groups of 128 keys and values in bf16, halved by tensor = 2."""
    few, many = rl_config("rollouts.rows=2", "rollouts.samples=2"), rl_config("rollouts.rows=64")
    place = 36 * 2 * 8 * 128 * 2 / 2
    _, updating = moments.fullest(few, Job.of(few, 8), 8, is_gpu=True)
    _, sampling = moments.fullest(many, Job.of(many, 8), 8, is_gpu=True)
    assert updating["activations"] and "caches" not in updating
    assert not sampling["activations"] and not sampling["logits"]
    assert sampling["caches"] == pytest.approx(64 * 4096 * place, rel=0.02)
    for name in ("weights", "gradients", "optimizer"):
        assert sampling[name] == updating[name] > 0
    between = (sum(updating.values()) + sum(sampling.values())) / 2
    device = Device("a GPU", between, is_gpu=True)
    assert not memory_fault(few, 8, device)
    text = memory_fault(many, 8, device)
    assert text.index("caches") < text.index("weights")


@pytest.mark.parametrize(
    ("rows", "prompts", "samples", "at_once"),
    [(64, 2, 8, 8), (64, 512, 8, 64), (60, 512, 8, 56)],
)
def test_answers_at_once_are_all_of_some_prompts(rows, prompts, samples, at_once):
    """On 4 data ranks; the samples of a prompt share its pass."""
    asked = [f"rollouts.rows={rows}", f"rollouts.prompts={prompts}", f"rollouts.samples={samples}"]
    config = rl_config(*asked, "rollouts.held_out=0")
    assert moments.rows_at_once(Job.of(config, 8), config.rollouts) == at_once


def _of_the_engine(rows, data, count, samples):
    """Answers that a data rank of the engine samples at once."""
    model = SimpleNamespace(layout=SimpleNamespace(data=data))
    asks = [Ask(f"{n}", (1,), n, samples, 8, True) for n in range(count)]
    parts = OwnEngine._parts(SimpleNamespace(_rows=rows, _model=model), asks)
    return max(-(-len(part) // data) * samples for part in parts)


@pytest.mark.parametrize(("rows", "prompts", "samples"), [(64, 2, 8), (64, 64, 24), (10, 64, 8)])
@pytest.mark.parametrize("more", [(), ("rollouts.mode=mixed",), ("rollouts.eval_prompts=3",)])
def test_answers_to_held_out_tasks_and_later_turns_of_agents_fill_the_rows(
    rows, prompts, samples, more
):
    """Each is sampled by itself: there may be more at once than of whole prompts."""
    asked = [f"rollouts.rows={rows}", f"rollouts.prompts={prompts}", f"rollouts.samples={samples}"]
    for environment in ("", "python"):
        config = rl_config(*asked, *more, f"rollouts.agent.environment={environment}")
        rollouts, job = config.rollouts, Job.of(config, 8)
        held_out = rollouts.eval_prompts * (2 if rollouts.mode == "mixed" else 1)
        kinds = [(prompts, samples), (held_out, 1)]
        kinds += [(prompts * samples, 1)] if environment else []
        most = max(_of_the_engine(rows, job.layout.data, *kind) for kind in kinds)
        assert moments.rows_at_once(job, rollouts) == most


def test_the_nearest_layout_of_rl_has_room_for_its_rollouts():
    config = rl_config("rollouts.rows=64", "parallel.tensor=1")
    text = memory_fault(config, 8, H100)
    changes = nearest_layout(config, 8, H100)
    assert changes and " ".join(changes) in text
    other = rl_config("rollouts.rows=64", "parallel.tensor=1", *changes)
    _, parts = moments.fullest(other, Job.of(other, 8), 8, is_gpu=True)
    assert sum(parts.values()) <= H100.bytes


def test_ranks_that_sample_are_not_told_to_share_rows():
    """Rows that ranks would share, were it not for rollouts.engine."""
    long = ["data.sequence_length=32768", "rollouts.rows=8", "parallel.tensor=1"]
    servers = ["rollouts.engine=vllm", "rollouts.vllm.urls=['http://node1:8000']"]
    for engine, contexts in ((["rollouts.engine=own"], {1}), (servers, {1, 2, 4, 8})):
        config = rl_config(*long, *engine)
        question = launch_check._question(config, 8, 80e9)
        assert {job.layout.context for job in candidates.candidates(question)} == contexts


def test_where_no_layout_has_room_for_rollouts_fewer_rows_are_named():
    config = rl_config("data.sequence_length=32768", "rollouts.rows=512", "rollouts.samples=512")
    assert "fewer rollouts.rows" in memory_fault(config, 2, Device("a GPU", 60e9, is_gpu=True))
