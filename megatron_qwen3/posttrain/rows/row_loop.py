"""The loop of the modes that train on rows of tokenized samples: read, step, evaluate, save.

    with Run(config, layout) as run:
        train_rows(run, mixture, objective, read, judge)
    return run.is_done

It is pretraining's loop with other rows: `row_order.py` records the inputs of their order, and a
batch that is left out is named by the input lines of its samples.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from megatron_qwen3.posttrain.rows import row_order
from megatron_qwen3.posttrain.rows.packing import PackedPlace
from megatron_qwen3.training import reader
from megatron_qwen3.training.arrays import Arrays
from megatron_qwen3.training.bad_batch import BadBatch
from megatron_qwen3.training.batch import TokenBatch
from megatron_qwen3.training.objectives import Objective
from megatron_qwen3.training.progress import steps_of
from megatron_qwen3.training.run import Evaluation, Run


class RowMixture(Protocol):
    """Rows 0, 1, 2, … of a run; `facts` is everything that they depend on."""

    facts: dict[str, Any]

    def rows(self, first: int, count: int) -> list[list[PackedPlace]]: ...

    def describe(self, rows: Iterable[Iterable[PackedPlace]]) -> str: ...

    def news(self) -> Iterator[str]: ...


def train_rows(
    run: Run,
    mixture: RowMixture,
    objective: Objective,
    read: Callable[[int], Arrays],
    judge: Evaluation,
    complete: Callable[[int, TokenBatch], TokenBatch] | None = None,
) -> None:
    """Train until the run's steps are done, or it is stopped.

    read: this data rank's rows of a step, called ahead of the step; picklable, since another
    process may run it; complete: adds values that cannot be read ahead, on all ranks together,
    right before the step. judge: the evaluation.
    """
    config = run.config
    if run.engine.is_first_rank:
        row_order.write(config.run_dir, mixture.facts)
    for line in mixture.news():
        run.log.note(line)
    with reader.of_arrays(read, config, run.engine.device) as batches:
        for step in run.steps(judge):
            batch = batches.batch(step, then=run.next_step(step + 1))
            if complete:
                batch = complete(step, batch)
            skipped = sum(n <= step for n in steps_of(run.left_out))
            try:
                run.train(step, batch, objective, (step + 1 - skipped) * config.step_tokens)
            except BadBatch as error:
                size = config.train.global_batch
                lines = mixture.describe(mixture.rows(step * size, size))
                samples = "the samples of the batch, by the lines of the tokenized files, are"
                run.leave_out(step, f"{error}; {samples} {lines}")
