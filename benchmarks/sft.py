"""Supervised fine-tuning here and by TRL's SFTTrainer, timed side by side; and how full rows are.

    python benchmarks/sft.py --data gsm8k_train.jsonl.gz --model both      # trained tokens a second
    python benchmarks/sft.py --data gsm8k_train.jsonl.gz --packing         # efficiency, lengths/s

DATA has lines with `question` and `answer`. A dialog is one of them, or, --long of them, several
turns up to a length that is log-normal around 2,000 tokens. Both sides train the same tokenized
dialogs with the same masks, in rows of --sequence-length tokens, --batch of them a step, by AdamW
in float32. Each lives in a process of its own, they take turns, and the table has medians over
turns and the median of the ratios within one.

TRL (1.16): packing=True, packing_strategy="bfd", which makes it padding-free: the rows of a device
batch are one row, under a mask that keeps documents apart. It runs twice, with --batch rows in one
device batch, and one by one with gradient accumulation, and the faster one counts. Its defaults are
kept except for speed: no gradient checkpointing, float32 in place of bf16 on a CPU, no
router loss, fused AdamW, SDPA, grouped experts, no evaluation, no saves, logs every 1,000 steps.
Ours reads rows ahead, logs nothing, and has its router loss.
"""

import argparse
import gzip
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from train_step import RATE, Worker, hugging_face_model

from megatron_qwen3.config import Config, load

DENSE = {
    "num_layers": 4, "hidden_size": 256, "ffn_hidden_size": 768, "num_attention_heads": 4,
    "num_query_groups": 2, "head_dim": 64, "vocab_size": 8192,
}  # fmt: skip
MOE = DENSE | {"num_experts": 16, "experts_per_token": 4, "expert_ffn_hidden_size": 192}
MODELS = {"dense": DENSE, "moe": MOE}
Report = Callable[[list[float], int], int]


def dialogs(path: Path, long: float, seed: int = 0) -> Iterator[list[dict[str, str]]]:
    """Conversations of one turn, and a share of them of many."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    random = np.random.default_rng(seed)
    for row in rows:
        turns = 1
        if random.random() < long:  # a turn has some 180 tokens
            turns = max(2, round(float(random.lognormal(7.6, 0.6)) / 180))
        picked = [row, *(rows[n] for n in random.integers(0, len(rows), turns - 1))]
        yield [
            {"role": role, "content": each[key]}
            for each in picked
            for role, key in (("user", "question"), ("assistant", "answer"))
        ]


def tokenized(home: Path, options: argparse.Namespace) -> str:
    """The prefix of a dialog set, made with a tokenizer that is trained on it."""
    from data_prep import tokenizer
    from megatron_qwen3.chat import ChatTokenizer
    from megatron_qwen3.posttrain.dialogs.dialog_set import SAMPLE, DialogSetWriter

    conversations = list(dialogs(Path(options.data), options.long))[: options.dialogs]
    texts = (message["content"] for messages in conversations for message in messages)
    tokenizer.train(texts, MODELS["dense"]["vocab_size"] - 64, home / "tokenizer")
    chat = ChatTokenizer(tokenizer.load(home / "tokenizer"))
    encoded = [chat.encode_conversation(messages) for messages in conversations]
    encoded = [each for each in encoded if len(each.ids) <= options.sequence_length]
    rows = np.zeros(len(encoded), SAMPLE)
    rows["weight"], rows["dialog"] = 1, np.arange(len(encoded))
    with DialogSetWriter(home / "set", "dialogs", MODELS["dense"]["vocab_size"], "") as writer:
        ids = np.concatenate([each.ids for each in encoded])
        trained = np.concatenate([each.trained for each in encoded]).astype(bool)
        writer.add(ids, np.array([len(each.ids) for each in encoded]), trained, rows)
        writer.sources.append("dialogs")
    return str(home / "set")


def configuration(name: str, prefix: str, options: argparse.Namespace) -> Config:
    """The run that both sides train."""
    settings = {f"model.{key}": value for key, value in MODELS[name].items()} | {
        "run.mode": "sft",
        "run.device": "cpu",
        "train.precision": "fp32",
        "train.global_batch": options.batch,
        "train.micro_batch": options.micro_batch,
        "train.steps": 1_000_000,
        "data.sequence_length": options.sequence_length,
        "sft.held_out": 0.0,
    }
    pairs = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    return load([], [*pairs, f'sft.sources=[{{name="dialogs", path="{prefix}"}}]'])


def ours(config: Config, report: Report) -> None:
    """The engine's step on rows that a thread reads ahead, as the loop of mode sft has them."""
    from megatron_qwen3.parallel.runtime import start
    from megatron_qwen3.posttrain import sft
    from megatron_qwen3.posttrain.rows.dialog_mixture import DialogMixture
    from megatron_qwen3.posttrain.rows.dialog_rows import DialogRows
    from megatron_qwen3.training import reader
    from megatron_qwen3.training.engine import Engine

    engine, mixture = Engine(config, start(config)), DialogMixture(config)
    read = DialogRows(config, engine.share, mixture)
    objective, step = sft.objective(config), 0
    with reader.of_arrays(read, config, engine.device) as batches:
        count = 1
        while count:
            seconds, trained = [], 0.0
            for _ in range(count):
                begin = time.perf_counter()
                batch = batches.batch(step, then=step + 1)
                trained += engine.train_step(batch, objective, RATE)["trained_tokens"]
                seconds.append(time.perf_counter() - begin)
                step += 1
            count = report(seconds, int(trained))


def trl(config: Config, report: Report, rows_at_once: int) -> None:
    """TRL's trainer on the same dialogs; it stops to report between two steps."""
    from transformers import TrainerCallback
    from trl import SFTTrainer

    class Turns(TrainerCallback):
        """Reports after as many steps as were asked for, and waits to be asked again."""

        def __init__(self) -> None:
            self.count, self.seconds, self.trained = 1, [], 0
            self.begin = time.perf_counter()

        def on_step_end(self, arguments: Any, state: Any, control: Any, **_: Any) -> None:
            self.seconds.append(time.perf_counter() - self.begin)
            if len(self.seconds) == self.count:
                self.count = report(self.seconds, self.trained)
                control.should_training_stop = not self.count
                self.seconds, self.trained = [], 0
            self.begin = time.perf_counter()

    turns = Turns()

    class Counting(SFTTrainer):
        """Counts the tokens that are trained."""

        def compute_loss(self, model: Any, inputs: Any, *args: Any, **named: Any) -> Any:
            turns.trained += int((inputs["labels"][:, 1:] != -100).sum())
            return super().compute_loss(model, inputs, *args, **named)

    trainer = Counting(
        model=hugging_face_model(config),
        args=trl_settings(config, rows_at_once),
        train_dataset=trl_dataset(config),
        processing_class=trl_tokenizer(config),
        callbacks=[turns],
    )
    trainer.train()


def trl_settings(config: Config, rows_at_once: int) -> Any:
    """As the head of this file says."""
    from trl import SFTConfig

    return SFTConfig(
        output_dir=tempfile.mkdtemp(),
        packing=True,
        packing_strategy="bfd",
        max_length=config.data.sequence_length,
        per_device_train_batch_size=rows_at_once,
        gradient_accumulation_steps=config.train.global_batch // rows_at_once,
        max_steps=config.steps,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        adam_beta2=0.95,
        weight_decay=0.1,
        max_grad_norm=config.optim.clip_grad,
        optim="adamw_torch_fused",
        gradient_checkpointing=False,
        router_aux_loss_coef=0.0 if config.model.num_experts else None,
        bf16=False,
        use_cpu=True,
        logging_steps=1000,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def trl_dataset(config: Config) -> Any:
    """The dialog set as TRL takes tokenized ones: ids, and labels of -100 where none is trained."""
    from datasets import Dataset

    from megatron_qwen3.posttrain.dialogs.dialog_set import DialogSet

    dialogs = DialogSet(config.sft.sources[0].path)
    samples = [dialogs.read(n) for n in range(len(dialogs))]
    return Dataset.from_dict({
        "input_ids": [sample.ids.tolist() for sample in samples],
        "labels": [np.where(sample.trained, sample.ids, -100).tolist() for sample in samples],
    })  # fmt: skip


def trl_tokenizer(config: Config) -> Any:
    """It is asked for its padding alone."""
    from transformers import PreTrainedTokenizerFast

    file = Path(config.sft.sources[0].path).with_name("tokenizer") / "tokenizer.json"
    end = "<|im_end|>"
    return PreTrainedTokenizerFast(tokenizer_file=str(file), eos_token=end, pad_token=end)


def trl_at_once(config: Config, report: Report) -> None:
    trl(config, report, config.train.global_batch)


def trl_one_by_one(config: Config, report: Report) -> None:
    trl(config, report, 1)


SIDES = {"ours": ours, "TRL, one device batch": trl_at_once, "TRL, row by row": trl_one_by_one}


def work(side: str, config: Config, threads: int, pipe: Connection) -> None:
    """Body of a worker: a first step, then as many as the parent asks for, until it says 0."""
    import torch

    torch.set_num_threads(threads)

    def report(seconds: list[float], trained: int) -> int:
        pipe.send({"seconds": sum(seconds), "trained": trained})
        return int(pipe.recv())

    SIDES[side](config, report)


def measure(config: Config, options: argparse.Namespace) -> dict[str, list[float]]:
    """Trained tokens a second of each side in each turn."""
    workers = {}
    for name in SIDES:
        workers[name] = Worker(work, name, config, options.threads)
        workers[name].pipe.recv()
        workers[name].ask(1)  # one more before timing: the optimizer's state exists only now
    rates: dict[str, list[float]] = {name: [] for name in SIDES}
    for turn in range(options.rounds):
        for name in list(SIDES) if turn % 2 == 0 else reversed(list(SIDES)):
            told = workers[name].ask(options.steps)
            rates[name].append(told["trained"] / told["seconds"])
    for worker in workers.values():
        worker.stop()
    return rates


def print_rates(name: str, config: Config, rates: dict[str, list[float]]) -> None:
    medians = {side: statistics.median(values) for side, values in rates.items()}
    best = max((side for side in rates if side != "ours"), key=medians.__getitem__)
    print(
        f"\n{name}: {config.train.global_batch} rows of {config.data.sequence_length} a step\n"
        f"{'':<24}{'trained tokens/s':>18}{'ours is faster by':>20}"
    )
    for side, values in rates.items():
        ratio = statistics.median(a / b for a, b in zip(rates["ours"], values, strict=True))
        print(f"{side:<24}{medians[side]:18,.0f}{ratio:20.2f}")
    print(f"the faster of TRL's: {best}")


def print_packing(prefix: str) -> None:
    """How full rows are, and how many lengths a second are packed."""
    from megatron_qwen3.posttrain.dialogs.dialog_set import DialogSet
    from megatron_qwen3.posttrain.rows.packing import Packing, by_epochs

    lengths = DialogSet(prefix).lengths_N - 1
    mean, longest = lengths.mean(), lengths.max()
    print(f"{len(lengths):,} dialogs of {mean:,.0f} tokens, the longest {longest:,}")
    print(f"{'row':>8}{'dialogs':>12}{'rows':>10}{'full':>9}{'lengths/CPU s':>15}")
    for length in (1024, 4096, 32768):
        fitting = lengths[lengths <= length]  # the others are dropped, or cut, when tokenized
        for count in (len(fitting), 2_000_000):
            whole = np.resize(fitting, count)
            packing = Packing(by_epochs([whole], [prefix], [1.0]), length, seed=0, ends=True)
            begin = time.process_time()
            rows = packing.total_rows
            rate = count / (time.process_time() - begin)
            full = whole.sum() / rows / length
            print(f"{length:>8}{count:>12,}{rows:>10,}{full:>9.2%}{rate:>15,.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="JSON lines with question and answer, or .gz")
    parser.add_argument("--long", type=float, default=0.1, help="share of dialogs of many turns")
    parser.add_argument("--dialogs", type=int, help="only so many of them")
    parser.add_argument("--model", choices=[*MODELS, "both"], default="both")
    parser.add_argument("--packing", action="store_true", help="how full rows are, no training")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8, help="rows a step")
    parser.add_argument("--micro-batch", type=int, default=4, help="of ours")
    parser.add_argument("--sequence-length", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=2, help="steps a turn")
    parser.add_argument("--rounds", type=int, default=5, help="turns of every side")
    options = parser.parse_args()
    if options.packing:
        options.sequence_length = 32768
    with tempfile.TemporaryDirectory() as home:
        prefix = tokenized(Path(home), options)
        if options.packing:
            print_packing(prefix)
            return
        for name in MODELS if options.model == "both" else [options.model]:
            config = configuration(name, prefix, options)
            print_rates(name, config, measure(config, options))


if __name__ == "__main__":
    main()
