"""The check of memory before a run starts."""

import dataclasses
import time

import pytest

from megatron_qwen3 import train
from megatron_qwen3.config import ConfigError, load
from megatron_qwen3.planner.job import Job
from megatron_qwen3.planner.launch_check import Device, memory_fault, nearest_layout
from megatron_qwen3.planner.memory import Memory

H100 = Device("a H100", 80e9, is_gpu=True)


def config_of(*overrides, preset="qwen3-8b"):
    return load(
        [], [f"model.preset={preset}", "train.steps=1", "train.global_batch=64", *overrides]
    )


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
    train.check_memory(unread, 8, H100)
    told = capsys.readouterr().err
    assert told.startswith('note: run.memory_check = "refuse", but memory was not checked: ')
    assert "train.steps" in told and told.count("\n") == 1


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
