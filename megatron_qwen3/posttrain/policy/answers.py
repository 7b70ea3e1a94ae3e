"""Sums over the trained tokens of each answer in packed rows, linear in the tokens of a batch.

    answers = Answers.of(batch.extra["sequence"], batch.weights_BS != 0)
    mean_BS = answers.means(difference_BS)        # each token has that of its answer

Legend: B rows, S positions.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Answers:
    """Which answer each token is of.

    place_T: number of its answer in the batch, below B·(S + 1); is_trained_BS: False where a token
    is of none, or not trained: such places give nothing and get 0, derivatives included.
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
        """Of each token the sum over its answer, [B, S], with its gradient."""
        # In one dimension: a GPU adds up in a fixed order there when it is told to.
        x_T = torch.where(self.is_trained_BS, x_BS, 0.0).flatten()
        sums = self._zeros(x_T).index_add(0, self.place_T, x_T)
        return self._of_tokens(sums)

    def means(self, x_BS: Tensor) -> Tensor:
        """Of each token the mean over its answer."""
        return self.sums(x_BS) / self.counts_BS.to(x_BS.dtype)

    def largest(self, x_BS: Tensor) -> Tensor:
        """Of each token the largest in its answer, at least 0; without gradient."""
        x_T = torch.where(self.is_trained_BS, x_BS.detach(), 0.0).flatten()
        return self._of_tokens(self._zeros(x_T).scatter_reduce(0, self.place_T, x_T, "amax"))

    @cached_property
    def counts_BS(self) -> Tensor:
        """How many tokens of its answer are trained, float32, at least 1."""
        return self.sums(torch.ones_like(self.is_trained_BS, dtype=torch.float32)).clamp_min(1.0)

    def _zeros(self, like: Tensor) -> Tensor:
        """One for each answer that rows of this length can have, and one for no answer."""
        B, S = self.is_trained_BS.shape
        return like.new_zeros(B * (S + 1))

    def _of_tokens(self, x_N: Tensor) -> Tensor:
        x_BS = x_N.index_select(0, self.place_T).view_as(self.is_trained_BS)
        return torch.where(self.is_trained_BS, x_BS, 0.0)
