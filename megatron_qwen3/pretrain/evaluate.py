"""Loss and bits per byte on the held-out end of each source.

Bits per byte divide the loss by the UTF-8 bytes of the predicted tokens, so that models with
different tokenizers can be compared. Where a curriculum has too many sources to show, results
are those of its languages and domains. With eval.by they are those of the labels that it names, and
of all sources of the curriculum, so that runs on different mixtures are compared on the same text.
Legend: B rows, S positions, K sources.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from data_prep.curriculum import Source
from data_prep.tokenizer_file import token_bytes
from megatron_qwen3.config import Config
from megatron_qwen3.model.outputs import log_probs
from megatron_qwen3.pretrain.data import Mixture, SamplePlace, SampleRows
from megatron_qwen3.pretrain.rows import arrays_of
from megatron_qwen3.training.batch import TokenBatch
from megatron_qwen3.training.held_out import ROWS, share_of_rank
from megatron_qwen3.training.metrics import EvalResult
from megatron_qwen3.training.metrics_file import ALL_SOURCES
from megatron_qwen3.training.model import Model
from megatron_qwen3.training.run import EvaluationFailed

_GROUPED_FROM = 24  # sources
_GROUPS = ("domain", "language")


def evaluate(
    model: Model, mixture: Mixture, config: Config, goes_on: Callable[[], bool]
) -> dict[str, EvalResult] | None:
    """Results by source or group, equal on all ranks; {} where nothing is held out.

    All ranks call `goes_on` before every batch; None once it returns False. EvaluationFailed:
    a token unknown to model or tokenizer.
    """
    byte_counts = token_bytes(config.data.tokenizer) if config.data.tokenizer else None
    sums_K3 = torch.zeros(len(mixture.sources), 3, dtype=torch.float64)
    for places in _batches(mixture, config, ROWS * model.layout.data):
        if not goes_on():
            return None
        _check_ids(mixture.read(places), mixture, config, byte_counts)
        batch = share_of_rank(model, places, partial(_batch, mixture, config))
        sums_K3.index_add_(0, batch.extra["source"], _sums(model, batch, byte_counts))
    sums_K3 = model.sum_over_data(sums_K3.to(model.device)).cpu()
    names = _results_of_sources(mixture.sources, config.eval.by)
    by_name: dict[str, Tensor] = defaultdict(lambda: torch.zeros(3, dtype=torch.float64))
    for source, sums_3 in zip(mixture.sources, sums_K3, strict=True):
        for name in names[source.name]:
            by_name[name] = by_name[name] + sums_3
    whole = {**by_name, ALL_SOURCES: sums_K3.sum(0)}  # no source has that name: record.py
    return {name: _result(sums_3) for name, sums_3 in whole.items() if sums_3[1]}


def _check_ids(
    rows: SampleRows, mixture: Mixture, config: Config, byte_counts: np.ndarray | None
) -> None:
    """Check ids on every rank, all windows, so that all refuse alike before a kernel fails."""
    most, of = config.model.vocab_size, "model.vocab_size"
    if byte_counts is not None and len(byte_counts) < most:
        most, of = len(byte_counts), f"data.tokenizer = {config.data.tokenizer}"
    highest_B = np.maximum(rows.tokens_BS, rows.labels_BS).max(1)
    row = int(highest_B.argmax())
    if highest_B[row] >= most:
        raise EvaluationFailed(
            f"the held-out text of source {mixture.names[rows.sources_B[row]]} has token "
            f"{highest_B[row]:,}, but {of} has {most:,} tokens"
        )


def _results_of_sources(sources: tuple[Source, ...], by: Sequence[str]) -> dict[str, list[str]]:
    """The results that each source counts in, by its name; `by` is eval.by."""
    if by:
        return {s.name: ["/".join(s.labels[label] for label in by)] for s in sources}
    if len(sources) < _GROUPED_FROM or not all(source.labels for source in sources):
        return {source.name: [source.name] for source in sources}
    return {
        source.name: [f"{group} {source.labels[group]}" for group in _GROUPS] for source in sources
    }


def _batches(mixture: Mixture, config: Config, rows: int) -> Iterator[list[SamplePlace]]:
    """Windows of all sources, `rows` at a time.

    A group's sources share its eval.tokens, but each has at least one window.
    """
    names = _results_of_sources(mixture.sources, config.eval.by)
    members = Counter(names[source.name][-1] for source in mixture.sources)
    places = []
    for index, source in enumerate(mixture.sources):
        budget = config.eval.tokens // members[names[source.name][-1]]
        places += mixture.held_out(index, budget)
    for first in range(0, len(places), rows):
        yield places[first : first + rows]


def _sums(model: Model, batch: TokenBatch, byte_counts: np.ndarray | None) -> Tensor:
    """Nats, tokens and bytes of each row, float64 [B, 3]."""
    weights_BS = batch.weights_BS.double()
    log_prob_BS = model.score(batch, log_probs)["log_prob"]
    nats_B = -(log_prob_BS.cpu().double() * weights_BS).sum(1)
    bytes_B = torch.zeros_like(nats_B)
    if byte_counts is not None:
        bytes_B = (torch.from_numpy(byte_counts)[batch.labels_BS] * weights_BS).sum(1)
    return torch.stack([nats_B, weights_BS.sum(1), bytes_B], dim=1)


def _result(sums_3: Tensor) -> EvalResult:
    nats, tokens, num_bytes = sums_3.tolist()
    bits_per_byte = nats / math.log(2) / num_bytes if num_bytes else None
    return EvalResult(nats / tokens, bits_per_byte, int(tokens))


def _batch(mixture: Mixture, config: Config, places: list[SamplePlace]) -> TokenBatch:
    """The windows as a batch, read as in training: documents are kept apart if they are there."""
    rows = mixture.read(places, config.data.reset_at_documents)
    return TokenBatch.of_arrays(replace(arrays_of(rows), extra={"source": rows.sources_B}))
