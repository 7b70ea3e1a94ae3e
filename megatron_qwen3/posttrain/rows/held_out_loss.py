"""Loss on held-out dialogs, per source and per thinking mode.

A model may learn one mode and lose the other while their mean falls: so both are reported. Every
trained token counts the same, whatever its dialog weighs. Lines of a set may name their own
sources, its labels: with 2 to 24 of them, each is reported apart, too.

Legend: B rows, S places, G groups: each label of each source, M modes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor

from megatron_qwen3.model.outputs import log_probs
from megatron_qwen3.posttrain.dialogs.dialog_set import MODES
from megatron_qwen3.posttrain.rows.dialog_mixture import DialogMixture
from megatron_qwen3.posttrain.rows.dialog_rows import arrays_of
from megatron_qwen3.posttrain.rows.packing import PackedPlace
from megatron_qwen3.settings import Config
from megatron_qwen3.training.batch import TokenBatch
from megatron_qwen3.training.held_out import ROWS, share_of_rank
from megatron_qwen3.training.metrics import EvalResult
from megatron_qwen3.training.metrics_file import ALL_SOURCES
from megatron_qwen3.training.model import Model

_MOST_LABELS = 24  # of a set that are reported apart


def evaluate(
    model: Model, mixture: DialogMixture, config: Config, goes_on: Callable[[], bool]
) -> dict[str, EvalResult] | None:
    """Results of each source, of its labels as "source: label", of "mode thinking" and "mode
    non-thinking" where lines name one, and of all together; equal on all ranks; {} where nothing
    is held out.

    All ranks call `goes_on` before every batch; None once it returns False.
    """
    rows = mixture.held_out(config.eval.tokens)
    at_once = ROWS * model.layout.data
    labels = [source.dialogs.sources for source in mixture.sources]
    sums_GM2 = torch.zeros(sum(map(len, labels)), len(MODES), 2, dtype=torch.float64)
    for first in range(0, len(rows), at_once):
        if not goes_on():
            return None
        batch_of = partial(_batch, mixture, config)
        batch = share_of_rank(model, rows[first : first + at_once], batch_of)
        group_N = batch.extra["group"].flatten()
        sums_GM2.view(-1, 2).index_add_(0, group_N, _sums(model, batch))
    sums_GM2 = model.sum_over_data(sums_GM2.to(model.device)).cpu()
    return {name: _result(sums_2) for name, sums_2 in _named(mixture, sums_GM2) if sums_2[1]}


def _named(mixture: DialogMixture, sums_GM2: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Nats and tokens of each source, label and mode that is reported."""
    sizes = [len(source.dialogs.sources) for source in mixture.sources]
    for source, sums_LM2 in zip(mixture.sources, torch.split(sums_GM2, sizes), strict=True):
        yield source.name, sums_LM2.sum((0, 1))
        if 1 < len(sums_LM2) <= _MOST_LABELS:
            for label, sums_M2 in zip(source.dialogs.sources, sums_LM2, strict=True):
                yield f"{source.name}: {label}", sums_M2.sum(0)
    for number, name in enumerate(MODES):
        if number:  # 0: no mode
            yield f"mode {name}", sums_GM2[:, number].sum(0)
    yield ALL_SOURCES, sums_GM2.sum((0, 1))


def _batch(
    mixture: DialogMixture, config: Config, rows: Sequence[Sequence[PackedPlace]]
) -> TokenBatch:
    """The rows as a batch: weight 1 for each trained token, and each place's number of group and
    mode."""
    first_groups = [0, *accumulate(len(source.dialogs.sources) for source in mixture.sources)]
    length = config.data.sequence_length
    batch = TokenBatch.of_arrays(arrays_of(rows, mixture, length, "token"))
    batch.weights_BS[batch.weights_BS != 0] = 1
    group_BS = torch.zeros(len(rows), length, dtype=torch.int64)
    for group_S, places in zip(group_BS, rows, strict=True):
        end = 0
        for place in places:
            first, end = end, end + mixture.places(place)
            group = first_groups[place.source] + mixture.label(place)
            group_S[first:end] = group * len(MODES) + mixture.mode(place)
    return replace(batch, extra={"group": group_BS})


def _sums(model: Model, batch: TokenBatch) -> Tensor:
    """Nats and tokens of each place, float64 [B·S, 2]."""
    weights_N = batch.weights_BS.double().flatten()
    log_prob_BS = model.score(batch, log_probs)["log_prob"]
    # The loss at a place of weight 0 may even be infinite.
    nats_N = torch.where(weights_N != 0, -log_prob_BS.cpu().double().flatten(), 0.0)
    return torch.stack([nats_N, weights_N], dim=1)


def _result(sums_2: Tensor) -> EvalResult:
    nats, tokens = sums_2.tolist()
    return EvalResult(nats / tokens, None, int(tokens))
