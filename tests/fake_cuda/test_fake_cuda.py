"""The code for GPUs without a GPU: devices, types and strides of every operation; no numbers.

`make test-fake-cuda` makes an environment with a CUDA build of torch and runs this there.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
# Who may wait for the device; a new one has to be thought about.
WAITS_OF_GENERATION = {"generate/sampler.py:_top_k", "generate/engine.py:choose"}

pytestmark = pytest.mark.skipif(
    torch.version.cuda is None or torch.cuda.is_available(),
    reason="needs a CUDA build of torch on a machine without a GPU: make test-fake-cuda",
)


def run(*arguments):
    """A process of its own: once it believes in a GPU it cannot be told otherwise."""
    environment = os.environ | {"PYTHONPATH": str(HERE.parents[1])}
    command = [sys.executable, "-W", "ignore", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


CHUNKS = ("rope.dca_chunk_size=24", "rope.dca_local_size=8")  # of 16 places
CONTEXT = ("parallel.context=2",)


# Experts in float32 are a loop over sizes that only real routing tells; it is a CPU's loop as well.
@pytest.mark.parametrize(
    "preset, precision, more",
    [
        ("tiny-dense", "bf16", ()),
        ("tiny-dense", "fp32", ()),
        ("tiny-moe", "bf16", ()),
        ("tiny-dense", "bf16", CHUNKS),
        ("tiny-dense", "fp32", CHUNKS),
        ("tiny-moe", "bf16", CONTEXT),
        ("tiny-dense", "fp32", (*CONTEXT, *CHUNKS)),
    ],
)
def test_forward_score_and_generation_find_all_operands_on_the_gpu(preset, precision, more):
    done = run(str(HERE / "passes.py"), preset, f"train.precision={precision}", *more)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["weights on"] == ["cuda:0"] and told["score"] == ["cuda:0", 3, 32]
    assert told["score of packed documents"] == told["score"]
    assert told["generated"] == ([] if CONTEXT[0] in more else [3, 3])
    assert told["waits in score"] == {}
    assert set(told["waits in generation"]) <= WAITS_OF_GENERATION


# The pretended machine must refuse these, or it would prove nothing.
REFUSED = {
    "operands on two devices": ("torch.ones(2, device='cuda') + torch.ones(2)", "two different"),
    "strides of a grouped product": (
        "F.grouped_mm(bf16(8, 20), bf16(2, 20, 32), offs=ends(4, 8))",
        "16 bytes",
    ),
}
PRELUDE = """
import sys; sys.path[:0] = [{here!r}]
from machine import fake_gpu, pretend_one_gpu; pretend_one_gpu()
import torch, torch.nn.functional as F
bf16 = lambda *shape: torch.empty(shape, dtype=torch.bfloat16, device="cuda")
ends = lambda *values: torch.tensor(values, dtype=torch.int32, device="cuda")
with fake_gpu() as waits:
    {what}
"""


@pytest.mark.parametrize("what", REFUSED)
def test_the_pretended_gpu_refuses(what):
    expression, reason = REFUSED[what]
    done = run("-c", PRELUDE.format(here=str(HERE), what=expression))
    assert done.returncode and reason in done.stderr, done.stderr[-3000:]


def test_the_pretended_gpu_counts_who_waits_for_it():
    code = "torch.ones(3, device='cuda').sum().item(); torch.ones(3, device='cuda').cpu()\n"
    code += "    torch.bincount(ends(1, 2), minlength=4); print(sum(waits.values()))"
    done = run("-c", PRELUDE.format(here=str(HERE), what=code))
    assert done.stdout.split() == ["3"], done.stderr[-3000:]


SAVE_AND_TRAIN = """
import sys
import torch
from megatron_qwen3.config import load
from megatron_qwen3.parallel.runtime import start
from megatron_qwen3.training import saver
from megatron_qwen3.training.batch import TokenBatch
from megatron_qwen3.training.engine import Engine
from megatron_qwen3.training.objectives import cross_entropy

settings = ["model.preset=tiny-dense", "train.precision=fp32", "train.steps=9", "run.device=cpu"]
settings += ["train.global_batch=2", "data.sequence_length=32", "run.dir=" + sys.argv[1]]
config = load([], settings)
engine = Engine(config, start(config))
ids = torch.arange(64).view(2, 32)
saver.save(engine, config, 0)
print(engine.train_step(TokenBatch.of(ids, ids), cross_entropy, 1e-3)["loss"])
"""


def test_a_cpu_goes_on_after_a_save_with_a_torch_that_is_built_for_cuda(tmp_path):
    done = run("-c", SAVE_AND_TRAIN, str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    assert 5 < float(done.stdout) < 8
