"""A step of reinforcement learning here and by TRL's GRPOTrainer, timed side by side.

    python benchmarks/rl.py --model both                     # seconds a step, and where they go

A step answers --prompts tasks --samples times each, rewards the answers, and makes one optimizer
step on all of them: GRPO with its defaults except for the settings named here. Both sides have the
same model in float32, the same prompts, answers of exactly --tokens tokens (no token ends one), the
same reward, no KL, no old log-probs (one update on each batch), AdamW at a constant rate. Each
lives in a process of its own, they take turns, and the table has medians over turns and the median
of the ratios within one.

TRL (1.16): its own generation by transformers with a cache, all answers of a step in one batch; its
update in device batches of --trl-batch answers, each as long as the longest, with accumulation;
SDPA, grouped experts, fused AdamW, no gradient checkpointing, no router loss, no logs. The reward
is a function in its process. Ours is the whole loop of run.mode = "rl": the record of each batch is
written to the disk and read again, answers are verified by a pool of processes, steps are logged.
Its router has its loss.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import sft
from train_step import RATE, Worker, hugging_face_model

from megatron_qwen3.config import Config, load

LETTER, OFTEN = "e", 2
Report = Callable[[dict[str, float]], int]


def prepare(home: Path, options: argparse.Namespace) -> None:
    """A tokenizer, and tasks whose verifier counts a letter."""
    from data_prep import tokenizer

    words = ["how", "many", "letters", "of", "the", "kind", "that", "is", "asked", "are", "there"]
    texts = [" ".join(words[n % 7 :] + words[: 3 + n % 5]) for n in range(options.tasks)]
    tokenizer.train(texts * 5, 400, home / "tokenizer")
    verifier = {"kind": "ifeval/keywords:letter_frequency", "letter": LETTER}
    verifier |= {"let_frequency": OFTEN, "let_relation": "at least"}
    with (home / "tasks.jsonl").open("w", encoding="utf-8") as file:
        for number, text in enumerate(texts):
            asked = [{"role": "user", "content": f"{text} {number}"}]
            line = {"id": f"t{number}", "messages": asked, "verifier": verifier}
            file.write(json.dumps(line) + "\n")


def configuration(name: str, home: Path, options: argparse.Namespace) -> Config:
    """The run that both sides make."""
    settings = {f"model.{key}": value for key, value in sft.MODELS[name].items()} | {
        "run.mode": "rl",
        "run.device": "cpu",
        "run.dir": str(home),
        "run.name": name,
        "run.memory_check": "off",
        "train.precision": "fp32",
        "train.steps": 1_000_000,
        "train.micro_batch": 1,
        "data.sequence_length": options.row_tokens,
        "data.tokenizer": str(home / "tokenizer"),
        "rollouts.prompts": options.prompts,
        "rollouts.samples": options.samples,
        "rollouts.max_new_tokens": options.tokens,
        "rollouts.rows": options.prompts * options.samples,
        "rollouts.held_out": 0.0,
        "rl.filter": False,
        "rl.truncated": "scored",
        "rl.verify_workers": 1,
        "rl.loss.dual_clip": 0.0,
        "rl.loss.importance": "none",
        "optim.lr": RATE,
        "optim.min_lr": RATE,
        "optim.schedule": "constant",
        "optim.weight_decay": 0.0,
        "optim.beta2": 0.999,
        "guard.hang_seconds": 0.0,
        "checkpoint.at_end": False,
        "log.every_steps": 1000,
        "log.tensorboard": False,
    }
    pairs = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    return load([], [*pairs, f'rollouts.tasks=[{{name="letters", path="{home}/tasks.jsonl"}}]'])


class Turns:
    """Counts steps and reports after as many as were asked for."""

    def __init__(self, report: Report) -> None:
        self.report, self.count, self.done = report, 1, 0
        self.seconds = Counter[str]()
        self.began = time.perf_counter()

    def timed(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def timing(*args: Any, **named: Any) -> Any:
            began = time.perf_counter()
            try:
                return work(*args, **named)
            finally:
                self.seconds[name] += time.perf_counter() - began

        return timing

    def step(self) -> bool:
        """A step is done: whether there are more."""
        self.done += 1
        if self.done == self.count:
            self.seconds["step"] = time.perf_counter() - self.began
            self.count = self.report(dict(self.seconds))
            self.done, self.seconds = 0, Counter()
            self.began = time.perf_counter()
        return bool(self.count)


def ours(config: Config, options: argparse.Namespace, report: Report) -> None:
    """The loop of the mode; no id ends an answer."""
    from megatron_qwen3.parallel import runtime
    from megatron_qwen3.posttrain import rl
    from megatron_qwen3.posttrain.rollouts import engines
    from megatron_qwen3.posttrain.rollouts.own import OwnEngine
    from megatron_qwen3.training.engine import Engine
    from megatron_qwen3.training.run import Run

    turns, steps_of = Turns(report), Run.steps

    def steps(self: Run, evaluate: Any) -> Iterator[int]:
        for step in steps_of(self, evaluate):
            yield step
            if not turns.step():
                return

    Run.steps = steps  # type: ignore[method-assign]
    engines.ends_of = lambda *_: []  # type: ignore[assignment]
    OwnEngine.sample = turns.timed("generate", OwnEngine.sample)  # type: ignore[method-assign]
    Engine.train_step = turns.timed("train", Engine.train_step)  # type: ignore[method-assign]
    sources = rl.check(config)
    rl.run(config, runtime.start(config), sources)


def trl(config: Config, options: argparse.Namespace, report: Report) -> None:
    """TRL's trainer on the same prompts."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOTrainer

    from megatron_qwen3.chat import render

    turns = Turns(report)

    class Stepping(TrainerCallback):
        def on_step_end(self, arguments: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop = not turns.step()

    class Timed(GRPOTrainer):
        pass

    Timed._generate = turns.timed("generate", GRPOTrainer._generate)
    Timed.training_step = turns.timed("training_step", GRPOTrainer.training_step)

    def reward(completions: list[str], **_: Any) -> list[float]:
        return [float(text.lower().count(LETTER) >= OFTEN) for text in completions]

    lines = Path(config.rollouts.tasks[0].path).read_text(encoding="utf-8").splitlines()
    prompts = [render(json.loads(line)["messages"], add_generation_prompt=True) for line in lines]
    model = hugging_face_model(config)
    model.config.use_cache = model.generation_config.use_cache = True
    trainer = Timed(
        model=model,
        reward_funcs=reward,
        args=trl_settings(config, options),
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=tokenizer_of(config),
        callbacks=[Stepping()],
    )
    trainer.train()


def trl_settings(config: Config, options: argparse.Namespace) -> Any:
    """As the head of this file says."""
    from trl import GRPOConfig

    answers = config.rollouts.prompts * config.rollouts.samples
    return GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        num_generations=config.rollouts.samples,
        per_device_train_batch_size=options.trl_batch,
        gradient_accumulation_steps=answers // options.trl_batch,
        max_completion_length=options.tokens,
        generation_kwargs={"min_new_tokens": options.tokens, "use_cache": True},
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        beta=0.0,
        max_steps=1_000_000,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=config.optim.clip_grad,
        optim="adamw_torch_fused",
        gradient_checkpointing=False,
        router_aux_loss_coef=0.0,
        bf16=False,
        use_cpu=True,
        logging_steps=1_000_000,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def tokenizer_of(config: Config) -> Any:
    from transformers import PreTrainedTokenizerFast

    file = Path(config.data.tokenizer) / "tokenizer.json"
    end = "<|im_end|>"
    return PreTrainedTokenizerFast(
        tokenizer_file=str(file), eos_token=end, pad_token=end, padding_side="left"
    )


SIDES = {"ours": ours, "TRL": trl}


def work(side: str, config: Config, options: argparse.Namespace, pipe: Connection) -> None:
    """Body of a worker: a first step, then as many as the parent asks for, until it says 0."""
    import torch

    torch.set_num_threads(options.threads)

    def report(seconds: dict[str, float]) -> int:
        pipe.send(seconds)
        return int(pipe.recv())

    SIDES[side](config, options, report)


def measure(config: Config, options: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """Seconds of a step by purpose, of each side in each turn."""
    workers = {}
    for name in options.sides:
        workers[name] = Worker(work, name, config, options)
        workers[name].pipe.recv()
        workers[name].ask(1)  # one more before timing: the optimizer's state exists only now
    told: dict[str, list[dict[str, float]]] = {name: [] for name in workers}
    for turn in range(options.rounds):
        for name in list(workers) if turn % 2 == 0 else reversed(list(workers)):
            seconds = workers[name].ask(options.steps)
            told[name].append({key: value / options.steps for key, value in seconds.items()})
    for worker in workers.values():
        worker.stop()
    return told


def print_table(name: str, options: argparse.Namespace, told: dict[str, Any]) -> None:
    print(
        f"\n{name}: {options.prompts} prompts · {options.samples} answers of {options.tokens} "
        f"tokens a step, {options.threads} threads"
    )
    print(
        f"{'':<8}{'s a step':>10}{'generate':>10}{'train':>8}{'rest':>8}{'ours is faster by':>20}"
    )
    for side, turns in told.items():
        median = {
            key: statistics.median(turn.get(key, 0.0) for turn in turns)
            for key in ("step", "generate", "train", "training_step")
        }
        # TRL generates within the first training step of a batch.
        train = median["train"] or median["training_step"] - median["generate"]
        shares = (median["generate"] / median["step"], train / median["step"])
        ratio = statistics.median(
            theirs["step"] / own["step"]
            for theirs, own in zip(turns, told.get("ours", turns), strict=True)
        )
        print(
            f"{side:<8}{median['step']:10.2f}{shares[0]:10.1%}{shares[1]:8.1%}"
            f"{1 - sum(shares):8.1%}{ratio:20.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=[*sft.MODELS, "both"], default="both")
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), default=list(SIDES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128, help="of each answer")
    parser.add_argument("--tasks", type=int, default=256, help="different prompts")
    parser.add_argument("--row-tokens", type=int, default=4096, help="of a row of ours, at most")
    parser.add_argument("--trl-batch", type=int, default=32, help="answers of a device batch")
    parser.add_argument("--steps", type=int, default=1, help="steps a turn")
    parser.add_argument("--rounds", type=int, default=5, help="turns of every side")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        prepare(home, options)
        for name in sft.MODELS if options.model == "both" else [options.model]:
            config = configuration(name, home, options)
            print_table(name, options, measure(config, options))


if __name__ == "__main__":
    main()
