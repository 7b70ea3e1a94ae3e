"""Loss by position, and passkey retrieval, of a model at one length.

    nats_P = losses(model, texts, length=4096, bins=32)       # every rank gets the result
    found = keys_found(model, prompts)

Rows are shared by the data ranks; context, tensor and pipeline ranks share each row as the model's
layout says. Legend: P equal parts of a text, S positions.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from megatron_qwen3.model.distributions import top_k
from megatron_qwen3.model.outputs import log_probs
from megatron_qwen3.reading.passkey import Prompt
from megatron_qwen3.training.batch import TokenBatch
from megatron_qwen3.training.held_out import share_of_rank
from megatron_qwen3.training.model import Model

Row = TypeVar("Row")
Done = Callable[[int], None]


def losses(
    model: Model, texts: Sequence[Sequence[int]], length: int, bins: int, done: Done
) -> list[float]:
    """Mean nats of each P-th of `length` predicted tokens, over texts of length + 1 at least.

    done: called after each pass with the number of texts read.
    """
    sums_P = torch.zeros(bins, dtype=torch.float64)
    for group in _groups(model, texts):
        batch = share_of_rank(model, group, lambda rows: _batch(rows, length))
        nats_BS = -model.score(batch, log_probs)["log_prob"].cpu().double() * batch.weights_BS
        sums_P += torch.stack([part.mean(1).sum() for part in nats_BS.tensor_split(bins, 1)])
        done(len(group))
    whole_P = model.sum_over_data(sums_P.to(model.device)).cpu() / len(texts)
    found: list[float] = whole_P.tolist()
    return found


def keys_found(model: Model, prompts: Sequence[Prompt], done: Done) -> list[bool]:
    """Whether each token of a prompt's key is the most probable one after the true tokens before
    it, so that greedy generation would write the key. Prompts have equal length."""
    found = torch.zeros(len(prompts), dtype=torch.float64)
    for group in _groups(model, list(enumerate(prompts))):
        batch = share_of_rank(model, group, _asking)
        best_BS = model.score(batch, top_k(1))["ids"][..., 0].cpu()
        is_right_B = ((best_BS == batch.labels_BS) | (batch.extra["asked"] == 0)).all(1)
        is_mine_B = batch.weights_BS[:, 0] != 0
        found.index_add_(0, batch.extra["number"], (is_right_B & is_mine_B).double())
        done(len(group))
    return [bool(n) for n in model.sum_over_data(found.to(model.device)).cpu().tolist()]


def _groups(model: Model, rows: Sequence[Row]) -> list[list[Row]]:
    """Groups of one row per data rank, since long rows fill memory."""
    size = model.layout.data
    return [list(rows[first : first + size]) for first in range(0, len(rows), size)]


def _batch(texts: Sequence[Sequence[int]], length: int) -> TokenBatch:
    ids = torch.tensor([text[: length + 1] for text in texts])
    return TokenBatch.of(ids[:, :-1], ids[:, 1:])


def _asking(prompts: Sequence[tuple[int, Prompt]]) -> TokenBatch:
    """The batch of prompts; the last position has no label, as the key ends one before."""
    ids = torch.tensor([prompt.ids for _, prompt in prompts])
    labels, asked = ids.roll(-1, 1), torch.zeros_like(ids)
    for row, (_, prompt) in enumerate(prompts):
        asked[row, -prompt.answer - 1 : -1] = 1
    numbers = torch.tensor([number for number, _ in prompts])
    weights = torch.ones(ids.shape)
    return TokenBatch(ids, labels, weights, extra={"asked": asked, "number": numbers})


def last_quarter(nats_P: Sequence[float]) -> float:
    """Mean nats of the last quarter of a text."""
    part: Tensor = torch.tensor(nats_P[-(len(nats_P) // 4) :], dtype=torch.float64)
    return float(part.mean())
