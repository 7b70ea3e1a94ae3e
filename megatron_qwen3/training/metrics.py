"""What a run reports: metrics.jsonl, TensorBoard, Weights & Biases and lines for people.

    with RunLog(config, layout, first_step, is_writer=rank == 0) as log:
        log.train(step, engine.train_step(...), rate, seconds)
        log.evaluation(step, {"web_en": EvalResult(2.31, 0.98, 262144)})
        log.note("checkpoint of step 100 saved")

`step` counts steps done, from 1. metrics.jsonl in the run folder is the record that the rest can
be made from again; `history.py` reads it back. One row a step:

    {"kind": "train", "step", "tokens" (so far), "loss", "grad_norm", …, "lr", "step_seconds",
     "tokens_per_second", "tflops_per_rank", "mfu" (a fraction; absent without log.peak_tflops),
     "memory_peak_bytes", "memory_reserved_bytes" (of the fullest GPU; absent on CPUs)}

and one per source and evaluation: {"kind": "eval", "step", "source", "loss", "bits_per_byte" (null
without a tokenizer), "tokens"}, of pairs "accuracy" and "pairs", too; the source "all" is all of
them together. Of tasks it has "reward", "pass_rate", "length", "truncated" and "answers" instead.
Modes whose model samples answers have one more per batch of rollouts, before its
first update, whose step it bears: {"kind": "rollouts", "step", "batch", "reward", …}, as
`posttrain/watching/summary.py` has them; step_seconds of an update are without the sampling.
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

    Of pairs of answers: nats per pair, the share of pairs ranked as given, and how many pairs.
    """

    loss: float
    bits_per_byte: float | None
    tokens: int
    accuracy: float | None = None
    pairs: int | None = None

    @property
    def row(self) -> dict[str, float | None]:
        """As a row of metrics has it: what is of pairs stands there for pairs alone."""
        of_pairs = ("accuracy", "pairs")
        return {k: v for k, v in asdict(self).items() if v is not None or k not in of_pairs}


@dataclass(frozen=True)
class TaskResult:
    """Answers to held-out tasks of one source: mean reward, share that is right (None: nothing says
    so), mean tokens, share that reached its limit, and how many answers. Means are over what was
    scored; None where nothing was."""

    reward: float | None
    pass_rate: float | None
    length: float
    truncated: float
    answers: int

    @property
    def row(self) -> dict[str, float | None]:
        """As a row of metrics has it."""
        return asdict(self)


HeldOut = EvalResult | TaskResult


class RunLog:
    """Reports one run. Every rank has one; those that are not the writer do nothing.

    first_step: steps that a resumed run has behind it. Rows after it, of a run that died later
    than its last checkpoint, are dropped; earlier ones stay. ConfigError: log.* asks for a package
    that is not installed. MetricsError: the metrics of the run to resume cannot be read.
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

        tokens: that it trained; as many as in every step unless it is said.
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
        """Report a batch of rollouts, before its first update, which is the step `step`."""
        if not self.is_writer:
            return
        row = {"step": step, **metrics}
        self._write("rollouts", row)
        known = {name: value for name, value in metrics.items() if value is not None}
        self.boards.plot(step, {f"rollouts/{name}": value for name, value in known.items()})
        self.console.rollouts(row)

    def evaluation(self, step: int, per_source: Mapping[str, HeldOut]) -> None:
        """Report the loss on the held-out text of each source, and of all together; or what came
        of its held-out tasks.

        That is among them where they are groups of sources that overlap.
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
        """Whether the log that is gone on with ends with an evaluation after `step`; on all ranks.

        All ranks call it. A run may have been stopped between a save and the evaluation after it.
        """
        answer = [self.is_writer and self.evaluated_step == step]
        dist.broadcast_object_list(answer, src=0)
        return answer[0]

    def sync(self) -> None:
        """Have the rows up to now on the disk: those of the steps that a checkpoint has done."""
        if self.is_writer:
            self.file.sync()

    def note(self, text: str) -> None:
        """A line for people: checkpoint saved, resumed from step N."""
        if self.is_writer:
            self.console.say(text)

    def close(self) -> None:
        """Finish all files; the log cannot be written to afterwards."""
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
        self.file.write(json.dumps({"kind": kind, **row}))  # a run that is killed keeps all steps


def speed(
    config: Config, world_size: int, seconds: float, tokens: int | None = None
) -> dict[str, float]:
    """How fast a step of `seconds` was: step_seconds, tokens_per_second, tflops_per_rank, mfu.

    tokens: of the step, where they are not as many in every step.
    tflops_per_rank counts the work that the model needs (`flops_per_token`), recomputation not
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
    """All tasks as if they were of one source."""

    def mean(name: str) -> float | None:
        known = [(getattr(r, name), r.answers) for r in results if getattr(r, name) is not None]
        answers = sum(count for _, count in known)
        return sum(value * count for value, count in known) / answers if answers else None

    answers = sum(result.answers for result in results)
    length, truncated = mean("length") or 0.0, mean("truncated") or 0.0
    return TaskResult(mean("reward"), mean("pass_rate"), length, truncated, answers)


def combine(results: list[EvalResult]) -> EvalResult:
    """All sources as if they were one text: loss weighted by tokens, bits per byte by bytes.

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

    Step 0 is a run that starts afresh: no row of an earlier one stays. Returns the step of the last
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
                if row.get("source") == ALL_SOURCES:  # it is written last
                    evaluated = row["step"]
        file.flush()
        os.fsync(file.fileno())
    rest.replace(path)
    return evaluated
