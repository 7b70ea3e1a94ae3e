"""Sums over the trained tokens of each answer in packed rows, linear in the tokens of a batch.

    answers = Answers.of(batch.extra["sequence"], batch.weights_BS != 0)
    mean_BS = answers.means(difference_BS)        # each token gets the mean of its answer

Legend: B rows, S positions.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Answers:
    """Maps tokens to answers.

    place_T: number of the token's answer in the batch, below B·(S + 1); is_trained_BS: False where
    a token belongs to no answer or is not trained: it adds nothing to sums and gets 0, with a
    derivative of 0.
    """

    place_T: Tensor
    is_trained_BS: Tensor

    @classmethod
    def of(cls, sequence_BS: Tensor, is_trained_BS: Tensor) -> Self:
        """sequence_BS: int64 number of the answer within its row, -1 where there is none."""
        B, S = sequence_BS.shape
        first_B1 = (S + 1) * torch.arange(B, device=sequence_BS.device).unsqueeze(1)
        return cls((first_B1 + sequence_BS + 1).flatten(), is_trained_BS)

    def sums(self, x_BS: Tensor) -> Tensor:
        """For each token, the sum over its answer, [B, S], with gradient."""
        # In one dimension: there a GPU can be told to add in a fixed order.
        x_T = torch.where(self.is_trained_BS, x_BS, 0.0).flatten()
        sums = self._zeros(x_T).index_add(0, self.place_T, x_T)
        return self._of_tokens(sums)

    def means(self, x_BS: Tensor) -> Tensor:
        """For each token, the mean over its answer."""
        return self.sums(x_BS) / self.counts_BS.to(x_BS.dtype)

    def largest(self, x_BS: Tensor) -> Tensor:
        """For each token, the largest value in its answer, at least 0; without gradient."""
        x_T = torch.where(self.is_trained_BS, x_BS.detach(), 0.0).flatten()
        return self._of_tokens(self._zeros(x_T).scatter_reduce(0, self.place_T, x_T, "amax"))

    @cached_property
    def counts_BS(self) -> Tensor:
        """For each token, the number of trained tokens of its answer, float32, at least 1."""
        return self.sums(torch.ones_like(self.is_trained_BS, dtype=torch.float32)).clamp_min(1.0)

    def _zeros(self, like: Tensor) -> Tensor:
        """Zeros: one for each answer that rows of this length can have, and one for no answer."""
        B, S = self.is_trained_BS.shape
        return like.new_zeros(B * (S + 1))

    def _of_tokens(self, x_N: Tensor) -> Tensor:
        x_BS = x_N.index_select(0, self.place_T).view_as(self.is_trained_BS)
        return torch.where(self.is_trained_BS, x_BS, 0.0)
