"""Speed and memory of a conversion, on checkpoints shaped like Qwen3-30B-A3B with few layers.

    python benchmarks/convert.py                      # 2, 4 and 8 layers; needs 33 GB of disk
    python benchmarks/convert.py --layers 2 --folder /scratch

In turns, `--rounds` times: cp of the HF folder, HF -> ours, cp of ours, ours -> HF. Each is a
process of its own that removes the files of the one before it and starts at once: so all find the
same memory free, which matters where a virtual machine gets fresh memory from its host. `GB/s` is
bytes of weights per second, without the seconds in which Python imports torch (`start`); `of cp`
is the median of the ratios to the cp just before; `peak` is the most resident memory that the
process ever had, of which `import` was there before the conversion began.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a plain checkout

from megatron_qwen3.config import load
from megatron_qwen3.model.flops import parameter_count
from megatron_qwen3.settings import ModelConfig

_CHILD = """
import shutil, sys, time
start = time.perf_counter()
from pathlib import Path
from megatron_qwen3.convert import stream
def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
imported, before = time.perf_counter() - start, peak()
direction, source, target, last = sys.argv[1:]
shutil.rmtree(last, ignore_errors=True)
start = time.perf_counter()
getattr(stream, direction)(Path(source), Path(target))
print(imported, time.perf_counter() - start, before, peak())
"""


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark_convert"))
    given = parser.parse_args()
    print("layers     GB   direction  cp GB/s    GB/s   of cp   start s   import MiB   peak MiB")
    for layers in given.layers:
        model = load(
            [], ["model.preset=qwen3-30b-a3b", f"model.num_layers={layers}", "train.steps=1"]
        ).model
        try:
            measure(model, given.folder, given.rounds)
        finally:
            shutil.rmtree(given.folder, ignore_errors=True)


def measure(model: ModelConfig, folder: Path, rounds: int) -> None:
    """All rounds of one size; two lines, one for each direction."""
    source, ours = make_model(model, folder / "hf"), folder / "ours"
    size, last = 2 * parameter_count(model) / 1e9, folder / "none"
    convert("from_hf", source, ours, last)
    runs: dict[str, list[tuple[float, ...]]] = {"from_hf": [], "to_hf": []}
    for turn in range(rounds):
        for direction, read in (("from_hf", source), ("to_hf", ours)):
            copied, converted = (folder / f"{kind}{turn}{direction}" for kind in ("cp", "out"))
            seconds = copy(read, copied, last)
            runs[direction].append((seconds, *convert(direction, read, converted, copied)))
            last = converted
    for direction, results in runs.items():
        copies, converts, starts, before, peaks = zip(*results, strict=True)
        rate, cp_rate = (size / statistics.median(times) for times in (converts, copies))
        share = statistics.median(c / s for c, s in zip(copies, converts, strict=True))
        print(
            f"{model.num_layers:6} {size:6.2f}   {direction:9} {cp_rate:7.2f} {rate:7.2f} "
            f"{share:7.2f} {starts[-1]:9.1f} {before[-1]:12} {max(peaks):10}",
            flush=True,
        )


def make_model(model: ModelConfig, folder: Path) -> Path:
    """An HF folder of this shape; its weights are the same random MiB again and again."""
    import numpy as np
    import torch

    from megatron_qwen3.convert import hf_config, hf_writer
    from megatron_qwen3.convert.mapping import in_order
    from megatron_qwen3.settings_rope import RopeConfig

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    hf_config.write_config(folder, model, RopeConfig(), 4096, "bfloat16", {})
    shapes = [
        (weight.part_name(part, index), weight.part_shape(part), torch.bfloat16)
        for weight, index in in_order(model)
        for part in range(len(weight.parts))
    ]
    sink = hf_writer.Sink(folder, shapes)
    noise = np.frombuffer(os.urandom(1 << 20), np.uint8)
    for name, shape, _ in shapes:
        total = 2 * int(np.prod(shape))
        for start in range(0, total, len(noise)):
            sink.write(name, start, noise[: total - start])
    sink.close()
    return folder


def copy(source: Path, target: Path, last: Path) -> float:
    """Seconds that cp needs."""
    os.sync()
    shutil.rmtree(last, ignore_errors=True)
    start = time.perf_counter()
    subprocess.run(["cp", "-r", source, target], check=True)
    return time.perf_counter() - start


def convert(direction: str, source: Path, target: Path, last: Path) -> tuple[float, ...]:
    """(seconds of the conversion, of the imports before it, MiB after these, MiB at most)."""
    os.sync()
    command = [sys.executable, "-c", _CHILD, direction, source, target, last]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    start, seconds, before, peak = done.stdout.split()
    return float(seconds), float(start), int(before) // 1024, int(peak) // 1024


if __name__ == "__main__":
    main()
