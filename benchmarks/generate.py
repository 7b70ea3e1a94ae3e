"""Generation here and in transformers, timed side by side.

    python benchmarks/generate.py                       # the CPU: float32, small models
    python benchmarks/generate.py --device cuda --preset qwen3-0.6b

8 prompts of 64 tokens are continued by 128 tokens each. The sides live in processes of their own
and take turns, one generation at a time, so that only one works at any moment and a slow minute of
the machine hits all. The table gives medians and the median of the ratios within a round.
transformers runs with SDPA and, for experts, with each of its implementations; once as it comes
and, on a CPU, with our allocator setting.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from train_step import MODELS, Worker, configuration, hugging_face_model

from megatron_qwen3.config import Config


def ours(config: Config, options: argparse.Namespace) -> Callable[[], int]:
    """One generation per call; returns the tokens it made."""
    from megatron_qwen3.generate.engine import Generator
    from megatron_qwen3.parallel.runtime import start
    from megatron_qwen3.training.model import Model

    layout = start(config)
    generator = Generator(Model(config, layout))
    prompts, sampling = random_prompts(config, options), sampling_of(options)

    def generate() -> int:
        completions = generator.generate(prompts, sampling, options.new_tokens)
        return sum(len(completion.tokens) for completion in completions)

    return generate


def transformers(
    config: Config, options: argparse.Namespace, experts: str = "grouped_mm"
) -> Callable[[], int]:
    import torch

    device = config.run.device
    dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
    model = hugging_face_model(config).eval().to(device, dtype)
    model.config.use_cache = model.generation_config.use_cache = True
    model.set_experts_implementation(experts) if config.model.num_experts else None
    prompts = torch.tensor(random_prompts(config, options), device=device)
    mode: dict[str, Any] = {"do_sample": False}
    if options.sample:
        mode = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95}

    def generate() -> int:
        written = model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=options.new_tokens,
            min_new_tokens=options.new_tokens,
            pad_token_id=0,
            **mode,
        )
        return written[:, prompts.shape[1] :].numel()

    return generate


def transformers_keeping_memory(config: Config, options: argparse.Namespace) -> Callable[[], int]:
    from megatron_qwen3.cpu.allocator import keep_freed_memory

    keep_freed_memory()
    return transformers(config, options)


def transformers_batched(config: Config, options: argparse.Namespace) -> Callable[[], int]:
    return transformers(config, options, "batched_mm")


def transformers_eager(config: Config, options: argparse.Namespace) -> Callable[[], int]:
    return transformers(config, options, "eager")


SIDES = {
    "ours": ours,
    "transformers": transformers,
    "transformers, kept memory": transformers_keeping_memory,
    "transformers, batched_mm": transformers_batched,
    "transformers, eager experts": transformers_eager,
}


def sampling_of(options: argparse.Namespace) -> Any:
    from megatron_qwen3.generate.sampling import THINKING, Sampling

    return THINKING if options.sample else Sampling(temperature=0)


def random_prompts(config: Config, options: argparse.Namespace) -> list[list[int]]:
    import torch

    shape = (options.batch, options.prompt_tokens)
    random = torch.Generator().manual_seed(0)
    return torch.randint(config.model.vocab_size, shape, generator=random).tolist()


def work(side: str, config: Config, options: argparse.Namespace, pipe: Connection) -> None:
    """Body of a worker: a first generation, then one whenever the parent asks, until it says 0."""
    import torch

    torch.set_num_threads(options.threads)
    generate = SIDES[side](config, options)
    assert generate() == options.batch * options.new_tokens
    pipe.send(None)
    while pipe.recv():
        begin = time.perf_counter()
        generate()  # ends with tokens on the host, so the device is done
        pipe.send(time.perf_counter() - begin)


def measure(config: Config, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of every side in every round."""
    sparse, on_cpu = config.model.num_experts > 0, options.device == "cpu"
    names = [
        name
        for name in SIDES
        if (sparse or not name.endswith(("experts", "_mm")))
        and (on_cpu or "kept memory" not in name)
    ]
    workers = {}
    for name in names:
        workers[name] = Worker(work, name, config, options)
        workers[name].pipe.recv()
    rounds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(options.rounds):
        for name in names if turn % 2 == 0 else reversed(names):
            rounds[name].append(workers[name].ask(1))
    for worker in workers.values():
        worker.stop()
    return {name: summarise(seconds, rounds["ours"], options) for name, seconds in rounds.items()}


def summarise(
    seconds: list[float], ours: list[float], options: argparse.Namespace
) -> dict[str, Any]:
    median = statistics.median(seconds)
    return {
        "seconds": seconds,
        "ms_per_step": median / options.new_tokens * 1e3,
        "tokens_per_second": options.batch * options.new_tokens / median,
        "ours_is_faster_by": statistics.median(
            other / own for other, own in zip(seconds, ours, strict=True)
        ),
    }


def print_table(name: str, config: Config, result: dict[str, Any]) -> None:
    print(f"\n{name}, {config.train.precision}\n{'':<29}{'ms/step':>9}{'tokens/s':>10}{'ratio':>7}")
    for side, row in result.items():
        print(
            f"{side:<29}{row['ms_per_step']:9.2f}{row['tokens_per_second']:10.0f}"
            f"{row['ours_is_faster_by']:7.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=[*MODELS, "both"], default="both")
    parser.add_argument("--preset", help="a Qwen3 size in place of the small models")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8, help="rows")
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--sample", action="store_true", help="T 0.6, top-k 20, top-p 0.95")
    parser.add_argument("--rounds", type=int, default=9, help="generations of every side")
    parser.add_argument("--json", metavar="FILE", help="write everything measured there as well")
    options = parser.parse_args()
    options.micro_batch, options.layers, options.sequence_length = 0, 0, 512
    models = MODELS if options.model == "both" else {options.model: MODELS[options.model]}
    if options.preset:
        models = {options.preset: {"preset": options.preset}}
    results = {}
    for name, model in models.items():
        config = configuration(model, options)
        results[name] = measure(config, options)
        print_table(name, config, results[name])
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
