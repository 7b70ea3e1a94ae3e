"""Modules that the server of ranks imports before it forks any: each then starts in a moment.

Beside the imports of a test, torch imports much at a rank's first optimizer step and at its
first look at transformers' models; none of it starts a thread, which a fork would lose.
"""

import contextlib
import gc
import importlib

for _name in (
    "megatron_qwen3.train",
    "megatron_qwen3.pretrain.loop",
    "megatron_qwen3.posttrain.sft",
    "megatron_qwen3.posttrain.reward",
    "megatron_qwen3.generate.__main__",
    "megatron_qwen3.generate.session",
    "megatron_qwen3.convert.verify",
    "numpy.random",
    "torch._dynamo",
    "torch._inductor.utils",
    "transformers.models.qwen3.modeling_qwen3",
    "transformers.models.qwen3_moe.modeling_qwen3_moe",
    "pytest",  # a function lives in a test module that imports it
):
    with contextlib.suppress(ImportError):  # of an extra that is not installed
        importlib.import_module(_name)
gc.collect()
gc.freeze()  # no rank looks through the objects that all share
