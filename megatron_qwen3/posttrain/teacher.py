"""A teacher in memory: a second model, in a layout of its own, that scores each step's batch.

    teacher = Teacher(config, layout, engine.data_rank)       # all ranks, once the student is built
    batch = teacher.with_targets(batch, partial(rows, step))  # before a step of `distill.distilled`

The student's data ranks need not be the teacher's: each of the teacher's scores its own share of
the rows, read anew, and hands it to those whose rows they are. What it says of a row depends on
neither layout.

Legend: B rows, S positions, K ids of each position.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_qwen3.config import Config
from megatron_qwen3.convert import load
from megatron_qwen3.model.distributions import top_k
from megatron_qwen3.parallel import runtime
from megatron_qwen3.parallel.groups import Groups
from megatron_qwen3.parallel.layout import Layout
from megatron_qwen3.posttrain import distill
from megatron_qwen3.posttrain.teacher_settings import settings_of
from megatron_qwen3.training.batch import TokenBatch
from megatron_qwen3.training.model import Model


class Teacher:
    """The model of sft.teacher.path, filled. ConfigError where its weights are damaged."""

    def __init__(self, config: Config, layout: Layout, data_rank: int) -> None:
        """data_rank: of the student on this rank. All ranks call it."""
        theirs, asked = settings_of(config), config.sft.teacher
        own = Layout.of(theirs, layout.world_size)
        self._model = Model(theirs, own, Groups.make(own, runtime.patience(config)))
        load.fill(self._model, load.find(asked.path), config.checkpoint.verify)
        self._head = top_k(asked.top_k, asked.temperature)
        rows, self._mine = config.train.global_batch, data_rank
        self._share, self._students = rows // own.data, rows // layout.data
        self._is_alike = self._shares_are_alike()

    def with_targets(self, batch: TokenBatch, rows: Callable[[int, int], TokenBatch]) -> TokenBatch:
        """The student's batch with targets, on this rank's device; all ranks call it.

        rows: `rows(first, count)` of the step's global batch, alike on all ranks.
        """
        if self._is_alike:
            found = self._model.score(batch, self._head)
        else:
            share = rows(self._model.data_rank * self._share, self._share)
            scored = self._model.score(share, self._head)
            found = {name: self._of_student(x) for name, x in scored.items()}
        here = batch.to(self._model.device)
        return distill.with_targets(here, found["ids"], found["log_probs"], found["log_rest"])

    def _shares_are_alike(self) -> bool:
        """Whether on every rank the teacher's data rank has the rows that the student's has."""
        is_alike = self._share == self._students and self._model.data_rank == self._mine
        everywhere = torch.tensor(int(is_alike), device=self._model.device)
        dist.all_reduce(everywhere, op=dist.ReduceOp.MIN)
        return bool(everywhere.item())

    def _of_student(self, x_BS: Tensor) -> Tensor:
        """Of all data ranks' rows those of the student's data rank."""
        first = self._mine * self._students
        every = self._model.gather_over_data(x_BS)
        return every[first : first + self._students].clone()  # and the others' go away
