"""Held-out rows, shared by data ranks: what every evaluation does, whatever a row is."""

from collections.abc import Callable
from typing import TypeVar

from megatron_qwen3.training.batch import TokenBatch
from megatron_qwen3.training.model import Model

ROWS = 8  # of one data rank that are scored at once
Row = TypeVar("Row")


def share_of_rank(
    model: Model, rows: list[Row], batch_of: Callable[[list[Row]], TokenBatch]
) -> TokenBatch:
    """Of rows, one at least, those of this data rank: equally many on each.

    Ranks share experts, so all score as many; what is missing are rows of weight 0.
    """
    count = -(-len(rows) // model.layout.data)
    first = model.data_rank * count
    mine = rows[first : first + count]
    batch = batch_of(mine or rows[:1]).padded_to(count)
    batch.weights_BS[len(mine) :] = 0
    return batch
