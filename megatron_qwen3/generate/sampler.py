"""Chooses the next token of each row from its logits, as transformers' logits processors do.

Pure functions on float32 [B, V], in transformers' order: repetition penalty, temperature, top-k,
top-p, min-p. The presence penalty, which transformers lacks, comes after the repetition penalty.
`Sampler` keeps their state from one token to the next.

Every row draws from a random sequence of its own, made from the seed and the row's number: its
tokens depend neither on the rows beside it nor on the device.

Legend: B rows, V vocabulary, M candidates: the tokens that top-k leaves, at most V.
"""

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from megatron_qwen3.cpu import kernels
from megatron_qwen3.generate.sampling import Sampling


class Sampler:
    """Chooses tokens for B rows and records which tokens they have."""

    def __init__(
        self,
        sampling: Sampling,
        prompts: Sequence[Sequence[int]],
        first_row: int,
        vocabulary: int,
        device: torch.device,
        draws: Sequence[tuple[int, int]] | None = None,
    ) -> None:
        """Row i draws with the seed of `sampling` and the number `first_row` + i, or with its own
        seed and number of `draws`."""
        self.sampling = sampling
        rows = range(first_row, first_row + len(prompts))
        draws = [(sampling.seed, row) for row in rows] if draws is None else draws
        # Seeded by a text, which Python hashes, so that neighbouring rows are independent.
        self.randoms = [random.Random(f"{seed}/{number}") for seed, number in draws]
        shape = (len(prompts), vocabulary)
        self.seen_BV = self.written_BV = None
        if sampling.repetition_penalty != 1:
            self.seen_BV = torch.zeros(shape, dtype=torch.bool, device=device)
            for seen_V, prompt in zip(self.seen_BV, prompts, strict=True):
                seen_V[torch.tensor(prompt, device=device)] = True
        if sampling.presence_penalty:
            self.written_BV = torch.zeros(shape, dtype=torch.bool, device=device)

    def choose(self, logits_BV: Tensor) -> Tensor:
        """A token for each row, int64 [B]."""
        scores_BV, sampling = logits_BV, self.sampling
        if self.seen_BV is not None:
            scores_BV = penalize_repetition(scores_BV, self.seen_BV, sampling.repetition_penalty)
        if self.written_BV is not None:
            scores_BV = scores_BV - sampling.presence_penalty * self.written_BV
        if not sampling.temperature:
            return scores_BV.argmax(-1)
        uniform_B = torch.tensor([r.random() for r in self.randoms], dtype=torch.float64)
        return draw(*candidates(scores_BV, sampling), uniform_B.to(scores_BV.device))

    def remember(self, tokens_B: Tensor) -> None:
        """Record the token of each row, which may differ from `choose`'s."""
        for mask_BV in (self.seen_BV, self.written_BV):
            if mask_BV is not None:
                mask_BV.scatter_(1, tokens_B[:, None], True)

    def keep(self, rows: Tensor) -> None:
        """Keep only these rows."""
        self.randoms = [self.randoms[row] for row in rows.tolist()]
        if self.seen_BV is not None:
            self.seen_BV = self.seen_BV[rows]
        if self.written_BV is not None:
            self.written_BV = self.written_BV[rows]


def penalize_repetition(scores_BV: Tensor, seen_BV: Tensor, penalty: float) -> Tensor:
    """Lower the scores where `seen_BV` (bool) is set, for a penalty above 1."""
    penalized_BV = torch.where(scores_BV < 0, scores_BV * penalty, scores_BV / penalty)
    return torch.where(seen_BV, penalized_BV, scores_BV)


def candidates(scores_BV: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Scores after temperature, top-k, top-p and min-p, and their token ids, both [B, M].

    Ascending in each row; without any cut, in the order of ids, since sorting a vocabulary takes
    longer than all the rest; -inf for cut tokens. Of equal scores at the edge of top-p, larger ids
    stay; in transformers the choice is undefined.
    """
    scores_BM, ids_BM = _top_k(scores_BV / sampling.temperature, sampling.top_k)
    if sampling.top_p == 1 and not sampling.min_p and scores_BM.shape == scores_BV.shape:
        return scores_BM, ids_BM
    scores_BM, order_BM = scores_BM.sort(dim=-1, stable=True)
    if sampling.top_p < 1:
        cut_BM = running_sum(scores_BM.softmax(-1)) <= 1 - sampling.top_p
        cut_BM[:, -1] = False
        scores_BM = scores_BM.masked_fill(cut_BM, -torch.inf)
    if sampling.min_p > 0:
        probs_BM = scores_BM.softmax(-1)
        cut_BM = probs_BM < sampling.min_p * probs_BM[:, -1:]
        scores_BM = scores_BM.masked_fill(cut_BM, -torch.inf)
    return scores_BM, ids_BM.gather(1, order_BM)


def draw(scores_BM: Tensor, ids_BM: Tensor, uniform_B: Tensor) -> Tensor:
    """The id at which the cumulative probability passes `uniform_B` (float64, below 1), [B]."""
    sum_BM = running_sum(scores_BM.double().softmax(-1))
    least_B1 = uniform_B[:, None] * sum_BM[:, -1:]
    place_B1 = torch.searchsorted(sum_BM, least_B1, right=True)
    # NaN has no place; training on its result will report it.
    return ids_BM.gather(1, place_B1.clamp_(max=sum_BM.shape[1] - 1)).squeeze(1)


def running_sum(x_BM: Tensor) -> Tensor:
    """The sum of each number and all before it in its row."""
    if kernels.has_running_sum(x_BM):
        return x_BM.cumsum(-1)
    reach = 1  # numbers in each sum so far (Hillis and Steele, 1986)
    while reach < x_BM.shape[1]:
        x_BM = torch.cat([x_BM[:, :reach], x_BM[:, reach:] + x_BM[:, :-reach]], 1)
        reach *= 2
    return x_BM


def log_probs(logits_BV: Tensor, tokens_B: Tensor, temperature: float) -> Tensor:
    """log p(token), [2, B]: of the model's own logits, and of those divided by the temperature; at
    temperature 0 both are the former."""
    plain_B = _log_p(logits_BV, tokens_B)
    if temperature in (0, 1):
        return plain_B.expand(2, -1)
    return torch.stack([plain_B, _log_p(logits_BV / temperature, tokens_B)])


def _log_p(logits_BV: Tensor, tokens_B: Tensor) -> Tensor:
    picked_B = logits_BV.gather(1, tokens_B[:, None]).squeeze(1)
    return picked_B - logits_BV.logsumexp(-1)


def _top_k(scores_BV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Scores and ids, ascending, of the k largest and all equal to the k-th; rows with fewer
    than the longest are filled up with -inf."""
    B, V = scores_BV.shape
    if not 0 < k < V:
        return scores_BV, torch.arange(V, device=scores_BV.device).expand(B, V)
    least_B1 = scores_BV.topk(k, dim=-1).values[:, -1:]
    kept_BV = scores_BV >= least_B1
    most = int(kept_BV.sum(-1).max())
    ids_BM = scores_BV.topk(most, dim=-1, sorted=False).indices.sort(dim=-1).values
    scores_BM = scores_BV.gather(1, ids_BM)
    return scores_BM.masked_fill(scores_BM < least_B1, -torch.inf), ids_BM
