"""Importing the product asks nothing of a GPU but whether there is one.

Each rank has a GPU of its own, which it learns when it starts. A module that makes a tensor, or
asks for the current device, while it is imported, takes the first GPU in every process.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# As on a machine with GPUs, where every other question to torch.cuda, or to CUDA below it, raises.
_IMPORTER = """
import importlib, pkgutil, types
import torch
torch.compile = lambda function, *args, **kwargs: function  # half of the time of megatron-core
import megatron.core.parallel_state, megatron.core.models.gpt  # what they ask is not ours

def asked(name):
    def fail(*args, **kwargs):
        raise AssertionError(f"torch.cuda.{name} was called while a module was imported")
    return fail

for name, value in list(vars(torch.cuda).items()):
    if isinstance(value, types.FunctionType) and not name.startswith("__"):
        setattr(torch.cuda, name, asked(name))
torch.cuda.is_available = lambda: True

import megatron_qwen3
count = 0
for module in pkgutil.walk_packages(megatron_qwen3.__path__, "megatron_qwen3."):
    importlib.import_module(module.name)
    count += 1

from megatron_qwen3.cpu import redirect
assert not redirect.REDIRECTED and count > 80, count
tensors = [
    f"{name}.{key}"
    for name, module in list(__import__("sys").modules.items())
    if name.startswith("megatron_qwen3.")
    for key, value in vars(module).items()
    if isinstance(value, torch.Tensor)
]
assert not tensors, tensors
"""


def test_no_module_asks_a_gpu_or_makes_a_tensor_while_it_is_imported():
    command = [sys.executable, "-c", _IMPORTER]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
