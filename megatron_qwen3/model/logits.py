"""The logits of a pass as heads see them: split over the vocabulary, and never whole.

    logits = output_layer(hidden_SBH)
    log_p_SB, log_z_SB, entropy_SB = logits.scores(labels_SB, with_entropy=True)
    log_p_SBK, ids_SBK = logits.top_k(64)
    log_p_SBK = student_logits.scores(ids_SBK).log_p

Nothing is computed before a method is called, and each call multiplies anew: a head that needs
several numbers of the same logits asks for them in one call. How: `model/tiles.py`.
Legend: S positions, B rows, H hidden size, v = V/tp this tensor rank's slice of the vocabulary,
K ids of each position, T = S·B.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_qwen3.cpu.products import product
from megatron_qwen3.model.linear import Products
from megatron_qwen3.model.tiles import (
    TILE_BYTES,
    TiledLogProbs,
    joined,
    over_ranks,
    part_and_exps,
    row_blocks,
)
from megatron_qwen3.parallel.mcore import ColumnParallelLinear, TransformerConfig, tensor_parallel


class Scores(NamedTuple):
    """Of each position, float32: see Logits.scores."""

    log_p: Tensor  # [S, B], or [S, B, K]
    log_z: Tensor  # [S, B]: log Σ exp(logit), over the whole vocabulary
    entropy: Tensor | None  # [S, B]: -Σ p log p, in nats


@dataclass(frozen=True, eq=False)
class Logits:
    """hidden · weightᵀ, split over the vocabulary: [S, B, v] on each rank of `group`.

    hidden_SBH: of all positions, equal on all ranks. Its gradient here is this rank's share, which
    `OutputLayer` sees summed. The weight's gradient goes into its `main_grad` if megatron-core's
    DDP has given it one. tile_bytes: of the logits, as float32, that exist at a time; if all of
    them fit, they are kept from the forward to the backward pass.
    """

    hidden_SBH: Tensor
    weight_vH: Tensor
    group: Any
    tile_bytes: int = TILE_BYTES

    def whole(self) -> Tensor:
        """This rank's slice of the logits of all positions, [S, B, v]: for small models to look."""
        return self.hidden_SBH @ self.weight_vH.t()

    def of_places(self, place_B: Tensor | None, products: Products) -> Tensor:
        """This rank's slice at one position of each row, the last by default, [B, v]; untrained."""
        hidden_SBH = self.hidden_SBH
        if place_B is None:
            hidden_BH = hidden_SBH[-1]
        else:
            hidden_BH = hidden_SBH[place_B, torch.arange(len(place_B), device=place_B.device)]
        return products.of(hidden_BH[None], self.weight_vH).squeeze(0)

    def scores(self, ids: Tensor, with_entropy: bool = False) -> Scores:
        """log p of one id per position, [S, B], or of K, [S, B, K]; log z; the entropy if asked.

        All three have gradients. log p is NaN where an id is below 0 or not below V: whoever takes
        labels from outside checks them, or leaves such positions out by torch.where.
        """
        shape = self.hidden_SBH.shape[:-1]
        K = ids.shape[-1] if ids.dim() > len(shape) else 1
        ids_TK = ids.reshape(shape.numel(), K)
        hidden_TH = self.hidden_SBH.flatten(0, -2)
        log_p_TK, log_z_T, entropy_T = TiledLogProbs.apply(
            hidden_TH, self.weight_vH, ids_TK, self.group, with_entropy, self.tile_bytes
        )
        entropy = None if entropy_T is None else entropy_T.view(shape)
        return Scores(log_p_TK.view(ids.shape), log_z_T.view(shape), entropy)

    @torch.no_grad()
    def top_k(self, k: int) -> tuple[Tensor, Tensor]:
        """The k most probable ids of each position: log p, falling, and the ids, [S, B, k] both.

        Without gradient; equal on all ranks. ValueError if the vocabulary has not so many.
        """
        v, ranks = len(self.weight_vH), self.group.size()
        if not 0 < k <= v * ranks:
            raise ValueError(
                f"the {k} most probable of {v * ranks} tokens; valid: 1 to all of them"
            )
        shape = self.hidden_SBH.shape[:-1]
        hidden_TH = self.hidden_SBH.flatten(0, -2)
        parts, best = [], []
        for rows in row_blocks(len(hidden_TH), v, self.tile_bytes):
            logits_nv = product(hidden_TH[rows], self.weight_vH.t())
            best.append(logits_nv.topk(min(k, v)))
            no_ids = torch.empty(len(logits_nv), 0, dtype=torch.int64, device=logits_nv.device)
            parts.append(part_and_exps(logits_nv, no_ids, with_entropy=False)[0])
        part, (logits_TK, ids_TK) = joined(parts), map(torch.cat, zip(*best, strict=True))
        log_factor_T = over_ranks(part, self.group).log_factor_T
        log_p_TK = logits_TK - part.peak_T.unsqueeze(1) + log_factor_T.unsqueeze(1)
        ids_TK = ids_TK + self.group.rank() * v
        log_p_TK, column_TK = _of_all_ranks(log_p_TK, self.group).topk(k)
        ids_TK = _of_all_ranks(ids_TK, self.group).gather(1, column_TK)
        return log_p_TK.view(*shape, k), ids_TK.view(*shape, k)


class OutputLayer(ColumnParallelLinear):
    """megatron-core's output layer, which leaves the product to heads; takes `other`'s weight.

    A module that is called: where data ranks share the update of a weight, a hook of its module
    waits until all have it.
    """

    def __init__(self, config: TransformerConfig, other: ColumnParallelLinear) -> None:
        super().__init__(
            other.input_size,
            other.output_size,
            config=config,
            init_method=config.init_method,
            bias=False,
            gather_output=False,
            skip_weight_param_allocation=True,
            tp_group=other.tp_group,
        )
        self.weight = other.weight

    def forward(self, hidden_SBH: Tensor, weight_vH: Tensor | None = None) -> Logits:
        """weight_vH: in place of the layer's own, where the embedding's matrix is the output's.

        With sequence parallelism hidden_SBH is this rank's part of the positions: all are gathered.
        """
        group = self.tp_group
        if self.sequence_parallel:
            hidden_SBH = tensor_parallel.gather_from_sequence_parallel_region(
                hidden_SBH, group=group
            )
        else:
            hidden_SBH = tensor_parallel.copy_to_tensor_model_parallel_region(
                hidden_SBH, group=group
            )
        return Logits(hidden_SBH, self.weight if weight_vH is None else weight_vH, group)


def _of_all_ranks(x_TK: Tensor, group: Any) -> Tensor:
    """All ranks' columns side by side, [T, K · ranks]."""
    if group.size() == 1:
        return x_TK
    of_ranks = [torch.empty_like(x_TK) for _ in range(group.size())]
    dist.all_gather(of_ranks, x_TK.contiguous(), group=group)
    return torch.cat(of_ranks, 1)
