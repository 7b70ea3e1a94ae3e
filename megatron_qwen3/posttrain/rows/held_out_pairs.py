"""Loss and accuracy on held-out pairs: of each source, and of all together.

Accuracy is the share of pairs whose chosen answer has the higher reward; a tie is no win. Both
means are by the pairs' weights, as in training. Legend: B rows, S positions, K sources, N pairs.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from megatron_qwen3.model.outputs import scalar
from megatron_qwen3.posttrain.rows.bradley_terry import bradley_terry
from megatron_qwen3.posttrain.rows.packing import PackedPlace
from megatron_qwen3.posttrain.rows.pair_mixture import PairMixture
from megatron_qwen3.posttrain.rows.pair_rows import MARGIN, REJECTED, SOURCE, arrays_of
from megatron_qwen3.settings import Config
from megatron_qwen3.training.batch import TokenBatch
from megatron_qwen3.training.held_out import ROWS, share_of_rank
from megatron_qwen3.training.metrics import EvalResult
from megatron_qwen3.training.metrics_file import ALL_SOURCES
from megatron_qwen3.training.model import Model


def evaluate(
    model: Model, mixture: PairMixture, config: Config, goes_on: Callable[[], bool]
) -> dict[str, EvalResult] | None:
    """Results of each source, and of all, equal on all ranks; {} where nothing is held out.

    All ranks call `goes_on` before every batch; None once it returns False.
    """
    rows = mixture.held_out(config.eval.tokens)
    at_once = ROWS * model.layout.data
    batch_of = partial(_batch, mixture, config)
    sums_K4 = torch.zeros(len(mixture.sources), 4, dtype=torch.float64)
    for first in range(0, len(rows), at_once):
        if not goes_on():
            return None
        batch = share_of_rank(model, rows[first : first + at_once], batch_of)
        is_pair_BS = batch.weights_BS > 0
        sums_K4.index_add_(0, batch.extra[SOURCE][is_pair_BS], _sums(model, batch, is_pair_BS))
    sums_K4 = model.sum_over_data(sums_K4.to(model.device)).cpu()
    tokens_K1 = torch.zeros(len(mixture.sources), 1, dtype=torch.float64)
    for place in (place for row in rows for place in row):
        tokens_K1[place.source] += mixture.tokens(place)
    sums_K5 = torch.cat([sums_K4, tokens_K1], 1)
    named = {s.name: sums_5 for s, sums_5 in zip(mixture.sources, sums_K5, strict=True)}
    named[ALL_SOURCES] = sums_K5.sum(0)
    return {name: _result(sums_5) for name, sums_5 in named.items() if sums_5[3]}


def _batch(
    mixture: PairMixture, config: Config, rows: Sequence[Sequence[PackedPlace]]
) -> TokenBatch:
    length, margin = config.data.sequence_length, config.reward.margin
    return TokenBatch.of_arrays(arrays_of(rows, mixture, length, margin))


def _sums(model: Model, batch: TokenBatch, is_pair_BS: Tensor) -> Tensor:
    """For each pair, its weighted loss and accuracy, its weight, and 1; float64 [N, 4]."""
    reward_BS = model.score(batch, scalar)["scalar"].cpu().double()
    chosen_N = reward_BS[is_pair_BS]
    rejected_N = reward_BS.gather(1, batch.extra[REJECTED])[is_pair_BS]
    weights_N = batch.weights_BS[is_pair_BS].double()
    loss_N = bradley_terry(chosen_N, rejected_N, batch.extra[MARGIN][is_pair_BS].double())
    accuracy_N = (chosen_N > rejected_N).double()
    ones_N = torch.ones_like(weights_N)
    return torch.stack([loss_N * weights_N, accuracy_N * weights_N, weights_N, ones_N], 1)


def _result(sums_5: Tensor) -> EvalResult:
    loss, accuracy, weight, pairs, tokens = sums_5.tolist()
    return EvalResult(loss / weight, None, int(tokens), accuracy / weight, int(pairs))
