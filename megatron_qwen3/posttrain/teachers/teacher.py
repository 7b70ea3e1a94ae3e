"""A teacher in memory: a second model, in a layout of its own, that scores each step's batch.

    teacher = Teacher(config, layout, engine.data_rank)       # all ranks, once the student is built
    outputs = teacher.scores(batch, top_k(64), partial(rows, step))     # of this rank's own rows

The teacher may have other data ranks than the student: each of its data ranks scores its own share
of the rows, which it reads itself, and sends the scores to the student's ranks that train them. The
scores of a row depend on neither layout. Legend: B rows, S positions.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_qwen3.config import Config
from megatron_qwen3.convert import load
from megatron_qwen3.model.outputs import Head, Outputs
from megatron_qwen3.parallel import runtime
from megatron_qwen3.parallel.groups import ProcessGroups
from megatron_qwen3.parallel.layout import Layout
from megatron_qwen3.posttrain.teachers.teacher_settings import settings_of, table_of
from megatron_qwen3.training.batch import TokenBatch
from megatron_qwen3.training.model import Model


class Teacher:
    """The loaded model of sft.teacher.path or distill.teacher.path. ConfigError where its weights
    are damaged."""

    def __init__(self, config: Config, layout: Layout, data_rank: int) -> None:
        """layout, data_rank: of the student on this rank. All ranks call it."""
        theirs, (_, asked) = settings_of(config, layout.world_size), table_of(config)
        own = Layout.of(theirs, layout.world_size)
        self.model = Model(theirs, own, ProcessGroups.make(own, runtime.patience(config)))
        load.fill(self.model, load.find(asked.path), config.checkpoint.verify)
        self._mine, self._students = data_rank, layout.data
        self._has_same_ranks = self._ranks_are_the_students()

    def scores(
        self, batch: TokenBatch, head: Head, rows: Callable[[int, int], TokenBatch]
    ) -> Outputs:
        """The head's outputs of the student's batch, on this rank's device; all ranks call it.

        rows: `rows(first, count)` of the step's global batch, equal on all ranks, of which the
        student's data ranks have equally many each.
        """
        total = batch.rows * self._students
        share = -(-total // self.model.layout.data)
        if self._has_same_ranks and share == batch.rows:
            return self.model.score(batch, head)
        first = min(self.model.data_rank * share, total - 1)  # an idle rank scores one row, too
        mine = rows(first, min(share, total - first)).padded_to(share)
        scored = self.model.score(mine, head)
        return {name: self._of_student(x, batch.rows) for name, x in scored.items()}

    def _of_student(self, x_BS: Tensor, count: int) -> Tensor:
        """The `count` rows of the student's data rank, out of all; never holds all at once."""
        share, first = len(x_BS), self._mine * count
        found = x_BS.new_empty((count, *x_BS.shape[1:]))
        for row in range(share):
            for rank, of_rank in enumerate(self.model.gather_over_data(x_BS[row : row + 1])):
                if 0 <= (place := rank * share + row - first) < count:
                    found[place] = of_rank
        return found

    def _ranks_are_the_students(self) -> bool:
        """Whether every rank has the same data rank in both layouts."""
        is_same = self.model.layout.data == self._students and self.model.data_rank == self._mine
        everywhere = torch.tensor(int(is_same), device=self.model.device)
        dist.all_reduce(everywhere, op=dist.ReduceOp.MIN)
        return bool(everywhere.item())
