"""The cost of new weights for a server of vLLM: seconds of a refit, and bytes/s against `cp`.

    python benchmarks/refit.py --python .venv-vllm/bin/python                  # the tiny models
    python benchmarks/refit.py --python … --way gloo model.preset=qwen3-0.6b   # another one

One rank and one server on this machine. A refit is all of it: the weights gathered and sent, loaded
and packed by the server, its cache emptied, and two prompts compared with the model in training,
which is the check. The first refit of a server, which computes for the first time then, is left
out. In turns with it, in the same round, `cp` copies a folder of the same bytes from memory to
memory; writing is the gathering and writing alone, to memory, with a checksum of each tensor.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from megatron_qwen3.config import Config, load
from megatron_qwen3.settings_rollouts import RolloutsConfig, VllmConfig

TINY = (["model.preset=tiny-dense"], ["model.preset=tiny-moe"])
SHARED_MEMORY = Path("/dev/shm")


def configuration(settings: list[str], options: argparse.Namespace, home: Path) -> Config:
    base = ["train.steps=1", "train.global_batch=1", "run.device=cpu", "data.sequence_length=256"]
    config = load([], [*base, f"train.precision={options.precision}", *settings])
    limit = 1e-4 if options.precision == "fp32" else 1.0
    vllm = VllmConfig(
        python=options.python, refit=options.way, cache_bytes=1 << 27, difference=limit
    )
    return replace(
        config,
        run=replace(config.run, dir=str(home), name="refit"),
        rollouts=RolloutsConfig(engine="vllm", vllm=vllm),
    )


def measure(config: Config, rounds: int) -> dict[str, Any]:
    """Seconds of each round: of the refit and its check, of `cp`, of writing alone."""
    import torch

    from megatron_qwen3.generate.thinking import ThinkingBudget
    from megatron_qwen3.parallel import runtime
    from megatron_qwen3.posttrain.rollouts import refit
    from megatron_qwen3.posttrain.rollouts.gather import Gathered
    from megatron_qwen3.posttrain.rollouts.vllm import VllmEngine
    from megatron_qwen3.training.model import Model

    def none(tokens: int) -> ThinkingBudget:
        raise AssertionError("nothing is sampled here")

    torch.set_num_threads(1)
    model = Model(config, runtime.start(config))
    found: dict[str, Any] = {"refit": [], "check": [], "cp": [], "write": []}
    folder = Path(tempfile.mkdtemp(prefix="refit_benchmark_", dir=SHARED_MEMORY))
    weights = Gathered(model)
    try:
        with VllmEngine(config, model, [], none) as engine:
            engine.refit(version=0)
            for number in range(rounds):
                began = time.perf_counter()
                refit.write(weights, folder / "weights", config.rollouts.vllm.bucket_bytes, True)
                found["write"].append(time.perf_counter() - began)
                shutil.rmtree(folder / "copy", ignore_errors=True)
                began = time.perf_counter()
                subprocess.run(["cp", "-r", folder / "weights", folder / "copy"], check=True)
                found["cp"].append(time.perf_counter() - began)
                with torch.no_grad():
                    for parameter in model.chunks[0].parameters():
                        parameter.mul_(1.001)
                engine.refit(version=number + 1)
                found["refit"].append(engine.refits.seconds)
                found["check"].append(engine.refits.check_seconds)
            return found | asdict(engine.refits)
    finally:
        shutil.rmtree(folder)
        runtime.stop()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", required=True, help="of an environment with vLLM")
    parser.add_argument("--way", choices=("folder", "gloo"), default="folder")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", metavar="FILE", help="write everything measured there as well")
    parser.add_argument("settings", nargs="*", help="of the model, as model.preset=qwen3-0.6b")
    options = parser.parse_args()
    results = {}
    print(
        f"{'':<24}{'MB':>8}{'refit s':>9}{'check s':>9}{'MB/s':>8}{'write MB/s':>12}"
        f"{'cp MB/s':>9}{'off by':>9}"
    )
    for settings in [options.settings] if options.settings else TINY:
        with tempfile.TemporaryDirectory() as home:
            result = measure(configuration(settings, options, Path(home)), options.rounds)
        size = result["bytes"] / 1e6
        median = {
            name: statistics.median(result[name]) for name in ("refit", "check", "cp", "write")
        }
        name = settings[0].partition("=")[2]
        print(
            f"{name:<24}{size:8.1f}{median['refit']:9.2f}{median['check']:9.2f}"
            f"{size / median['refit']:8.0f}"
            f"{size / median['write']:12.0f}{size / median['cp']:9.0f}{result['difference']:9.1g}",
            flush=True,
        )
        results[" ".join(settings)] = result
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
