"""Reports a run's metrics: to metrics.jsonl, TensorBoard, Weights & Biases and the console.

    with RunLog(config, layout, first_step, is_writer=rank == 0) as log:
        log.train(step, engine.train_step(...), rate, seconds)
        log.evaluation(step, {"web_en": EvalResult(2.31, 0.98, 262144)})
        log.note("checkpoint of step 100 saved")

`step` counts steps done, from 1. metrics.jsonl in the run folder is the record from which the
others can be made again; `history.py` reads it back. One row per step:

    {"kind": "train", "step", "tokens" (so far), "loss", "grad_norm", …, "lr", "step_seconds",
     "tokens_per_second", "tflops_per_rank", "mfu" (a fraction; absent without log.peak_tflops),
     "memory_peak_bytes", "memory_reserved_bytes" (of the fullest GPU; absent on CPUs)}

and one per source and evaluation: {"kind": "eval", "step", "source", "loss", "bits_per_byte" (null
without a tokenizer), "tokens"}; for pairs also "accuracy" and "pairs"; the source "all" combines
them. For tasks it has "reward", "pass_rate", "length", "truncated" and "answers" instead. Modes
that sample answers have one more row per batch of rollouts, with the step of its first update:
{"kind": "rollouts", "step", "batch", "reward", …}, see `posttrain/watching/summary.py`;
step_seconds of an update exclude sampling.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch.distributed as dist

from megatron_qwen3.model.flops import flops_per_token
from megatron_qwen3.parallel.layout import Layout
from megatron_qwen3.settings import Config
from megatron_qwen3.training.boards import Boards
from megatron_qwen3.training.console import Console, source_line
from megatron_qwen3.training.metrics_file import ALL_SOURCES, FILE_NAME, read_rows
from megatron_qwen3.training.row_file import RowFile


@dataclass(frozen=True)
class EvalResult:
    """Held-out text of one source: nats per token, bits per byte where known, tokens scored.

    For pairs of answers: nats per pair, the share ranked as given, and the number of pairs.
    """

    loss: float
    bits_per_byte: float | None
    tokens: int
    accuracy: float | None = None
    pairs: int | None = None

    @property
    def row(self) -> dict[str, float | None]:
        """The row for metrics, with the fields of pairs only for pairs."""
        of_pairs = ("accuracy", "pairs")
        return {k: v for k, v in asdict(self).items() if v is not None or k not in of_pairs}


@dataclass(frozen=True)
class TaskResult:
    """Answers to held-out tasks of one source: mean reward, share of right ones (None if unknown),
    mean tokens, share that reached the limit, and number of answers. Means are over scored answers;
    None without any."""

    reward: float | None
    pass_rate: float | None
    length: float
    truncated: float
    answers: int

    @property
    def row(self) -> dict[str, float | None]:
        """The row for metrics."""
        return asdict(self)


HeldOut = EvalResult | TaskResult


class RunLog:
    """Reports one run. Every rank has one; only the writer's does anything.

    first_step: number of steps done before a resume. Rows after it, of a run that died later than
    its last checkpoint, are dropped; earlier ones stay. ConfigError: log.* needs a package that is
    not installed. MetricsError: the metrics of the resumed run cannot be read.
    """

    def __init__(self, config: Config, layout: Layout, first_step: int, is_writer: bool) -> None:
        self.config, self.layout, self.is_writer = config, layout, is_writer
        if not is_writer:
            return
        config.run_dir.mkdir(parents=True, exist_ok=True)
        path = config.run_dir / FILE_NAME
        self.evaluated_step = drop_rows_after(path, first_step)
        self.console = Console(
            config.steps, first_step, config.log.every_steps, config.batch_updates
        )
        self.boards = Boards(config, first_step, self.note)
        self.file = RowFile(path, self.note)

    def train(
        self,
        step: int,
        metrics: Mapping[str, float],
        rate: float,
        seconds: float,
        tokens: int | None = None,
    ) -> None:
        """Report a step that took `seconds` at the learning rate `rate`.

        tokens: number that it trained, where steps differ.
        """
        if not self.is_writer:
            return
        row = {"step": step, "tokens": 0, **metrics, "lr": rate}
        if "tokens" not in metrics:
            row["tokens"] = step * self.config.step_tokens
        row |= speed(self.config, self.layout.world_size, seconds, tokens)
        self._write("train", row)
        self.boards.plot(step, {f"train/{name}": row[name] for name in row.keys() - {"step"}})
        self.console.step(row)

    def rollouts(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Report a batch of rollouts, before its first update, `step`."""
        if not self.is_writer:
            return
        row = {"step": step, **metrics}
        self._write("rollouts", row)
        known = {name: value for name, value in metrics.items() if value is not None}
        self.boards.plot(step, {f"rollouts/{name}": value for name, value in known.items()})
        self.console.rollouts(row)

    def evaluation(self, step: int, per_source: Mapping[str, HeldOut]) -> None:
        """Report held-out results of each source, and of all together: losses, or tasks' scores.

        `per_source` has the latter itself where it has groups of sources that overlap.
        """
        if not (self.is_writer and per_source):
            return
        results = dict(per_source)
        if ALL_SOURCES not in results:
            results[ALL_SOURCES] = _together(list(per_source.values()))
        width = max(map(len, results))
        self.console.say(f"held out after step {step}")
        for source, result in results.items():
            row = result.row
            self._write("eval", {"step": step, "source": source, **row})
            known = {name: value for name, value in row.items() if value is not None}
            self.boards.plot(step, {f"eval/{source}/{name}": known[name] for name in known})
            self.console.say(source_line(source, width, row))

    def has_evaluated(self, step: int) -> bool:
        """Whether the log to be continued ends with an evaluation after `step`.

        All ranks call it. A run may have stopped between a save and the evaluation after it.
        """
        answer = [self.is_writer and self.evaluated_step == step]
        dist.broadcast_object_list(answer, src=0)
        return answer[0]

    def sync(self) -> None:
        """Flush rows to disk: those of the steps that a checkpoint contains."""
        if self.is_writer:
            self.file.sync()

    def note(self, text: str) -> None:
        """Log a line, such as "checkpoint saved"."""
        if self.is_writer:
            self.console.say(text)

    def close(self) -> None:
        """Close all files; nothing can be reported afterwards."""
        if not self.is_writer:
            return
        self.file.close()
        self.boards.close()
        self.console.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, kind: str, row: Mapping[str, Any]) -> None:
        self.file.write(json.dumps({"kind": kind, **row}))  # a killed run keeps all steps


def speed(
    config: Config, world_size: int, seconds: float, tokens: int | None = None
) -> dict[str, float]:
    """The speed of a step of `seconds`: step_seconds, tokens_per_second, tflops_per_rank, mfu.

    tokens: of the step, where steps differ.
    tflops_per_rank counts the model's own work (`flops_per_token`), recomputation not
    included; mfu is its share of log.peak_tflops (PaLM, arXiv 2204.02311, appendix B).
    """
    tokens_per_second = (config.step_tokens if tokens is None else tokens) / seconds
    flops = flops_per_token(config.model, config.data.sequence_length)
    tflops_per_rank = flops * tokens_per_second / world_size / 1e12
    row = {
        "step_seconds": seconds,
        "tokens_per_second": tokens_per_second,
        "tflops_per_rank": tflops_per_rank,
    }
    if config.log.peak_tflops:
        row["mfu"] = tflops_per_rank / config.log.peak_tflops
    return row


def _together(results: list[HeldOut]) -> HeldOut:
    texts = [result for result in results if isinstance(result, EvalResult)]
    return combine(texts) if texts else _combine([r for r in results if isinstance(r, TaskResult)])


def _combine(results: list[TaskResult]) -> TaskResult:
    """The result of all tasks as if of one source."""

    def mean(name: str) -> float | None:
        known = [(getattr(r, name), r.answers) for r in results if getattr(r, name) is not None]
        answers = sum(count for _, count in known)
        return sum(value * count for value, count in known) / answers if answers else None

    answers = sum(result.answers for result in results)
    length, truncated = mean("length") or 0.0, mean("truncated") or 0.0
    return TaskResult(mean("reward"), mean("pass_rate"), length, truncated, answers)


def combine(results: list[EvalResult]) -> EvalResult:
    """The result of all sources as one text: loss weighted by tokens, bits per byte by bytes.

    The bytes of a source follow from its other numbers: nats / (ln 2 · bits per byte).
    """
    tokens = sum(result.tokens for result in results)
    nats = sum(result.loss * result.tokens for result in results)
    bits_per_byte = None
    if all(result.bits_per_byte for result in results):
        text_bytes = sum(r.loss * r.tokens / math.log(2) / (r.bits_per_byte or 1) for r in results)
        bits_per_byte = nats / math.log(2) / text_bytes
    return EvalResult(nats / tokens, bits_per_byte, tokens)


def drop_rows_after(path: Path, step: int) -> int:
    """Rewrite a metrics file, if there is one, without rows after `step` and without a torn end.

    Step 0 means a new run: no row of an earlier one stays. Returns the step of the last
    whole evaluation that stays, 0 without one.
    """
    evaluated = 0
    if not path.exists():
        return evaluated
    rest = path.with_suffix(".tmp")
    with rest.open("w", encoding="utf-8") as file:
        for row in read_rows(path) if step else ():
            if row["step"] <= step:
                file.write(json.dumps(row) + "\n")
                if row.get("source") == ALL_SOURCES:  # its row is written last
                    evaluated = row["step"]
        file.flush()
        os.fsync(file.fileno())
    rest.replace(path)
    return evaluated
