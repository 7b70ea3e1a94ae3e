"""The cost of saving for a training step, and the time of a resume.

    python benchmarks/checkpoint.py            # the dense model of benchmarks/train_step.py

One process per side, in turns within one run: every turn is `--every` steps; `never` saves nothing,
`asynchronous` begins a save after the first of them, `stopping` stops for it. The cost is the
median, over the rounds, of a side's seconds per turn against those of `never` in the same round.
CPU seconds of a step and of a save, which other work on the machine hardly moves, bound it from
above: a save that keeps one core busy that long costs at most that, and less where a core is idle.
Then the last checkpoint is resumed by a new process: everything up to the first step, and the
reading (checksums and loading) by itself.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from train_step import DENSE, RATE, Worker, configuration, random_tokens

from megatron_qwen3.config import Config

SIDES = {"never": None, "asynchronous": True, "stopping": False}


def work(side: str, config: Config, every: int, threads: int, pipe: Connection) -> None:
    """Body of a worker: a turn of `every` steps whenever it is asked; seconds of each."""
    import torch

    from megatron_qwen3.parallel.runtime import start
    from megatron_qwen3.training.batch import TokenBatch
    from megatron_qwen3.training.engine import Engine
    from megatron_qwen3.training.objectives import cross_entropy
    from megatron_qwen3.training.progress import Progress
    from megatron_qwen3.training.saver import Saver

    torch.set_num_threads(threads)
    engine = Engine(config, start(config))
    saver = Saver(engine, config)
    tokens = random_tokens(config)
    batch = TokenBatch.of(tokens[:, :-1], tokens[:, 1:])
    engine.train_step(batch, cross_entropy, RATE)
    pipe.send(cpu_seconds(lambda: engine.train_step(batch, cross_entropy, RATE), saver))
    done = 2
    while pipe.recv():
        seconds, copying = [], 0.0
        for index in range(every):
            begin = time.perf_counter()
            engine.train_step(batch, cross_entropy, RATE)
            done += 1
            if index == 0 and SIDES[side] is not None:
                saver.start(Progress(done))
                copying = time.perf_counter() - begin
                if not SIDES[side]:
                    saver.wait()
            saver.observe([saver.state])  # of the only rank
            seconds.append(time.perf_counter() - begin)
        saver.wait()
        pipe.send({"seconds": seconds, "first": copying})


def cpu_seconds(step: Callable[[], Any], saver: Any) -> dict[str, float]:
    """CPU seconds of one step, of the copy that it waits for, and of a whole save."""
    from megatron_qwen3.training.progress import Progress

    begin = time.process_time()
    step()
    stepped = time.process_time()
    saver.start(Progress(1))  # allocates the copy: that is paid once
    saver.wait()
    again = time.process_time()
    saver.start(Progress(2))
    copied = time.process_time()
    saver.wait()
    return {
        "step": stepped - begin,
        "copy": copied - again,
        "save": time.process_time() - again,
    }


def resume(config: Config, threads: int, pipe: Connection) -> None:
    """Body of a worker that goes on from the newest checkpoint; seconds of its parts."""
    import torch

    from megatron_qwen3.parallel.runtime import start
    from megatron_qwen3.training import checkpoint
    from megatron_qwen3.training.batch import TokenBatch
    from megatron_qwen3.training.engine import Engine
    from megatron_qwen3.training.objectives import cross_entropy

    torch.set_num_threads(threads)
    engine = Engine(config, start(config))
    begin = time.perf_counter()
    path, _ = checkpoint.newest_intact(config.run_dir, in_full=True)
    assert path is not None
    verified = time.perf_counter()
    checkpoint.load(engine, path)
    loaded = time.perf_counter()
    tokens = random_tokens(config)
    engine.train_step(TokenBatch.of(tokens[:, :-1], tokens[:, 1:]), cross_entropy, RATE)
    ended = time.perf_counter()
    total = sum(file.stat().st_size for file in path.iterdir())
    pipe.send({
        "verify_seconds": verified - begin,
        "load_seconds": loaded - verified,
        "first_step_seconds": ended - loaded,
        "checkpoint_bytes": total,
    })  # fmt: skip


def measure(config: Config, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds per turn of every side by round, and the resume."""
    home = Path(tempfile.mkdtemp(prefix="checkpoint_benchmark_"))
    workers, cpu = {}, {}
    for side, asynchronous in SIDES.items():
        own = replace(
            config,
            run=replace(config.run, dir=str(home / side)),
            checkpoint=replace(config.checkpoint, keep=1, asynchronous=bool(asynchronous)),
        )
        workers[side] = Worker(work, side, own, options.every, options.threads)
        cpu[side] = workers[side].pipe.recv()
    turns: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for turn in range(options.rounds):
        names = list(SIDES)
        for side in names[turn % 3 :] + names[: turn % 3]:
            turns[side].append(workers[side].ask(1))
    for worker in workers.values():
        worker.stop()
    begin = time.perf_counter()
    own = replace(config, run=replace(config.run, dir=str(home / "asynchronous")))
    again = Worker(resume, own, options.threads)
    parts = again.pipe.recv() | {"launch_to_step_seconds": time.perf_counter() - begin}
    again.process.join()
    return {"turns": turns, "cpu": cpu["asynchronous"], "resume": parts}


def print_table(result: dict[str, Any], every: int) -> None:
    turns = {
        side: [sum(turn["seconds"]) for turn in rounds] for side, rounds in result["turns"].items()
    }
    print(f"{'':<14}{'s/step':>8}{'slowest':>9}{f'cost at a save every {every}':>27}")
    for side, seconds in turns.items():
        ratios = [own / never for own, never in zip(seconds, turns["never"], strict=True)]
        slowest = statistics.median(max(turn["seconds"]) for turn in result["turns"][side])
        step = statistics.median(seconds) / every
        print(f"{side:<14}{step:8.3f}{slowest:9.3f}{statistics.median(ratios) - 1:+27.1%}")
    cpu = result["cpu"]
    print(
        f"CPU seconds: step {cpu['step']:.2f}, save {cpu['save']:.2f} (copy {cpu['copy']:.2f}): "
        f"{cpu['save'] / cpu['step'] / every:.1%} at a save every {every}"
    )
    parts = result["resume"]
    reading = parts["verify_seconds"] + parts["load_seconds"]
    rest = parts["launch_to_step_seconds"] - reading - parts["first_step_seconds"]
    print(
        f"\nresume of {parts['checkpoint_bytes'] / 1e6:.0f} MB: {rest:.1f} s from launch, "
        f"checksums {parts['verify_seconds']:.2f} s, loading {parts['load_seconds']:.2f} s, "
        f"first step {parts['first_step_seconds']:.2f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--every", type=int, default=20, help="steps of a turn, with one save")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=4, help="sequences a step")
    parser.add_argument("--json", metavar="FILE", help="write everything measured there as well")
    options = parser.parse_args()
    for name in ("device", "micro_batch", "sequence_length", "layers"):
        setattr(options, name, "cpu" if name == "device" else 0)
    config = configuration(DENSE, options)
    result = measure(config, options)
    print_table(result, options.every)
    if options.json:
        Path(options.json).write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
