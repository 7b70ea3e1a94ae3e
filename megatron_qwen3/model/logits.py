"""The logits of a pass as heads use them: split over the vocabulary, and never whole.

    logits = output_layer(hidden_SBH)
    log_p_SB, log_z_SB, entropy_SB, _ = logits.scores(labels_SB, with_entropy=True)
    log_p_SBK, ids_SBK, log_rest_SB = logits.top_k(64)
    scores = student_logits.scores(ids_SBK, rest_of=64)

Nothing is computed before a method is called, and each call multiplies anew: a head that needs
several values of the same logits gets them in one call. `model/tiles.py` has the algorithm.
Legend: S positions, B rows, H hidden size, v = V/tp this tensor rank's slice of the vocabulary,
K ids of each position, T = S·B.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_qwen3.model.linear import Products
from megatron_qwen3.model.tiles import (
    TILE_BYTES,
    TiledLogProbs,
    divided,
    joined,
    over_ranks,
    part_and_exps,
    row_blocks,
    tempered_logits,
)
from megatron_qwen3.parallel.mcore import ColumnParallelLinear, TransformerConfig, tensor_parallel


class Scores(NamedTuple):
    """Values of each position, float32: see Logits.scores."""

    log_p: Tensor  # [S, B], or [S, B, K]
    log_z: Tensor  # [S, B]: log Σ exp(logit), over the whole vocabulary
    entropy: Tensor | None  # [S, B]: -Σ p log p, in nats
    log_rest: Tensor | None  # [S, B]: log Σ p over all ids except the given ones


class Best(NamedTuple):
    """The k most probable ids of each position, float32 and int64: see Logits.top_k."""

    log_p: Tensor  # [S, B, k], falling
    ids: Tensor  # [S, B, k]
    log_rest: Tensor  # [S, B]: log Σ p over all other ids, LEAST_LOG_REST at least


@dataclass(frozen=True, eq=False)
class Logits:
    """hidden · weightᵀ, split over the vocabulary: [S, B, v] on each rank of `group`.

    hidden_SBH: of all positions, equal on all ranks. Its gradient here is this rank's share, which
    `OutputLayer` gets summed. The weight's gradient goes into its `main_grad` if megatron-core's
    DDP has given it one. temperature: divides the products. tile_bytes: of the logits,
    as float32, that exist at a time; if all of them fit, they are kept from the forward to the
    backward pass.
    """

    hidden_SBH: Tensor
    weight_vH: Tensor
    group: Any
    tile_bytes: int = TILE_BYTES
    temperature: float = 1.0

    def whole(self) -> Tensor:
        """This rank's slice of the logits of all positions, [S, B, v]: for small models and
        inspection."""
        return divided(self.hidden_SBH @ self.weight_vH.t(), self.temperature)

    def of_places(self, place_B: Tensor | None, products: Products) -> Tensor:
        """This rank's slice at one position of each row, the last by default, [B, v]; untrained."""
        hidden_SBH = self.hidden_SBH
        if place_B is None:
            hidden_BH = hidden_SBH[-1]
        else:
            hidden_BH = hidden_SBH[place_B, torch.arange(len(place_B), device=place_B.device)]
        return divided(products.of(hidden_BH[None], self.weight_vH).squeeze(0), self.temperature)

    def tempered(self, temperature: float) -> "Logits":
        """The logits divided by a temperature above 0, in float32 at least."""
        return replace(self, temperature=self.temperature * temperature)

    def scores(self, ids: Tensor, with_entropy: bool = False, rest_of: int = 0) -> Scores:
        """log p of one id per position, [S, B], or of K, [S, B, K]; log z; the entropy if asked.

        rest_of: if above 0, log Σ p over all ids except the first so many of the K, at least
        LEAST_LOG_REST; its gradient is right where these are distinct, and finite everywhere.
        All have gradients. log p is NaN where an id is below 0 or not below V: callers check labels
        from outside, or drop such positions by torch.where.
        """
        shape = self.hidden_SBH.shape[:-1]
        K = ids.shape[-1] if ids.dim() > len(shape) else 1
        ids_TK = ids.reshape(shape.numel(), K)
        hidden_TH = self.hidden_SBH.flatten(0, -2)
        log_p_TK, log_z_T, entropy_T, log_rest_T = TiledLogProbs.apply(
            hidden_TH,
            self.weight_vH,
            ids_TK,
            self.group,
            with_entropy,
            rest_of,
            self.temperature,
            self.tile_bytes,
        )
        entropy, log_rest = (None if x is None else x.view(shape) for x in (entropy_T, log_rest_T))
        return Scores(log_p_TK.view(ids.shape), log_z_T.view(shape), entropy, log_rest)

    @torch.no_grad()
    def top_k(self, k: int) -> Best:
        """The k most probable ids of each position, and log p of all others together.

        Without gradient; equal on all ranks. ValueError if the vocabulary has fewer ids.
        """
        v, ranks = len(self.weight_vH), self.group.size()
        if not 0 < k <= v * ranks:
            raise ValueError(
                f"the {k} most probable of {v * ranks} tokens; valid: 1 to all of them"
            )
        shape, own = self.hidden_SBH.shape[:-1], min(k, v)
        hidden_TH = self.hidden_SBH.flatten(0, -2)
        parts, ids = [], []
        for rows in row_blocks(len(hidden_TH), v, self.tile_bytes):
            logits_nv = tempered_logits(hidden_TH[rows], self.weight_vH, self.temperature)
            ids.append(logits_nv.topk(own).indices)
            parts.append(part_and_exps(logits_nv, ids[-1], with_entropy=False, rest_of=own)[0])
        part, ids_TK = joined(parts), torch.cat(ids) + self.group.rank() * v
        of_all = part._replace(above_TK=part.above_TK[:, :0], is_mine_TK=part.is_mine_TK[:, :0])
        whole = over_ranks(of_all, self.group)
        log_p_TK = part.above_TK + whole.log_factor_T.unsqueeze(1)
        log_p_TK, column_TK = _of_all_ranks(log_p_TK, self.group).sort(-1, descending=True)
        ids_TK = _of_all_ranks(ids_TK, self.group).gather(1, column_TK[:, :k])
        log_rest_T = torch.logaddexp(whole.log_rest_T, log_p_TK[:, k:].logsumexp(-1))
        log_p_TK = log_p_TK[:, :k]
        return Best(log_p_TK.reshape(*shape, k), ids_TK.view(*shape, k), log_rest_T.view(shape))


class OutputLayer(ColumnParallelLinear):
    """megatron-core's output layer, which leaves the product to heads; takes `other`'s weight.

    It is a called module, since hooks on modules make sure that data ranks which share the update
    of a weight have all of it.
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
