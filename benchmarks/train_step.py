"""One training step here and in transformers, timed side by side.

    python benchmarks/train_step.py --model both            # the CPU: float32, small models
    python benchmarks/train_step.py --device cuda --preset qwen3-8b

A step is forward, backward, clipping and AdamW on the same random tokens. Every side lives in a
process of its own and they take turns, `--steps` at a time, so that only one works at any moment
and a slow minute of the machine hits all. The table gives medians over all turns and the median
of the ratios within a round. transformers runs with everything it offers for speed: SDPA, grouped
experts, fused AdamW, no router loss; once as it comes and, on a CPU, once with our allocator
setting. Sparse models step once more with model.router_balance = "this_batch". `peak` is the share
of the rate of a large matrix product measured in between.
"""

import argparse
import json
import multiprocessing as mp
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

from megatron_qwen3.config import Config, load
from megatron_qwen3.model.flops import flops_per_token, parameter_count

DENSE = {
    "num_layers": 8, "hidden_size": 512, "ffn_hidden_size": 1536, "num_attention_heads": 8,
    "num_query_groups": 4, "head_dim": 64, "vocab_size": 8192,
}  # fmt: skip
MOE = DENSE | {"num_experts": 16, "experts_per_token": 4, "expert_ffn_hidden_size": 384}
MODELS = {"dense": DENSE, "moe": MOE}
RATE = 1e-4


def ours(config: Config) -> Callable[[], float]:
    """One optimizer step of the engine per call; returns the loss."""
    from megatron_qwen3.parallel.runtime import start
    from megatron_qwen3.training.batch import TokenBatch
    from megatron_qwen3.training.engine import Engine
    from megatron_qwen3.training.objectives import cross_entropy

    engine = Engine(config, start(config))
    tokens = random_tokens(config)
    batch = TokenBatch.of(tokens[:, :-1], tokens[:, 1:])
    return lambda: engine.train_step(batch, cross_entropy, RATE)["loss"]


def ours_this_batch(config: Config) -> Callable[[], float]:
    """The step that counts the experts' choices of its batch first."""
    return ours(replace(config, model=replace(config.model, router_balance="this_batch")))


def transformers(config: Config) -> Callable[[], float]:
    """The same step with Hugging Face's model; float32 weights, autocast to bf16 on a GPU."""
    import torch

    device = config.run.device
    with torch.device(device):  # which draws billions of weights in no time where it is a GPU
        model = hugging_face_model(config)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    tokens = random_tokens(config).to(device)
    cast = torch.autocast(device, torch.bfloat16, enabled=config.train.precision == "bf16")

    def step() -> float:
        losses = []
        for rows in tokens.split(config.train.micro_batch):
            with cast:
                logits = model(input_ids=rows[:, :-1]).logits.flatten(0, 1)
                loss = torch.nn.functional.cross_entropy(logits.float(), rows[:, 1:].flatten())
                loss = loss * len(rows) / len(tokens)
            loss.backward()
            losses.append(loss.detach())
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip_grad)
        optimizer.step()
        optimizer.zero_grad()
        return torch.stack(losses).sum().item()

    return step


def transformers_keeping_memory(config: Config) -> Callable[[], float]:
    """transformers in a process whose malloc keeps freed memory, as ours does."""
    from megatron_qwen3.cpu.allocator import keep_freed_memory

    keep_freed_memory()
    return transformers(config)


SIDES = {
    "ours": ours,
    "ours, balance of this batch": ours_this_batch,
    "transformers": transformers,
    "transformers, kept memory": transformers_keeping_memory,
}


def hugging_face_model(config: Config) -> Any:
    """Qwen3ForCausalLM or Qwen3MoeForCausalLM of this size with its fastest implementations."""
    import transformers as hf

    model = config.model
    settings: dict[str, Any] = {
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.ffn_hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": model.num_query_groups,
        "head_dim": model.head_dim,
        "tie_word_embeddings": model.tie_embeddings,
        "max_position_embeddings": config.data.sequence_length,
        "use_cache": False,
        "attn_implementation": "sdpa",
    }
    if not model.num_experts:
        return hf.Qwen3ForCausalLM(hf.Qwen3Config(**settings)).train()
    settings |= {
        "num_experts": model.num_experts,
        "num_experts_per_tok": model.experts_per_token,
        "moe_intermediate_size": model.expert_ffn_hidden_size,
        "norm_topk_prob": True,
        "experts_implementation": "grouped_mm",
    }
    return hf.Qwen3MoeForCausalLM(hf.Qwen3MoeConfig(**settings)).train()


def random_tokens(config: Config) -> Any:
    """[B, S + 1] ids, the same on every side."""
    import torch

    shape = (config.train.global_batch, config.data.sequence_length + 1)
    return torch.randint(config.model.vocab_size, shape, generator=torch.Generator().manual_seed(0))


def work(side: str, config: Config, threads: int, pipe: Connection) -> None:
    """Body of a worker: first step, then as many as the parent asks for, until it says 0."""
    import torch

    torch.set_num_threads(threads)
    step = SIDES[side](config)
    pipe.send({"loss": step()})
    while count := pipe.recv():
        seconds = []
        for _ in range(count):
            begin = time.perf_counter()
            step()  # ends with a number on the host, so the device is done
            seconds.append(time.perf_counter() - begin)
        on_gpu = config.run.device == "cuda"
        pipe.send({
            "seconds": seconds,
            "peak_memory_bytes": torch.cuda.max_memory_allocated() if on_gpu else 0,
        })  # fmt: skip


def matmul_flops_per_second(config: Config, threads: int, pipe: Connection) -> None:
    """Body of a worker that times one large matrix product, by the faster library, when asked."""
    import torch

    from megatron_qwen3.cpu.products import product

    torch.set_num_threads(threads)
    device, bf16 = config.run.device, config.train.precision == "bf16"
    size = 8192 if device == "cuda" else 2048
    a, b = (
        torch.randn(size, size, device=device, dtype=torch.bfloat16 if bf16 else torch.float32)
        for _ in range(2)
    )
    while pipe.recv():
        rates = []
        for _ in range(5):
            begin = time.perf_counter()
            product(a, b)[0, 0].item()
            rates.append(2 * size**3 / (time.perf_counter() - begin))
        pipe.send(statistics.median(rates))


class Worker:
    """A process that waits on a pipe; `ready_seconds` counts from its start to its first reply."""

    def __init__(self, target: Callable[..., None], *arguments: Any) -> None:
        context = mp.get_context("spawn")
        self.pipe, other_end = context.Pipe()
        self.process = context.Process(target=target, args=(*arguments, other_end), daemon=True)
        self.process.start()
        other_end.close()

    def ask(self, message: int) -> Any:
        self.pipe.send(message)
        return self.pipe.recv()

    def stop(self) -> None:
        self.pipe.send(0)
        self.process.join()


def measure(config: Config, options: argparse.Namespace) -> dict[str, Any]:
    """Start all sides one after the other, then let them take turns; everything in seconds."""
    names = [name for name in SIDES if options.device == "cpu" or "kept memory" not in name]
    if not config.model.num_experts:
        names.remove("ours, balance of this batch")
    ceiling = Worker(matmul_flops_per_second, config, options.threads)
    workers, sides = {}, {}
    for name in names:
        begin = time.perf_counter()
        workers[name] = Worker(work, name, config, options.threads)
        first_loss = workers[name].pipe.recv()["loss"]
        launch = time.perf_counter() - begin
        sides[name] = {"launch_seconds": launch, "first_loss": first_loss, "rounds": []}
        workers[name].ask(1)  # one more before timing: the optimizer's state exists only now
    peaks = []
    for turn in range(options.rounds):
        peaks.append(ceiling.ask(1))
        for name in names if turn % 2 == 0 else reversed(names):
            reply = workers[name].ask(options.steps)
            sides[name]["rounds"].append(statistics.median(reply["seconds"]))
            sides[name]["peak_memory_bytes"] = reply["peak_memory_bytes"]
    for worker in [ceiling, *workers.values()]:
        worker.stop()
    return {"sides": sides, "matmul_flops_per_second": statistics.median(peaks)}


def summarise(config: Config, result: dict[str, Any]) -> dict[str, Any]:
    """Add the results of the times: tokens/s, FLOP/s, share of the peak, ratios."""
    tokens = config.train.global_batch * config.data.sequence_length
    flops = flops_per_token(config.model, config.data.sequence_length) * tokens
    mine = result["sides"]["ours"]["rounds"]
    for side in result["sides"].values():
        side["step_seconds"] = statistics.median(side["rounds"])
        side["tokens_per_second"] = tokens / side["step_seconds"]
        side["flops_per_second"] = flops / side["step_seconds"]
        side["share_of_peak"] = side["flops_per_second"] / result["matmul_flops_per_second"]
        ratios = [other / own for other, own in zip(side["rounds"], mine, strict=True)]
        side["ours_is_faster_by"] = statistics.median(ratios)
    return result | {"parameters": parameter_count(config.model), "layers": config.model.num_layers}


def print_table(name: str, config: Config, result: dict[str, Any]) -> None:
    peak = result["matmul_flops_per_second"] / 1e12
    print(
        f"\n{name}: {result['parameters'] / 1e6:.1f} M parameters, {result['layers']} layers, "
        f"{config.train.global_batch} x {config.data.sequence_length} tokens a step, "
        f"{config.train.precision}, matmul peak {peak:.3f} TFLOP/s"
    )
    print(
        f"{'':<27}{'ms/step':>9}{'tokens/s':>10}{'TFLOP/s':>9}{'peak':>6}{'ratio':>7}"
        f"{'launch s':>10}{'GiB':>7}{'loss':>8}"
    )
    for side, row in result["sides"].items():
        print(
            f"{side:<27}{row['step_seconds'] * 1e3:9.0f}{row['tokens_per_second']:10.0f}"
            f"{row['flops_per_second'] / 1e12:9.3f}{row['share_of_peak']:6.0%}"
            f"{row['ours_is_faster_by']:7.2f}{row['launch_seconds']:10.1f}"
            f"{row['peak_memory_bytes'] / 2**30:7.1f}{row['first_loss']:8.3f}"
        )


def configuration(model: dict[str, Any], options: argparse.Namespace) -> Config:
    """The run that both sides train; on a GPU in bf16, with as many layers as fit."""
    on_gpu = options.device == "cuda"
    settings = {f"model.{key}": value for key, value in model.items()} | {
        "run.device": options.device,
        "train.precision": "bf16" if on_gpu else "fp32",
        "train.global_batch": options.batch,
        "train.micro_batch": options.micro_batch or options.batch,
        "train.steps": 1000,
        "data.sequence_length": options.sequence_length or (4096 if on_gpu else 512),
        "data.sources": [],
    }
    config = load([], [f"{key}={json.dumps(value)}" for key, value in settings.items()])
    layers = options.layers or (layers_that_fit(config) if on_gpu else config.model.num_layers)
    return replace(config, model=replace(config.model, num_layers=layers))


def layers_that_fit(config: Config) -> int:
    """Layers whose weights, gradients, moments and activations fill four fifths of a free GPU.

    18 bytes a parameter: bf16 weight, float32 gradient, master weight and two moments.
    """
    import torch

    free_bytes = 0.8 * torch.cuda.mem_get_info()[0]
    none, one = (parameter_count(replace(config.model, num_layers=n)) for n in (0, 1))
    tokens = config.train.micro_batch * config.data.sequence_length
    logits_bytes = 12 * tokens * config.model.vocab_size
    active = max(1, config.model.experts_per_token) * (
        config.model.expert_ffn_hidden_size or config.model.ffn_hidden_size
    )
    activation_bytes = 2 * tokens * (12 * config.model.hidden_size + 4 * active)
    layer_bytes = 18 * (one - none) + activation_bytes
    fitting = int((free_bytes - 18 * none - logits_bytes) / layer_bytes)
    return max(1, min(fitting, config.model.num_layers))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=[*MODELS, "both"], default="both")
    parser.add_argument("--preset", help="a Qwen3 size in place of the small models")
    parser.add_argument(
        "--layers", type=int, default=0, help="default: all, or as many as a GPU holds"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=4, help="sequences a step")
    parser.add_argument("--micro-batch", type=int, default=0, help="of ours; default: all at once")
    parser.add_argument("--sequence-length", type=int, default=0)
    parser.add_argument("--steps", type=int, default=3, help="steps a turn")
    parser.add_argument("--rounds", type=int, default=5, help="turns of every side")
    parser.add_argument("--json", metavar="FILE", help="write everything measured there as well")
    options = parser.parse_args()
    models = MODELS if options.model == "both" else {options.model: MODELS[options.model]}
    if options.preset:
        models = {options.preset: {"preset": options.preset}}
    results = {}
    for name, model in models.items():
        config = configuration(model, options)
        results[name] = summarise(config, measure(config, options))
        print_table(name, config, results[name])
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    main()
