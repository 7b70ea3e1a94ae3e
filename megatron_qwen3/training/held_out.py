"""Shares held-out rows among data ranks, for every kind of evaluation."""

from collections.abc import Callable
from typing import TypeVar

from megatron_qwen3.training.batch import TokenBatch
from megatron_qwen3.training.model import Model

ROWS = 8  # that a data rank scores at once
Row = TypeVar("Row")


def share_of_rank(
    model: Model, rows: list[Row], batch_of: Callable[[list[Row]], TokenBatch]
) -> TokenBatch:
    """This data rank's share of one row or more: equally many on each.

    Ranks share experts, so all must score the same number; rows of weight 0 fill the shares.
    """
    count = -(-len(rows) // model.layout.data)
    first = model.data_rank * count
    mine = rows[first : first + count]
    batch = batch_of(mine or rows[:1]).padded_to(count)
    batch.weights_BS[len(mine) :] = 0
    return batch
