"""The metrics of a step say how full the fullest GPU is."""

import torch
from ranks import run_ranks
from test_checkpoint import POSITIONS, SEQUENCES, settings

from megatron_qwen3.cpu import memory, redirect
from megatron_qwen3.parallel.runtime import start
from megatron_qwen3.training import engine as engine_module
from megatron_qwen3.training.batch import TokenBatch
from megatron_qwen3.training.engine import Engine
from megatron_qwen3.training.objectives import cross_entropy

GB = 10**9


def metrics_of_a_step(config, peaks, reserved):
    """The metrics of a step where rank r's GPU has peaks[r] and reserved[r]."""
    engine = Engine(config, start(config))
    if peaks:
        rank = torch.distributed.get_rank()
        held = {"memory_peak_bytes": peaks[rank], "memory_reserved_bytes": reserved[rank]}
        engine_module.gpu_memory = lambda: held
    rows = SEQUENCES // engine.layout.data
    tokens_BS = torch.zeros(rows, POSITIONS, dtype=torch.int64)
    return engine.train_step(TokenBatch.of(tokens_BS, tokens_BS), cross_entropy, 1e-3)


def test_every_rank_reports_the_fullest_gpu_of_all(tmp_path):
    config = settings(tmp_path, "tiny-dense", "tp2-pp2")
    peaks = [70.0 * GB + 1, 79.0 * GB + 3, 60.0 * GB, 61.0 * GB]
    reserved = [72.0 * GB, 79.5 * GB, 79.75 * GB, 61.0 * GB]
    for metrics in run_ranks(metrics_of_a_step, 4, config, peaks, reserved):
        assert metrics["memory_peak_bytes"] == 79 * GB + 3  # to the byte
        assert metrics["memory_reserved_bytes"] == 79.75 * GB


def test_a_cpu_has_no_gpu_memory_to_report(tmp_path):
    (metrics,) = run_ranks(metrics_of_a_step, 1, settings(tmp_path, "tiny-dense", "one"), [], [])
    assert set(metrics) == {"loss", "grad_norm"}


def test_it_is_what_torch_says_of_this_rank(monkeypatch):
    monkeypatch.setattr(redirect, "REDIRECTED", False)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 5)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 8)
    assert memory.gpu_memory() == {"memory_peak_bytes": 5.0, "memory_reserved_bytes": 8.0}
