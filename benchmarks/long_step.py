"""A training step of one long row: its memory, the loss's, and the gain of a second context rank.

    python benchmarks/long_step.py step                               # 32,768 tokens, two layers
    python benchmarks/long_step.py step --layers 4 --precision fp32 --lengths 8192 16384
    python benchmarks/long_step.py loss                               # 4,096 to 32,768 tokens
    python benchmarks/long_step.py ranks --layers 1 --rounds 3        # 16,384 tokens, 1 and 2 ranks

The model has Qwen3-0.6B's widths and --layers layers; a batch is one row, read as one text. Every
measurement lives in a process of its own, on a CPU.

step: forward, backward and AdamW with full recomputation. Told are the resident memory at its
highest (Linux) and its parts: the process without the model; weights, gradients and the optimizer's
state, resident before the step; tensors that live at a time beside these; and the rest, as freed
blocks that nothing fits into, and kernels' own, less the memory that the process had
free. Then the largest tensors that live when there are most, by type and shape, and, of several
lengths, the exponent of growth of all that a step takes.

loss: hidden states to log-probabilities of labels over the whole vocabulary, and back: the memory
above hidden states, the output matrix and its gradient, and the exponent of its growth.

ranks: a step with parallel.context = 2, one thread for each rank, with one rank of one thread and
with one of two. They take turns, and the first turn, which maps memory, is left out; the table
gives medians of seconds over the rounds, and of the ratios within a round.
"""

import argparse
import functools
import json
import os
import socket
import statistics
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
from attention import Step, exponent, show_growth  # beside this file
from live_memory import LiveMemory  # of tests, whose folder `attention` has found
from logits import Alone, processor, resident, resident_from_now
from train_step import RATE, Worker, random_tokens

from megatron_qwen3.config import Config, load
from megatron_qwen3.model.logits import Logits

MIB = 2**20
SHORT = 256  # tokens of a row that warms up
SIDES = {
    "one rank, one thread": (1, 1),
    "one rank, two threads": (1, 2),
    "two ranks, a thread each": (2, 1),
}


def configuration(options: argparse.Namespace, length: int, **parallel: object) -> Config:
    """A run of rows of `length` tokens; `parallel` is of that table."""
    settings: dict[str, object] = {
        "model.preset": "qwen3-0.6b",
        "model.num_layers": options.layers,
        "model.vocab_size": options.vocabulary,
        "run.device": "cpu",
        "train.precision": options.precision,
        "train.global_batch": 1,
        "train.steps": 1000,
        "data.sequence_length": length,
        "data.sources": [],
    } | {f"parallel.{name}": value for name, value in parallel.items()}
    return load([], [f"{key}={json.dumps(value)}" for key, value in settings.items()])


def engine_and_batches(config: Config) -> tuple[Any, list[Any]]:
    """An engine that has taken a step with the short batch, and that batch and the long one."""
    from megatron_qwen3.parallel.runtime import start
    from megatron_qwen3.training.batch import TokenBatch
    from megatron_qwen3.training.engine import Engine
    from megatron_qwen3.training.objectives import cross_entropy

    engine, tokens = Engine(config, start(config)), random_tokens(config)
    lengths = min(SHORT, config.data.sequence_length), config.data.sequence_length
    batches = [TokenBatch.of(tokens[:, :n], tokens[:, 1 : n + 1]) for n in lengths]
    engine.train_step(batches[0], cross_entropy, RATE)
    return engine, batches


def seconds_of_step(engine: Any, batch: Any) -> tuple[float, float]:
    """And the loss."""
    from megatron_qwen3.training.objectives import cross_entropy

    begin = time.perf_counter()
    loss: float = engine.train_step(batch, cross_entropy, RATE)["loss"]
    return time.perf_counter() - begin, loss


def held(engine: Any) -> dict[str, float]:
    """MiB that are there between two steps."""
    from megatron_qwen3.training.optim import state_tensors

    buffers = [b for each in engine.chunks for b in each.buffers + each.expert_parallel_buffers]
    tensors = {
        "weights": [p for chunk in engine.model.chunks for p in chunk.parameters()],
        "gradients": [buffer.grad_data for buffer in buffers],
        "optimizer": state_tensors(engine.optimizer),
    }
    return {name: sum(x.nbytes for x in those) / MIB for name, those in tensors.items()}


def memory_of_step(config: Config, threads: int, pipe: Connection) -> None:
    """Body of a worker that takes one step."""
    torch.set_num_threads(threads)
    engine, (short, batch) = engine_and_batches(config)
    parts = held(engine)
    with LiveMemory():  # which loads modules the first time
        seconds_of_step(engine, short)
    before = resident_from_now()
    with LiveMemory() as memory:
        seconds, loss = seconds_of_step(engine, batch)
    peak, tensors = resident("VmHWM"), memory.peak_bytes / MIB
    parts = {"process": before - sum(parts.values())} | parts
    parts |= {"tensors of the step": tensors, "beyond them": peak - before - tensors}
    shapes: Counter[str] = Counter()
    for size, dtype, shape in memory.at_peak:
        shapes[f"{str(dtype).removeprefix('torch.')} {[*shape]}"] += size
    pipe.send({
        "peak": peak,
        "parts": parts,
        "grown": (tensors, peak - before),
        "shapes": shapes.most_common(8),
        "seconds": seconds,
        "loss": loss,
    })  # fmt: skip


def show_step(options: argparse.Namespace) -> None:
    lengths, grown = options.lengths or [32768], []
    for length in lengths:
        config = configuration(options, length, recompute="full")
        worker = Worker(memory_of_step, config, options.threads)
        told = worker.pipe.recv()
        worker.process.join()
        grown.append(told["grown"])
        print(
            f"\n{length:,} tokens: {told['peak']:,.0f} MiB at most, {told['seconds']:.1f} s, "
            f"loss {told['loss']:.4f}"
        )
        for name, mib in told["parts"].items():
            print(f"  {name:24}{mib:10,.0f} MiB")
        print("  most of the step's tensors when there are most:")
        for name, size in told["shapes"]:
            print(f"    {name:32}{size / MIB:10,.0f} MiB", flush=True)
    if len(lengths) > 1:
        tensors, process = (exponent(lengths, mib) for mib in zip(*grown, strict=True))
        print(f"\nexponent: {tensors:.2f} of the step's tensors, {process:.2f} of the process")


def loss_step(options: argparse.Namespace, length: int) -> Step:
    """The output matrix is the embedding's, and has a gradient to add to, as an engine's has."""
    width, dtype = 1024, torch.bfloat16 if options.precision == "bf16" else torch.float32
    hidden = torch.randn(length, 1, width).to(dtype).requires_grad_()
    weight: Any = torch.empty(options.vocabulary, width, dtype=dtype).normal_(std=width**-0.5)
    weight.requires_grad_()
    weight.main_grad = torch.zeros(weight.shape).fill_(0.0)  # written to, so resident
    weight.grad_added_to_main_grad, weight.zero_out_wgrad = False, True
    labels = torch.randint(options.vocabulary, (length, 1))
    logits = Logits(hidden, weight, Alone())

    def step() -> object:
        return torch.autograd.grad(-logits.scores(labels).log_p.mean(), (hidden, weight))

    return step


def show_loss(options: argparse.Namespace) -> None:
    step = functools.partial(loss_step, options)
    show_growth({"loss": step}, options.lengths, options.threads)


def train(config: Config, threads: int, environment: dict[str, str], pipe: Connection) -> None:
    """Body of a worker, one rank: a step whenever the parent asks, until it says 0."""
    os.environ.update(environment)
    torch.set_num_threads(threads)
    engine, (_, batch) = engine_and_batches(config)
    pipe.send(None)
    while pipe.recv():
        pipe.send(seconds_of_step(engine, batch))


class Ranks:
    """The processes of one run."""

    def __init__(self, config: Config, threads: int) -> None:
        ranks = config.parallel.context
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            port = probe.getsockname()[1]
        self.workers = [
            Worker(train, config, threads, of_rank(rank, ranks, port)) for rank in range(ranks)
        ]
        for worker in self.workers:
            worker.pipe.recv()

    def step(self) -> tuple[float, float]:
        """Seconds until the last rank is done, and the loss."""
        for worker in self.workers:
            worker.pipe.send(1)
        return max(worker.pipe.recv() for worker in self.workers)

    def stop(self) -> None:
        for worker in self.workers:
            worker.pipe.send(0)
        for worker in self.workers:
            worker.process.join()


def of_rank(rank: int, ranks: int, port: int) -> dict[str, str]:
    """Variables that a launcher on one machine sets."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    return {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)} | {
        name: str(number) for name, number in numbers.items()
    }


def show_ranks(options: argparse.Namespace) -> None:
    for length in options.lengths or [16384]:
        sides = {
            name: Ranks(configuration(options, length, context=ranks), threads)
            for name, (ranks, threads) in SIDES.items()
        }
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        losses = {name: side.step()[1] for name, side in sides.items()}
        for turn in range(options.rounds):
            for name in sides if turn % 2 == 0 else reversed(sides):
                seconds[name].append(sides[name].step()[0])
        for side in sides.values():
            side.stop()
        print_turns(length, seconds, losses)


def print_turns(length: int, seconds: dict[str, list[float]], losses: dict[str, float]) -> None:
    *others, last = seconds
    print(f"\n{length:,} tokens{'s/step':>24}{f'by {last}':>28}{'first loss':>12}")
    for name, of_side in seconds.items():
        ratios = [a / b for a, b in zip(of_side, seconds[last], strict=True)]
        print(
            f"{name:27}{statistics.median(of_side):10.2f}{statistics.median(ratios):28.2f}"
            f"{losses[name]:12.7f}"
        )


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "step": show_step,
    "loss": show_loss,
    "ranks": show_ranks,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("--lengths", type=int, nargs="+", help="tokens of the row")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--threads", type=int, default=2, help="of step and loss")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each of the ranks")
    options = parser.parse_args()
    print(
        f"{processor()}, torch {torch.__version__}, {options.precision}, {options.layers} layers, "
        f"{options.vocabulary:,} ids"
    )
    PARTS[options.part](options)


if __name__ == "__main__":
    main()
