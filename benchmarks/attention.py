"""Attention of packed documents: by stretches, and by the dense mask that says the same.

    python benchmarks/attention.py                  # rows of 2,048, 4,096 and 8,192 tokens
    python benchmarks/attention.py --lengths 1024 --document 100 --threads 1

Forward and backward of one layer's attention over one row of documents of about --document tokens.
The sides take turns in one process; the table gives the median of seconds and of CPU seconds (the
ones that count where others use the processor too), their ratios, and the most bytes of tensors
that live at a time beside queries, keys and values, the same on any machine.
"""

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_qwen3.model.attention import attention
from megatron_qwen3.model.stretches import Stretches

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from live_memory import LiveMemory  # noqa: E402

HEADS, GROUPS, HEAD_DIM = 8, 4, 64
Side = Callable[[Tensor, Tensor, Tensor, Stretches], Tensor]


class Measured(NamedTuple):
    """Of one step: medians, and the most bytes that live at a time."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int


def dense(q: Tensor, k: Tensor, v: Tensor, stretches: Stretches) -> Tensor:
    """A bool mask [1, 1, S, S], made anew by every layer."""
    document = (stretches.positions_BS() == 0).cumsum(1)
    mask = (document[:, None, :, None] == document[:, None, None, :]).tril()
    heads = (x.permute(1, 2, 0, 3) for x in (q, k, v))
    mixed = F.scaled_dot_product_attention(*heads, attn_mask=mask, enable_gqa=True)
    return mixed.permute(2, 0, 1, 3).flatten(2)


SIDES: dict[str, Side] = {"dense mask": dense, "stretches": attention}


def packed_row(length: int, document: int) -> Stretches:
    """Documents of half to one and a half times `document` tokens, the same ones each time."""
    lengths, starts = random.Random(length), [0]
    while starts[-1] < length:
        starts.append(starts[-1] + lengths.randint(max(1, document // 2), document * 3 // 2))
    return Stretches.of([starts[:-1]], length)


def heads(length: int) -> list[Tensor]:
    """q, k and v that lie in memory as rotation leaves them, [1, heads, S, D]."""
    shapes = ((1, n, length, HEAD_DIM) for n in (HEADS, GROUPS, GROUPS))
    return [torch.randn(shape).permute(2, 0, 1, 3).requires_grad_() for shape in shapes]


def measured(length: int, document: int, rounds: int) -> dict[str, Measured]:
    """Every side's step on the same row, in turns; the first, which counts bytes, is not timed."""
    stretches, inputs = packed_row(length, document), heads(length)
    grad = torch.randn(length, 1, HEADS * HEAD_DIM)

    def step(side: Side) -> list[Tensor]:
        mixed = side(*inputs, stretches)
        return [mixed.detach(), *torch.autograd.grad(mixed, inputs, grad)]

    peaks, results = {}, []
    for name, side in SIDES.items():
        with LiveMemory() as memory:
            results.append(step(side))
        peaks[name] = memory.peak_bytes
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    times: dict[str, Any] = {name: [] for name in SIDES}
    for _ in range(rounds):
        for name, side in SIDES.items():
            begin = time.perf_counter(), time.process_time()
            step(side)
            times[name].append((time.perf_counter() - begin[0], time.process_time() - begin[1]))
    return {
        name: Measured(*(statistics.median(x) for x in zip(*times[name], strict=True)), peaks[name])
        for name in SIDES
    }


def processor() -> str:
    """The processor's name, where the system tells it."""
    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text().splitlines() if cpus.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "an unknown processor"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 4096, 8192])
    parser.add_argument("--document", type=int, default=500, help="tokens of a document, about")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(
        f"{processor()}, {options.threads} threads, torch {torch.__version__}, float32, "
        f"{HEADS} heads in {GROUPS} groups of {HEAD_DIM}, documents of about {options.document}"
    )
    print(f"{'tokens':>7}  {'side':10}  {'seconds':>8}  {'CPU s':>8}  {'MiB':>7}")
    for length in options.lengths:
        sides = measured(length, options.document, options.rounds)
        for name, of in sides.items():
            mib = of.peak_bytes / 2**20
            print(f"{length:7,}  {name:10}  {of.seconds:8.3f}  {of.cpu_seconds:8.3f}  {mib:7.1f}")
        ratios = [a / b for a, b in zip(sides["dense mask"], sides["stretches"], strict=True)]
        print(f"{length:7,}  {'ratio':10}  {ratios[0]:8.1f}  {ratios[1]:8.1f}  {ratios[2]:7.1f}")


if __name__ == "__main__":
    main()
