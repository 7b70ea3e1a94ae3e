"""Attention of packed documents, in chunks, and how its memory grows with the length of rows.

    python benchmarks/attention.py                              # all three, on this CPU
    python benchmarks/attention.py packed --lengths 1024 --document 100 --threads 1
    python benchmarks/attention.py chunks --lengths 8192 --chunk 4096 --local 512 --rounds 3
    python benchmarks/attention.py memory --lengths 1024 2048 4096

packed: forward and backward of one row of documents of about --document tokens, by stretches, by
one call of torch for each document, and by the dense mask that says the same. chunks: forward from
normed queries and keys, rotations included, as one text and under Dual Chunk Attention. Sides take
turns in one process; tables give medians of seconds and of CPU seconds (the ones that count where
others use the processor too) and the median, over rounds, of the ratios of CPU seconds.

memory: forward and backward; the most bytes of tensors that live at a time beside queries, keys and
values, the same on any machine, and by how much the resident memory of a fresh process rose at most
(Linux), each with the exponent of its growth, fitted to all lengths.
"""

import argparse
import functools
import math
import multiprocessing as mp
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from logits import processor, resident, resident_from_now  # beside this file
from torch import Tensor

from megatron_qwen3.model import ops
from megatron_qwen3.model.attention import attention
from megatron_qwen3.model.dca import DualChunk
from megatron_qwen3.model.reads import Reads
from megatron_qwen3.model.stretches import Stretches

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from live_memory import LiveMemory  # noqa: E402

HEADS, GROUPS, HEAD_DIM = 8, 4, 64
Step = Callable[[], object]


class Heads(NamedTuple):
    """q, k and v that lie in memory as rotation leaves them, [1, heads, S, D]."""

    q: Tensor
    k: Tensor
    v: Tensor

    @classmethod
    def of(cls, length: int) -> "Heads":
        shapes = ((1, n, length, HEAD_DIM) for n in (HEADS, GROUPS, GROUPS))
        return cls(*(torch.randn(shape).permute(2, 0, 1, 3).requires_grad_() for shape in shapes))


def packed_row(length: int, document: int) -> Stretches:
    """Documents of half to one and a half times `document` tokens, the same ones each time."""
    lengths, starts = random.Random(length), [0]
    while starts[-1] < length:
        starts.append(starts[-1] + lengths.randint(max(1, document // 2), document * 3 // 2))
    return Stretches.of([starts[:-1]], length)


def dense(heads: Heads, stretches: Stretches) -> Tensor:
    """A bool mask [1, 1, S, S], made anew by every layer."""
    document = (stretches.positions_BS() == 0).cumsum(1)
    mask = (document[:, None, :, None] == document[:, None, None, :]).tril()
    q, k, v = (x.permute(1, 2, 0, 3) for x in heads)
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    return mixed.permute(2, 0, 1, 3).flatten(2)


def packed_sides(length: int, options: argparse.Namespace) -> dict[str, Step]:
    """Each gives the result and its gradients; the documents alone share nothing."""
    heads, stretches = Heads.of(length), packed_row(length, options.document)
    grad = torch.randn(length, 1, HEADS * HEAD_DIM)
    pieces = [
        [x.permute(1, 2, 0, 3).detach().contiguous().requires_grad_() for x in parts]
        for parts in zip(*(x.split(stretches.lengths) for x in heads), strict=True)
    ]
    grads = [torch.randn_like(q) for q, _, _ in pieces]

    def through(mixed: Tensor) -> list[Tensor]:
        return [mixed.detach(), *torch.autograd.grad(mixed, heads, grad)]

    def alone() -> None:
        for qkv, of_document in zip(pieces, grads, strict=True):
            mixed = F.scaled_dot_product_attention(*qkv, is_causal=True, enable_gqa=True)
            torch.autograd.grad(mixed, qkv, of_document)

    reads = Reads.of(1, length, stretches)
    ours, theirs = through(attention(*heads, reads)), through(dense(heads, stretches))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    return {
        "each document alone": alone,
        "stretches": lambda: through(attention(*heads, reads)),
        "dense mask": lambda: through(dense(heads, stretches)),
    }


def angles(position_SB: Tensor) -> Tensor:
    """cos and sin as RotaryTables.at gives them, base 1e6."""
    inv_freq = 1e6 ** (-torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    angle = (position_SB[..., None] * inv_freq).repeat(1, 1, 2)
    return torch.stack([angle.cos(), angle.sin()])[:, :, :, None]


def in_chunks(length: int, dual: DualChunk) -> Callable[[Heads], Tensor]:
    """Attention from normed queries and keys; tables are made once for all layers."""
    place_S1 = torch.arange(length)[:, None]
    of_keys = dual.key_table(angles, place_S1)
    tables = dual.query_tables(angles, place_S1[: dual.chunk])

    def run(heads: Heads) -> Tensor:
        reads = Reads.of(1, length, chunk=dual.chunk)
        return attention(heads.q, ops.rotated(heads.k, *of_keys), heads.v, reads, tables)

    return run


def chunk_sides(length: int, options: argparse.Namespace) -> dict[str, Step]:
    """Forward alone."""
    heads = Heads(*(x.detach() for x in Heads.of(length)))
    table = angles(torch.arange(length)[:, None])

    def plain() -> Tensor:
        return attention(*ops.rope(heads.q, heads.k, *table), heads.v)

    dual = in_chunks(length, DualChunk(options.chunk, options.local))
    return {"one text": plain, f"chunks of {options.chunk:,}": lambda: dual(heads)}


def compare(sides: dict[str, Step], rounds: int) -> dict[str, tuple[float, float, float]]:
    """Seconds, CPU seconds, and CPU seconds by those of the first side: medians of all rounds."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, step in sides.items():
            begin = time.perf_counter(), time.process_time()
            step()
            spent = time.perf_counter() - begin[0], time.process_time() - begin[1]
            if number:  # the first warms up
                times[name].append(spent)
    first = [cpu for _, cpu in next(iter(times.values()))]
    found = {}
    for name, of_side in times.items():
        seconds, cpu = zip(*of_side, strict=True)
        ratios = [a / b for a, b in zip(cpu, first, strict=True)]
        found[name] = tuple(statistics.median(x) for x in (seconds, cpu, ratios))
    return found


def memory_of(make: Callable[[int], Step], length: int, threads: int) -> tuple[float, float]:
    """MiB of tensors, and of the process, that a step takes, measured in a process of its own.

    make: gives the step of so many tokens, with all that is there before it.
    """
    with mp.get_context("spawn").Pool(1) as pool:
        found: tuple[float, float] = pool.apply(_memory_here, (make, length, threads))
    return found


def _memory_here(make: Callable[[int], Step], length: int, threads: int) -> tuple[float, float]:
    torch.set_num_threads(threads)
    with LiveMemory():  # which loads modules the first time
        make(256)()
    step = make(length)
    before = resident_from_now()
    with LiveMemory() as memory:
        step()
    return memory.peak_bytes / 2**20, resident("VmHWM") - before


def memory_step(side: str, options: argparse.Namespace, length: int) -> Step:
    """Forward and backward of a row."""
    heads = Heads.of(length)
    forward: Callable[[Heads], Tensor] = lambda heads: attention(*heads)  # noqa: E731
    if side == "packed documents":
        reads = Reads.of(1, length, packed_row(length, options.document))
        forward = lambda heads: attention(*heads, reads)  # noqa: E731
    elif side == "chunks":
        forward = in_chunks(length, DualChunk(options.chunk, options.local))
    return lambda: torch.autograd.grad(forward(heads).sum(), heads)


def exponent(lengths: Sequence[int], mib: Sequence[float]) -> float:
    """Of growth, by least squares of logarithms."""
    x, y = ([math.log(each) for each in values] for values in (lengths, mib))
    return statistics.linear_regression(x, y).slope


def show_times(
    sides_of: Callable[[int, argparse.Namespace], dict[str, Step]],
    lengths: Sequence[int],
    options: argparse.Namespace,
) -> None:
    print(f"\n{'tokens':>7}  {'side':20}  {'seconds':>8}  {'CPU s':>8}  {'ratio':>6}")
    for length in options.lengths or lengths:
        for name, (seconds, cpu, ratio) in compare(
            sides_of(length, options), options.rounds
        ).items():
            print(f"{length:7,}  {name:20}  {seconds:8.3f}  {cpu:8.3f}  {ratio:6.2f}", flush=True)


def show_memory(options: argparse.Namespace) -> None:
    steps = {
        side: functools.partial(memory_step, side, options)
        for side in ("one text", "packed documents", "chunks")
    }
    show_growth(steps, options.lengths, options.threads)


def show_growth(
    steps: dict[str, Callable[[int], Step]], lengths: Sequence[int] | None, threads: int
) -> None:
    """Print a table of the memory of each step at all lengths, 4k to 32k by default."""
    lengths = lengths or [4096, 8192, 16384, 32768]
    print(f"\n{'tokens':>7}  {'side':20}  {'MiB of tensors':>15}  {'MiB of process':>15}")
    for side, make in steps.items():
        found = []
        for length in lengths:
            found.append(memory_of(make, length, threads))
            tensors, process = found[-1]
            print(f"{length:7,}  {side:20}  {tensors:15.1f}  {process:15.1f}", flush=True)
        grown = (exponent(lengths, mib) for mib in zip(*found, strict=True))
        print(f"{'':7}  {'exponent':20}  " + "  ".join(f"{each:15.2f}" for each in grown))


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "packed": functools.partial(show_times, packed_sides, (2048, 4096, 8192)),
    "chunks": functools.partial(show_times, chunk_sides, (8192, 16384)),
    "memory": show_memory,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--lengths", type=int, nargs="+", help="tokens of a row")
    parser.add_argument("--document", type=int, default=500, help="tokens of a document, about")
    parser.add_argument("--chunk", type=int, default=2048, help="chunk size")
    parser.add_argument("--local", type=int, default=256, help="local size")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    for part in options.parts:
        if part not in PARTS:
            parser.error(f"{part} is no part; valid: {', '.join(PARTS)}")
    torch.set_num_threads(options.threads)
    print(
        f"{processor()}, {options.threads} threads, torch {torch.__version__}, float32, "
        f"{HEADS} heads in {GROUPS} groups of {HEAD_DIM}, documents of about {options.document}"
    )
    for part in options.parts or PARTS:
        PARTS[part](options)


if __name__ == "__main__":
    main()
