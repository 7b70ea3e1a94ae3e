"""run.deterministic: a run repeated on the same GPUs, in the same layout, has the same bits.

    check(config)      # ConfigError where the environment forbids it, before any rank starts
    begin(config)      # before the first kernel and the first communication

A GPU's fastest kernels add up in an order that changes from run to run: attention's gradient,
cuBLAS's products with a workspace for each stream, NCCL's sums inside the switch. Torch has
repeatable ones, and raises where it lacks one, which `failures.py` explains. On a CPU, with the
same number of threads, runs have the same bits anyway.
"""

import os

import torch

from megatron_qwen3.settings import Config, ConfigError

# The first value is set by default. Sources: cuBLAS's documentation, section 2.1.4,
# results reproducibility; Transformer Engine's of its variables; the choices of Megatron-LM's
# --deterministic-mode.
_ENVIRONMENT = {
    "CUBLAS_WORKSPACE_CONFIG": (":4096:8", ":16:8"),
    "NVTE_ALLOW_NONDETERMINISTIC_ALGO": ("0",),
    "NCCL_ALGO": ("^NVLS", "Ring", "Tree", "CollnetDirect", "CollnetChain"),
}


def check(config: Config) -> None:
    """ConfigError where a variable of the environment would allow other bits."""
    if not config.run.deterministic:
        return
    for name, choices in _ENVIRONMENT.items():
        if (value := os.environ.get(name, choices[0])) not in choices:
            raise ConfigError(
                f"run.deterministic = true, but the environment has {name}={value}; valid: none, "
                f"or one of {', '.join(choices)}"
            )


def begin(config: Config) -> None:
    """Select repeatable kernels of torch, cuBLAS and NCCL in this process, for good."""
    if not config.run.deterministic:
        return
    for name, choices in _ENVIRONMENT.items():
        os.environ.setdefault(name, choices[0])
    torch.use_deterministic_algorithms(True)  # fused attention's gradient follows it
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    # It would fill all new memory, to expose code that reads memory before writing it.
    torch.utils.deterministic.fill_uninitialized_memory = False
