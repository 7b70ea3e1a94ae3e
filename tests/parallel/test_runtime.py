"""The process groups of a run."""

import os

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks

from megatron_qwen3 import train
from megatron_qwen3.config import load
from megatron_qwen3.cpu import device
from megatron_qwen3.parallel import runtime

TINY = ("model.preset=tiny-dense", "train.steps=1", "data.sequence_length=32")


def shortest_timeout(*settings):
    """Of all process groups of this rank, in seconds."""
    runtime.start(load([], [*TINY, *settings]))
    groups = list(dist.distributed_c10d._world.pg_map)
    cpu = torch.device("cpu")
    return min(group._get_backend(cpu).options._timeout.total_seconds() for group in groups)


@pytest.mark.parametrize("hang_seconds", [600, 7200])
def test_no_collective_gives_up_before_a_hang_was_told(hang_seconds):
    settings = (f"guard.hang_seconds={hang_seconds}", "parallel.tensor=2")
    assert min(run_ranks(shortest_timeout, 2, *settings)) >= hang_seconds + 600


def test_where_nothing_is_a_hang_collectives_wait_for_ever():
    (seconds,) = run_ranks(shortest_timeout, 1, "guard.hang_seconds=0")
    assert seconds >= 30 * 86400


def no_gpu_of_its_own(local_rank):
    config = load([], TINY)
    device.redirect.REDIRECTED = False
    torch.cuda.device_count = lambda: 1
    runtime.os.environ["LOCAL_RANK"] = str(local_rank)
    try:
        runtime.check(config)
    except device.ConfigError as error:
        return str(error)
    return ""


def test_a_rank_without_a_gpu_of_its_own_says_so_before_it_joins():
    told, fine = run_ranks(no_gpu_of_its_own, 1, 3)[0], run_ranks(no_gpu_of_its_own, 1, 0)[0]
    assert "4 ranks on " in told and "torch sees 1 GPUs" in told and not fine


class Stopped(Exception):
    """Where a test wants to look."""


TAKEN_APART = ("model.preset=tiny-moe", "model.kind=te", "parallel.expert=2")
TAKEN_APART += ("train.precision=bf16", "overlap.experts=true")


@pytest.mark.parametrize(
    "tensor, more, expected", [(1, (), None), (2, (), "1"), (2, TAKEN_APART, "32")]
)
def test_kernels_start_in_order_only_where_tensor_parallelism_overlaps(
    monkeypatch, tensor, more, expected
):
    def stop(_):
        raise Stopped

    monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", "to be undone")
    monkeypatch.delenv("CUDA_DEVICE_MAX_CONNECTIONS")
    monkeypatch.setattr(runtime, "check", stop)
    with pytest.raises(Stopped):
        train.train(load([], [*TINY, f"parallel.tensor={tensor}", *more]))
    assert os.environ.get("CUDA_DEVICE_MAX_CONNECTIONS") == expected
