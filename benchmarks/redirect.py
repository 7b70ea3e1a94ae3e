"""The cost for a training step of answering megatron-core's calls for a GPU on the CPU.

    python benchmarks/redirect.py

Counts, over one step of the dense benchmark model, the calls that pass through a wrapper of
`cpu/redirect.py` (constructors with their check for device="cuda"), times the seconds that a
wrapper adds to a call, and sets the product against the step. The other redirections replace a call
by a cheaper one.
"""

import statistics
import time
import timeit
from collections.abc import Callable

import torch
from train_step import DENSE, ours

from megatron_qwen3.config import load
from megatron_qwen3.cpu import redirect


def count_calls(step: Callable[[], float]) -> int:
    """Calls of wrapped constructors in one step."""
    calls = 0

    def counted(construct: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def call(*args: object, **kwargs: object) -> torch.Tensor:
            nonlocal calls
            calls += 1
            return construct(*args, **kwargs)

        return call

    wrapped = {name: getattr(torch, name) for name in redirect._CONSTRUCTORS}
    for name, construct in wrapped.items():
        setattr(torch, name, counted(construct))
    step()
    for name, construct in wrapped.items():
        setattr(torch, name, construct)
    return calls


def seconds_added_to_a_call() -> float:
    """How much longer a constructor takes with its wrapper than without."""
    bare = torch.empty.__wrapped__  # type: ignore[attr-defined]
    times = []
    for construct in (torch.empty, bare):
        timer = timeit.Timer(
            "f(1, device='cpu')", globals={"f": construct}, timer=time.process_time
        )
        times.append(min(timer.repeat(number=20_000, repeat=9)) / 20_000)
    return times[0] - times[1]


def main() -> None:
    settings = [f"model.{name}={value}" for name, value in DENSE.items()]
    settings += ["train.steps=9", "train.precision=fp32", "data.sequence_length=512"]
    config = load([], [*settings, "train.global_batch=4", "train.micro_batch=4"])
    torch.set_num_threads(2)
    step = ours(config)
    seconds = []
    for _ in range(4):
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)
    calls, added = count_calls(step), seconds_added_to_a_call()
    share = calls * added / statistics.median(seconds[1:])
    print(f"{calls} redirected calls x {added * 1e6:.2f} us = {share:.4%} of a step")


if __name__ == "__main__":
    main()
