"""Log-probabilities under logits that never exist as a whole: hidden · weightᵀ, tile by tile.

The float32 logits of 32,768 positions over a vocabulary of 151,936 are 18.5 GiB, and plain code
stores them three times. Here one autograd function goes from the hidden states to the values that
losses need: the forward pass takes some positions at a time and keeps a few numbers for each; the
backward pass computes the logits again, a tile of positions and columns at a time, and multiplies
each tile's gradient at once. Logits that fit into one tile are kept, and not computed twice. Either
way the tensor ranks communicate twice in the forward pass, a few numbers per position, and not at
all in the backward pass. `model/logits.py` calls this.

With m the largest logit of this rank's slice, e = exp(logit - m), M the largest m of all ranks,
Z = Σ e · exp(m - M) over the whole vocabulary, f = exp(m - M) / Z, and g upstream gradients:

    p = f · e      log p = log e + log f      log z = M + log Z
    entropy H = -Σ p log p = log Z - Σ (e log e + e · (m - M)) · exp(m - M) / Z
    rest r = Σ p over all ids but some that are named (never 1 - Σ p of these, which rounds to 0)
    d/d logit = [it is the id's] · g_log_p + p · (g_log_z - g_log_p - g_H · (log p + H))
                + p · g_log_r · ([it is of the rest] / r - 1)

Legend: T positions, H hidden size, V the vocabulary, v = V/tp this tensor rank's slice, K ids of
each position; n positions and w columns of one tile.
"""

import math
from collections.abc import Iterable, Sequence
from functools import reduce
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_qwen3.cpu.products import product
from megatron_qwen3.model.tile_products import Tiles, multiplied

TILE_BYTES = 256 << 20  # of one tile's logits as float32
LEAST_LOG_REST = -80.0  # e of the rest may vanish in float32 below it, and 1 / r overflow
_UNIT = 128  # of a tile's sides: a GPU's products slow down where rows are not aligned


class SliceSums(NamedTuple):
    """A vocabulary slice's terms at each position, relative to its largest logit."""

    peak_T: Tensor
    total_T: Tensor  # Σ e
    moment_T: Tensor  # Σ e log e; zeros without entropy
    rest_T: Tensor  # Σ e outside of the given ids; zeros without a rest
    above_TK: Tensor  # logit of an id - peak; 0 where the slice has no such id
    is_mine_TK: Tensor


class Whole(NamedTuple):
    """The result of all slices at each position, and log f, from which a slice gets its p."""

    log_p_TK: Tensor
    log_z_T: Tensor
    entropy_T: Tensor
    log_rest_T: Tensor
    log_factor_T: Tensor


class TiledLogProbs(torch.autograd.Function):
    """(hidden [T, H], weight [v, H], ids [T, K]) -> log p [T, K], log z [T], and [T] or None each:
    entropy, and log r of all ids except the first `rest_of` given ones.

    The gradient of `hidden` is this rank's share: the caller sums it over the group.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_TH: Tensor,
        weight_vH: Tensor,
        ids_TK: Tensor,
        group: Any,
        with_entropy: bool,
        rest_of: int,
        temperature: float,
        tile_bytes: int,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        first = group.rank() * len(weight_vH)
        tiles = square_tiles(len(hidden_TH), len(weight_vH), tile_bytes)

        def of(rows: slice, columns: slice) -> tuple[SliceSums, Tensor]:
            logits_nw = tempered_logits(hidden_TH[rows], weight_vH[columns], temperature)
            local_nK = ids_TK[rows] - first - columns.start
            return part_and_exps(logits_nw, local_nK, with_entropy, rest_of)

        exps_Tv = None
        if is_one(tiles):
            part, exps_Tv = of(tiles[0][0], tiles[1][0])
        else:
            part = joined(reduce(merged, (of(rows, c)[0] for c in tiles[1])) for rows in tiles[0])
        whole = over_ranks(part, group)
        is_id_TK = (ids_TK >= 0) & (ids_TK < group.size() * len(weight_vH))
        log_p_TK = whole.log_p_TK.masked_fill_(~is_id_TK, torch.nan)
        entropy_T = whole.entropy_T if with_entropy else None
        log_rest_T = whole.log_rest_T if rest_of else None
        ctx.save_for_backward(
            hidden_TH,
            weight_vH,
            ids_TK - first,
            part.peak_T,
            whole.log_factor_T,
            entropy_T,
            log_rest_T,
            exps_Tv,
        )
        ctx.rest_of, ctx.temperature = rest_of, temperature
        ctx.tiles = tiles  # the same: a product of another shape rounds otherwise
        ctx.set_materialize_grads(False)
        return log_p_TK, whole.log_z_T, entropy_T, log_rest_T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden_TH, weight_vH, local_TK, peak_T, *of_positions, exps_Tv = ctx.saved_tensors
        slopes = _slopes([untempered(g, ctx.temperature) for g in grads], *of_positions)

        def of_logits(rows: slice, columns: slice) -> Tensor:
            exps_nw = exps_Tv
            if exps_nw is None:
                logits_nw = tempered_logits(hidden_TH[rows], weight_vH[columns], ctx.temperature)
                exps_nw = _below(logits_nw, peak_T[rows].unsqueeze(1)).exp_()
            local_nK = local_TK[rows] - columns.start
            grad_nw = _gradient_in_place(exps_nw, slopes.of(rows), local_nK, ctx.rest_of)
            return grad_nw.to(hidden_TH.dtype)

        of_hidden_and_weight = multiplied(
            of_logits, hidden_TH, weight_vH, ctx.tiles, ctx.needs_input_grad
        )
        return *of_hidden_and_weight, *[None] * 6


def tempered_logits(hidden_nH: Tensor, weight_wH: Tensor, temperature: float) -> Tensor:
    """hidden · weightᵀ, [n, w], `divided` by a temperature."""
    return divided(product(hidden_nH, weight_wH.t()), temperature)


def divided(logits: Tensor, temperature: float) -> Tensor:
    """Logits divided by a temperature in float32 at least, in place where they have that type.

    The division applies to a logit as the product rounds it, as in vLLM's sampling: hidden states
    divided in bf16 would be rounded once more, and all of a position's logits with them.
    """
    if temperature == 1:
        return logits
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).div_(temperature)


def untempered(grad: Tensor | None, temperature: float) -> Tensor | None:
    """The gradient of undivided logits, from that of divided ones."""
    return grad if grad is None or temperature == 1 else grad / temperature


def row_blocks(positions: int, columns: int, tile_bytes: int) -> list[slice]:
    """Positions in blocks whose logits over all columns fit into a tile; one at least."""
    return _slices(positions, tile_bytes // 4 // columns)


def square_tiles(positions: int, columns: int, tile_bytes: int) -> Tiles:
    """Blocks of positions and of columns: one of each if all fits.

    Square ones, since the gradients of hidden and weight are added up in the fewest rounds then.
    """
    area = tile_bytes // 4
    column_blocks = _slices(columns, max(math.isqrt(area), area // max(positions, 1)))
    return _slices(positions, area // column_blocks[0].stop), column_blocks


def is_one(tiles: Tiles) -> bool:
    return len(tiles[0]) == len(tiles[1]) == 1


def _slices(length: int, most: int) -> list[slice]:
    if most < length:
        most = most // _UNIT * _UNIT or most
    most = max(most, 1)  # no tile is smaller than one logit
    return [slice(i, min(i + most, length)) for i in range(0, length, most)] or [slice(0, 0)]


def part_and_exps(
    logits_nv: Tensor, local_nK: Tensor, with_entropy: bool, rest_of: int
) -> tuple[SliceSums, Tensor]:
    """The terms of these columns at each position, and e, [n, v], maybe in the logits' memory.

    local_nK: ids counted from the first of these columns; the first `rest_of` are distinct.
    """
    peak_n1 = logits_nv.amax(-1, keepdim=True)
    column_nK, is_mine_nK = _columns(local_nK, logits_nv.shape[1])
    peak_n1 = peak_n1.to(torch.promote_types(logits_nv.dtype, torch.float32))
    above_nK = (logits_nv.gather(1, column_nK) - peak_n1).masked_fill_(~is_mine_nK, 0.0)
    below_nv = _below(logits_nv, peak_n1)
    exps_nv = below_nv.exp() if with_entropy else below_nv.exp_()
    total_n = exps_nv.sum(-1)
    moment_n = torch.zeros_like(total_n)
    if with_entropy:  # of a logit of -inf it is 0
        least = torch.finfo(below_nv.dtype).min
        moment_n = below_nv.clamp_min_(least).mul_(exps_nv).sum(-1)
    rest_n = torch.zeros_like(total_n)
    if rest_of:
        column_nR, taken_nR = _take_out(exps_nv, local_nK[:, :rest_of])
        rest_n = exps_nv.sum(-1)
        exps_nv.scatter_reduce_(1, column_nR, taken_nR, "amax")
    return SliceSums(peak_n1.squeeze(1), total_n, moment_n, rest_n, above_nK, is_mine_nK), exps_nv


def _take_out(exps_nw: Tensor, local_nR: Tensor) -> tuple[Tensor, Tensor]:
    """Set e of some ids to exactly 0, in place; returns their columns, and the former values.

    For an id of other columns, these are column 0 and 0. An id may occur twice, as in padding,
    which has no weight: e is 0 then, too, and never below.
    """
    column_nR, is_mine_nR = _columns(local_nR, exps_nw.shape[1])
    taken_nR = exps_nw.gather(1, column_nR).masked_fill_(~is_mine_nR, 0.0)
    most_nR = torch.zeros_like(taken_nR).masked_fill_(~is_mine_nR, torch.inf)
    exps_nw.scatter_reduce_(1, column_nR, most_nR, "amin")
    return column_nR, taken_nR


def joined(parts: Iterable[SliceSums]) -> SliceSums:
    """Blocks of positions as one."""
    return SliceSums(*map(torch.cat, zip(*parts, strict=True)))


def merged(a: SliceSums, b: SliceSums) -> SliceSums:
    """Two blocks of columns as one."""
    peak_T = torch.maximum(a.peak_T, b.peak_T)
    a, b = _relative_to(peak_T, a), _relative_to(peak_T, b)
    return SliceSums(
        peak_T,
        a.total_T + b.total_T,
        a.moment_T + b.moment_T,
        a.rest_T + b.rest_T,
        a.above_TK + b.above_TK,
        a.is_mine_TK | b.is_mine_TK,
    )


def over_ranks(part: SliceSums, group: Any) -> Whole:
    """The slices of all tensor ranks taken together, by two all-reduces; equal on all ranks."""
    peak_T = part.peak_T
    if group.size() > 1:
        peak_T = peak_T.clone()
        dist.all_reduce(peak_T, op=dist.ReduceOp.MAX, group=group)
    mine = _relative_to(peak_T, part)
    of_slice = torch.stack([mine.total_T, mine.moment_T, mine.rest_T])
    sums = torch.cat([of_slice, mine.above_TK.t()])
    if group.size() > 1:
        dist.all_reduce(sums, group=group)
    log_total_T = sums[0].log()
    return Whole(
        log_p_TK=(sums[3:] - log_total_T).t(),
        log_z_T=peak_T + log_total_T,
        entropy_T=log_total_T - sums[1] / sums[0],
        log_rest_T=(sums[2].log() - log_total_T).clamp_min_(LEAST_LOG_REST),
        log_factor_T=part.peak_T - peak_T - log_total_T,
    )


def _relative_to(peak_T: Tensor, part: SliceSums) -> SliceSums:
    """The same part with another peak, that of more columns."""
    shift_T = part.peak_T - peak_T
    scale_T = shift_T.exp()
    return SliceSums(
        peak_T,
        part.total_T * scale_T,
        (part.moment_T + part.total_T * shift_T) * scale_T,
        part.rest_T * scale_T,
        part.above_TK + shift_T.unsqueeze(1) * part.is_mine_TK,
        part.is_mine_TK,
    )


def _below(logits: Tensor, peak_n1: Tensor) -> Tensor:
    """logit - peak, log e, in place of the logits where they have the peak's precision."""
    return torch.sub(logits, peak_n1, out=logits if logits.dtype == peak_n1.dtype else None)


def _columns(local_nK: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Ids as columns of a tile, 0 where it has no such column, and whether it has."""
    is_mine_nK = (local_nK >= 0) & (local_nK < width)
    return local_nK.masked_fill(~is_mine_nK, 0), is_mine_nK


class _Slopes(NamedTuple):
    """d loss / d logit = exps · e - moments · e log e, of_ids more at each id's column, and
    rest · e more in all columns of the rest."""

    exps_T: Tensor
    moments_T: Tensor | None
    of_ids_TK: Tensor | None
    rest_T: Tensor | None

    def of(self, rows: slice) -> "_Slopes":
        return _Slopes(*(None if slope is None else slope[rows] for slope in self))


def _slopes(
    grads: Sequence[Tensor | None],
    log_factor_T: Tensor,
    entropy_T: Tensor | None,
    log_rest_T: Tensor | None,
) -> _Slopes:
    of_log_p_TK, of_log_z_T, of_entropy_T, of_log_rest_T = grads
    factor_T, of_p_T = log_factor_T.exp(), torch.zeros_like(log_factor_T)
    moments_T = rest_T = None
    if of_log_p_TK is not None:
        of_p_T = of_p_T - of_log_p_TK.sum(-1)
    if of_log_z_T is not None:
        of_p_T = of_p_T + of_log_z_T
    if of_entropy_T is not None and entropy_T is not None:
        of_p_T = of_p_T - of_entropy_T * (log_factor_T + entropy_T)
        moments_T = factor_T * of_entropy_T
    if of_log_rest_T is not None and log_rest_T is not None:
        of_p_T = of_p_T - of_log_rest_T
        rest_T = of_log_rest_T * (log_factor_T - log_rest_T).exp()
    return _Slopes(factor_T * of_p_T, moments_T, of_log_p_TK, rest_T)


def _gradient_in_place(exps_nw: Tensor, slopes: _Slopes, local_nK: Tensor, rest_of: int) -> Tensor:
    """d loss / d logits of a tile, in place of its e; local_nK: ids from its first column on."""
    moments_nw = None
    if slopes.moments_T is not None:
        # Not xlogy, which a CPU computes one number at a time. Of e = 0 it is 0, too.
        moments_nw = exps_nw.clamp_min(torch.finfo(exps_nw.dtype).tiny).log_()
        moments_nw.mul_(exps_nw).mul_(slopes.moments_T.unsqueeze(1))
    of_exps_n1 = slopes.exps_T.unsqueeze(1)
    if slopes.rest_T is None:
        grad_nw = exps_nw.mul_(of_exps_n1)
    else:  # the ids apart from the rest: their own terms would vanish beside 1 / r
        column_nR, taken_nR = _take_out(exps_nw, local_nK[:, :rest_of])
        grad_nw = exps_nw.mul_(of_exps_n1 + slopes.rest_T.unsqueeze(1))
        grad_nw.scatter_add_(1, column_nR, taken_nR.mul_(of_exps_n1))
    if moments_nw is not None:
        grad_nw.sub_(moments_nw)
    if slopes.of_ids_TK is not None:
        column_nK, is_mine_nK = _columns(local_nK, exps_nw.shape[1])
        grad_nw.scatter_add_(1, column_nK, slopes.of_ids_TK.masked_fill(~is_mine_nK, 0.0))
    return grad_nw
