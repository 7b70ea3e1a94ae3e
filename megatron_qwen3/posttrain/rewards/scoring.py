"""Rewards of answers by a reward model in any layout: `scores(model, answers, row_tokens=8192)`.

Answers share rows by best fit and attend only to themselves; data ranks share the rows. All ranks
call it with the same answers and get all scores.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch

from data_prep.best_fit import best_fit
from megatron_qwen3.model.outputs import scalar
from megatron_qwen3.model.stretches import Stretches
from megatron_qwen3.parallel.layout import row_unit
from megatron_qwen3.posttrain.rewards.answer_lines import Ids
from megatron_qwen3.training.batch import TokenBatch
from megatron_qwen3.training.held_out import share_of_rank
from megatron_qwen3.training.model import Model

_UNIT = 64  # places; rounding row lengths up to it gives fewer shapes of memory


def scores(model: Model, answers: Sequence[Ids], row_tokens: int) -> list[float]:
    """The reward of each answer, at its last id, in order.

    row_tokens: places of a row; a longer answer lengthens the rows of its batch.
    """
    lengths_N = np.array([len(ids) for ids in answers], np.int64)
    length = max(int(lengths_N.max()), min(row_tokens, int(lengths_N.sum())))
    unit = math.lcm(
        _UNIT, row_unit(model.config.parallel, model.config.fp8)[0]
    )  # ranks share a row's places
    length = -(-length // unit) * unit
    rows = best_fit(lengths_N, length)
    batch = share_of_rank(model, rows, lambda rows: _batch(rows, answers, length))
    reward_BS = model.score(batch, scalar)["scalar"]
    is_end_BS = batch.weights_BS > 0
    reward_N = torch.zeros(len(answers), dtype=torch.float64, device=model.device)
    places_N = batch.extra["answer"][is_end_BS].to(model.device)
    reward_N[places_N] = reward_BS[is_end_BS.to(model.device)].double()
    scored: list[float] = model.sum_over_data(reward_N).tolist()
    return scored


def _batch(rows: Sequence[Sequence[int]], answers: Sequence[Ids], length: int) -> TokenBatch:
    """Rows of answers; where one ends, weights_BS is 1 and extra `answer` is its number."""
    tokens_BS, answer_BS = torch.zeros(2, len(rows), length, dtype=torch.int64)
    weights_BS = torch.zeros(len(rows), length)
    valid_BS = torch.zeros(len(rows), length, dtype=torch.bool)
    starts: list[list[int]] = []
    for b, numbers in enumerate(rows):
        end, begins = 0, []
        for number in numbers:
            ids = torch.from_numpy(answers[number])
            begins.append(end)
            tokens_BS[b, end : end + len(ids)] = ids
            end += len(ids)
            weights_BS[b, end - 1], answer_BS[b, end - 1] = 1, number
        valid_BS[b, :end] = True
        starts.append(begins + [end] * (end < length))
    return TokenBatch(
        tokens_BS,
        tokens_BS,
        weights_BS,
        Stretches.of(starts, length),
        valid_BS,
        {"answer": answer_BS},
    )
