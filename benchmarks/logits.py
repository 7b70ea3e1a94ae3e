"""Cross-entropy from hidden states, forward and backward: seconds and memory of the ways to it.

    python benchmarks/logits.py                                 # float32 on a CPU
    python benchmarks/logits.py --positions 32768 --tile-mib 64 256 --rounds 2

Every way lives in a process of its own, and they take turns, so that a slow minute of the machine
hits all. The table gives the least seconds of all rounds, by the clock and of the processor; the
median, over rounds, of the processor's seconds by those of the first way; and by how much the
resident memory of the process rose at most above the inputs and gradients (Linux). `--memory kept`
uses the allocator setting of training, with which freed memory stays mapped: faster, and memory is
not measured.
"""

import argparse
import multiprocessing as mp
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))


class Alone:
    """A tensor-parallel group of one rank."""

    def rank(self) -> int:
        return 0

    def size(self) -> int:
        return 1


def loss_of(way: str) -> Callable[..., Any]:
    """(hidden [T, H], weight [V, H], labels [T]) -> the mean cross-entropy."""
    import torch.nn.functional as F

    from megatron_qwen3.model.logits import Logits

    if way == "plain":
        return lambda h, w, y: F.cross_entropy(h @ w.t(), y)
    if way == "torch, fused":
        return lambda h, w, y: F.linear_cross_entropy(h, w, y)
    if way == "torch, chunks":
        from torch.nn.modules.linear_cross_entropy_options import LinearCrossEntropyOptions

        options = LinearCrossEntropyOptions()
        return lambda h, w, y: F.linear_cross_entropy(h, w, y, options=options)
    tile_bytes = 1 << 60 if way == "ours, kept" else int(way.split()[-2]) << 20

    def ours(h: Any, w: Any, y: Any) -> Any:
        logits = Logits(h.unsqueeze(1), w, Alone(), tile_bytes)
        return -logits.scores(y.unsqueeze(1)).log_p.mean()

    return ours


def side(way: str, args: argparse.Namespace, pipe: Connection) -> None:
    """Answers every message with seconds, processor's seconds, MiB and the loss of one pass."""
    import torch

    from megatron_qwen3.cpu.allocator import keep_freed_memory

    if args.memory == "kept":
        keep_freed_memory()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    dtype = getattr(torch, args.dtype)
    hidden = torch.randn(args.positions, args.hidden).to(dtype).requires_grad_()
    weight = (torch.randn(args.vocabulary, args.hidden) / args.hidden**0.5).to(dtype)
    weight.requires_grad_()
    labels = torch.randint(args.vocabulary, (args.positions,))
    hidden.grad, weight.grad = torch.zeros_like(hidden), torch.zeros_like(weight)
    loss = loss_of(way)
    while pipe.recv():
        before = resident_from_now()
        start, cpu_start = time.perf_counter(), time.process_time()
        value = loss(hidden, weight, labels)
        value.backward()
        took = time.perf_counter() - start, time.process_time() - cpu_start
        pipe.send((*took, resident("VmHWM") - before, value.item()))


def resident_from_now() -> float:
    """MiB of this process; its highest mark, VmHWM, begins anew."""
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def resident(field: str) -> float:
    """MiB of this process: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def processor() -> str:
    """The processor's name, where the system tells it."""
    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text().splitlines() if cpus.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "an unknown processor"


def in_turns(
    side: Callable[..., None], ways: list[str], args: argparse.Namespace
) -> list[dict[str, Any]]:
    """The answers of each way's process in args.rounds + 1 rounds, one at work at any moment."""
    spawn, pipes = mp.get_context("spawn"), {}
    for way in ways:
        pipes[way], theirs = spawn.Pipe()
        spawn.Process(target=side, args=(way, args, theirs), daemon=True).start()
    rounds = []
    for _ in range(args.rounds + 1):
        answers = {}
        for way, pipe in pipes.items():
            pipe.send(True)
            answers[way] = pipe.recv()
        rounds.append(answers)
    for pipe in pipes.values():
        pipe.send(False)
    return rounds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--positions", type=int, default=4096)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=37984)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--tile-mib", type=int, nargs="+", default=[256])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", choices=["returned", "kept"], default="returned")
    parser.add_argument("--ways", nargs="+", help="of plain, 'torch, fused', 'torch, chunks' …")
    args = parser.parse_args()
    tiles = [f"ours, tiles of {mib} MiB" for mib in args.tile_mib]
    ways = args.ways or ["plain", "torch, fused", "torch, chunks", "ours, kept", *tiles]
    first, *rounds = in_turns(side, ways, args)  # which warms up, and pays for pages
    print(f"{processor()}, {args.threads} thread(s), {args.positions} positions,", end=" ")
    print(f"{args.hidden} wide, {args.vocabulary} columns, {args.dtype}; memory {args.memory}")
    print("| way | s | processor s | ratio | MiB | loss |\n|---|---|---|---|---|---|")
    for way in ways:
        clock, cpu, mib, loss = zip(*(answers[way] for answers in rounds), strict=True)
        ratio = statistics.median(answers[way][1] / answers[ways[0]][1] for answers in rounds)
        memory = f"{max(mib):.0f}" if args.memory == "returned" else "-"
        times = f"{min(clock):.2f} | {min(cpu):.2f} | {ratio:.2f}"
        print(f"| {way} | {times} | {memory} | {loss[0]:.5f} |")


if __name__ == "__main__":
    main()
