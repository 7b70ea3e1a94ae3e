"""The work around the steps of every mode: start, log, judge, evaluate, save, stop.

    with Run(config, layout) as run:
        for step in run.steps(evaluate):            # evaluates and saves between steps when due
            try:
                run.train(step, batch, objective)
            except BadBatch as error:
                run.leave_out(step, f"{error}; {what_the_batch_was}")
    run.is_done

All ranks do the same in the same order. A mode's loop is plain code: it makes batches, chooses
objectives, and may do any other work in between.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Self

import torch

from megatron_qwen3.model import specs
from megatron_qwen3.parallel import runtime
from megatron_qwen3.parallel.layout import Layout
from megatron_qwen3.settings import Config
from megatron_qwen3.storage import manifest
from megatron_qwen3.training import checkpoint
from megatron_qwen3.training.bad_batch import BadBatch
from megatron_qwen3.training.batch import TokenBatch
from megatron_qwen3.training.engine import Engine
from megatron_qwen3.training.guard import Guard, rise
from megatron_qwen3.training.keeper import Keeper
from megatron_qwen3.training.metrics import HeldOut, RunLog
from megatron_qwen3.training.objectives import Objective
from megatron_qwen3.training.optim import described, learning_rate
from megatron_qwen3.training.origin import load_origin, prepare_folder
from megatron_qwen3.training.progress import LeftOut, Progress
from megatron_qwen3.training.stop import StopAsked, StopRequest

_DIVERGED_NATS = 1.0  # rise of the loss within guard.window_steps that counts as divergence


class EvaluationFailed(RuntimeError):
    """An evaluation failed; raised alike on all ranks."""


# Calls its argument before each batch: go on? Results by name, {} if none, None if it stopped.
Evaluation = Callable[[Callable[[], bool]], Mapping[str, HeldOut] | None]


class Run:
    """One execution of a stage on this rank.

    start: its progress at the start; engine: with the weights of the start.
    """

    def __init__(self, config: Config, layout: Layout) -> None:
        self.config = config
        request = StopRequest(config)  # first, since the rest takes long
        self.engine = Engine(config, layout)
        self.start, self._origin = load_origin(self.engine, config)
        self._guard = Guard(config, self.start)
        is_writer, step = self.engine.is_first_rank, self.start.step
        if is_writer:
            prepare_folder(config, self.start)
        self.log = RunLog(config, layout, first_step=step, is_writer=is_writer)
        self._keeper = Keeper(self.engine, config, self.log, request, saved_step=step)
        self._step = step
        self._began = self._updating = 0.0  # start times of this step, and of its update
        self._is_evaluated = True

    @property
    def is_done(self) -> bool:
        """Whether all steps are done, and the last evaluation."""
        return self._step >= self.config.steps and self._is_evaluated

    @property
    def step(self) -> int:
        """Number of steps done."""
        return self._step

    @property
    def left_out(self) -> list[LeftOut]:
        """The steps that are left out."""
        return self._guard.left_out

    def next_step(self, step: int) -> int:
        """`step`, or the first after it that is not left out; at most the number of steps."""
        return self._guard.next_step(step)

    def steps(self, evaluate: Evaluation) -> Iterator[int]:
        """Yields steps to train, counted from 0; after each, evaluates and saves where due.

        Ends after the last step, or after saving on a request to stop. EvaluationFailed,
        SaveFailed: the run stopped and needs a person to look.
        """
        settings, stops = self.config, False
        if self._step and _due(self._step, settings.eval.every_steps):
            stops = self._evaluate_once(evaluate) and self._keeper.check(self._step, 0.0)
        while (step := self._guard.next_step(self._step)) < settings.steps and not stops:
            self._step = step
            self._began = self._updating = time.perf_counter()
            yield step
            self._step += 1
            if _due(self._step, settings.checkpoint.every_steps):
                self._keeper.save(self._progress())
            if _due(self._step, settings.eval.every_steps) and self._step < settings.steps:
                self._evaluate(evaluate)
            stops = self._keeper.check(self._step, time.perf_counter() - self._began)
        self._step = step
        self._keeper.settle()
        if stops or settings.checkpoint.at_end:
            self._keeper.finish(self._progress())
        if self._step >= settings.steps:
            self._evaluate_once(evaluate)

    def sampled(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Log a batch of rollouts, whose first update `step` is; the update's time begins now."""
        self.log.rollouts(step + 1, metrics)
        self._updating = time.perf_counter()

    def train(
        self,
        step: int,
        batch: TokenBatch,
        objective: Objective,
        tokens: int,
        step_tokens: int | None = None,
    ) -> dict[str, float]:
        """Take a step, after which the run has trained `tokens`, and log it; returns its metrics.

        step_tokens: of this step, where steps differ. BadBatch: no rank took it.
        """
        rate = learning_rate(self.config, step)
        runtime.seed(self.config.run.seed + step)
        try:
            metrics = self.engine.train_step(batch, objective, rate, self._guard.limits())
            torch.cuda.synchronize()  # a GPU's update belongs to the time of its step
        except BadBatch:
            self._keeper.settle()  # the run may go back to the checkpoint that is being saved
            raise
        self._guard.accept(metrics)
        metrics["tokens"] = tokens
        seconds = time.perf_counter() - self._updating
        self.log.train(step + 1, metrics, rate, seconds, step_tokens)
        for line in self.engine.graphs.news():
            self.log.note(line)
        return metrics

    def beat(self, at: str) -> None:
        """Sign of life of long work between two steps, which has reached `at`."""
        self._keeper.heartbeat.beat(at)

    def go_on(self, at: str) -> None:
        """As `beat`, called on all ranks alike. StopAsked, on all of them, if the run must stop
        now: the step is abandoned, and repeated when the run resumes."""
        self._keeper.go_on(at)

    @contextmanager
    def stopping(self) -> Iterator[None]:
        """Context of the steps: one that StopAsked ends is undone, and the state before it
        saved."""
        try:
            yield
        except StopAsked as asked:
            self.log.note(f"{asked} after step {self._step}: saving, to be continued")
            self._keeper.settle()
            self._keeper.finish(self._progress())

    def waiting(self) -> AbstractContextManager[None]:
        """Context for loading a model, or for waits with limits of their own: the hang limit does
        not apply."""
        return self._keeper.heartbeat.paused()

    def leave_out(self, step: int, reason: str) -> None:
        """Handle a bad batch by guard.bad_batch, on all ranks. BadBatch: stop."""
        reason = f"step {step + 1}: {reason}; {last_saved(self.config.run_dir)}"
        first, back = step, ""
        action = self.config.guard.bad_batch
        if action == "stop":
            raise BadBatch(reason)
        if action == "skip" and not self.engine.model.weights_are_finite():
            raise BadBatch(f"{reason}; weights are not finite, another batch would not help")
        if action == "rollback":
            first, saved = self._roll_back(reason)
            back = f"; back to {saved}"
        unwritten = self._guard.leave_out(first, step, reason, writes=self.engine.is_first_rank)
        self.log.note(f"left out: {reason}{back}; the run goes on with step {step + 2}{unwritten}")

    def _roll_back(self, reason: str) -> tuple[int, Path]:
        """Load the newest checkpoint, even one still being saved; returns its step and path."""
        self._keeper.settle()
        saved, _ = checkpoint.newest_intact(self.config.run_dir, in_full=False)
        if not saved:
            raise BadBatch(f"{reason}; there is no checkpoint to go back to")
        with self._keeper.heartbeat.paused():
            progress = checkpoint.load(self.engine, saved)
        self._guard.recent = list(progress.recent)
        return progress.step, saved

    def _progress(self) -> Progress:
        return self._guard.progress(self._step)

    def _evaluate_once(self, evaluate: Evaluation) -> bool:
        """Evaluate, unless this step was evaluated before a stop; returns whether it did."""
        is_missing = not self.log.has_evaluated(self._step)
        if is_missing:
            self._evaluate(evaluate)
        return is_missing

    def _evaluate(self, evaluate: Evaluation) -> None:
        """Evaluate; saves first before the last evaluation, and where an evaluation fails."""
        keeper, step = self._keeper, self._step
        try:
            results = evaluate(keeper.goes_on)
        except EvaluationFailed as error:
            if self.config.checkpoint.at_end:
                keeper.settle()
                keeper.finish(self._progress())
            raise EvaluationFailed(
                f"the evaluation after step {step}: {error}{keeper.has(step)}"
            ) from None
        except Exception as error:
            error.add_note(f"in the evaluation after step {step}{keeper.has(step)}")
            raise
        self.log.evaluation(step, results or {})
        self._is_evaluated = results is not None

    def __enter__(self) -> Self:
        self.log.__enter__()
        self._keeper.__enter__()
        fp8 = self.config.fp8
        products = [f"products of layers: {fp8.described()}"] if fp8.is_on else []
        layers, optimizer = specs.described(self.config), described(self.engine.optimizer)
        kinds = f"layers: {layers}", *products, f"optimizer: {optimizer}"
        for line in (*self._origin, *kinds):
            self.log.note(line)
        return self

    def __exit__(self, *_: object) -> None:
        self._keeper.__exit__()
        self.log.__exit__()


def last_saved(run_dir: Path) -> str:
    """The newest checkpoint, in words, and whether the run had diverged before it."""
    saved = [c for c in checkpoint.checkpoints(run_dir) if not manifest.faults(c)]
    if not saved:
        return "nothing was saved yet"
    rises = [rise(Progress.read(c).recent) for c in saved]
    if rises[-1] < _DIVERGED_NATS:
        return f"the last checkpoint, {saved[-1]}, is intact"
    sound = [c for c, nats in zip(saved, rises, strict=True) if nats < _DIVERGED_NATS]
    return (
        f"the last checkpoint, {saved[-1]}, was saved when the loss had risen by {rises[-1]:.2f} "
        "nats: the run had diverged before it; "
        + (f"{sound[-1]} is older and sound" if sound else "none is older and sound")
    )


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
