"""Divergence of a student from its teacher over the whole vocabulary, tile by tile.

    found = compare(logits.tempered(t), teacher.tempered(t), labels_SB, beta=1.0, shared=151_936)
    head = against(matrix_vG, beta=1.0, temperature=1.0, shared=151_936)    # in an Objective

Both sides' logits at a position are needed at once, and V numbers per position are too many to
store. So the teacher's hidden states, G numbers per position, are sent to the student, and its
output matrix lies beside the student's, split over the same tensor ranks: a rank computes the same
v columns of both sides' logits. The forward pass takes some positions at a time, all columns of
them, and keeps a few numbers per position; the backward pass computes both logits again in square
tiles, as `tiles.py` does. Logits that fit into one tile are kept.

With q the student's probabilities, p the teacher's, m = beta p + (1 - beta) q, D the divergence:

    beta = 0: D = KL(p ‖ q)                             d D / d logit = q - p
    beta = 1: D = KL(q ‖ p)                             d D / d logit = q (log q - log p - D)
    else:     D = beta KL(p ‖ m) + (1 - beta) KL(q ‖ m)
                                    d D / d logit = (1 - beta) q (log q - log m - KL(q ‖ m))

(GKD, 2306.13649, eq. 1; the ends as there.) The teacher has no gradient.

Legend: S positions, B rows, T = S·B, H the student's hidden size, G the teacher's, v = V/tp the
slice of the vocabulary of this rank; n positions and w columns of one tile.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_qwen3.model.logits import Logits
from megatron_qwen3.model.outputs import NUMBER, Head, Labelled, Outputs
from megatron_qwen3.model.tile_products import multiplied
from megatron_qwen3.model.tiles import (
    is_one,
    row_blocks,
    square_tiles,
    tempered_logits,
    untempered,
)

TEACHER_HIDDEN = "teacher_hidden"  # the batch's extra, [B, S, G]


class Compared(NamedTuple):
    """Values of each position, [S, B], float32; only the divergence has a gradient."""

    divergence: Tensor
    log_q: Tensor  # of the label, by the student
    log_p: Tensor  # of the label, by the teacher
    entropy: Tensor  # the student's, in nats
    is_best: Tensor  # 1 where the label is the teacher's most probable id


def compare(
    student: Logits, teacher: Logits, labels_SB: Tensor, beta: float, shared: int
) -> Compared:
    """Both distributions over the first `shared` ids, which both models know.

    teacher: split as the student's; rows of its matrix from `shared` on may have any finite values.
    beta: 0 forward KL, 1 reverse KL, between them Jensen and Shannon's divergence. Equal on all
    ranks of the group. ValueError for a beta outside of [0, 1].
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"beta = {beta}; valid: 0 (forward KL) to 1 (reverse KL)")
    shape = labels_SB.shape
    found = TiledDivergence.apply(
        student.hidden_SBH.flatten(0, -2),
        student.weight_vH,
        teacher.hidden_SBH.flatten(0, -2),
        teacher.weight_vH,
        labels_SB.flatten(),
        student.group,
        (student.temperature, teacher.temperature),
        beta,
        shared,
        student.tile_bytes,
    )
    return Compared(*(x_T.view(shape) for x_T in found))


def hidden_states(size: int, dtype: torch.dtype) -> Head:
    """The teacher's side: its last hidden states, `TEACHER_HIDDEN`, [B, S, size]."""

    def compute(logits: Logits, _: Labelled) -> Outputs:
        return {TEACHER_HIDDEN: logits.hidden_SBH.transpose(0, 1).contiguous()}

    return Head(compute, {TEACHER_HIDDEN: ((size,), dtype)})


def against(
    matrix_vG: Tensor | None, size: int, beta: float, temperature: float, shared: int
) -> Head:
    """The student's side: `Compared` of the batch's labels, by name.

    matrix_vG: this tensor rank's slice of the teacher's output matrix, which only the last stage
    needs; size: G; temperature: divides both sides' logits.
    """

    def compute(logits: Logits, batch: Labelled) -> Outputs:
        assert matrix_vG is not None, "the last stage has no matrix of the teacher"
        hidden_SBG = batch.extra[TEACHER_HIDDEN].transpose(0, 1)
        teacher = Logits(hidden_SBG, matrix_vG, logits.group).tempered(temperature)
        student = logits.tempered(temperature)
        found = compare(student, teacher, batch.labels_BS.t(), beta, shared)
        return {name: x_SB.t() for name, x_SB in found._asdict().items()}

    shapes = dict.fromkeys(Compared._fields, NUMBER)
    return Head(compute, shapes, needs={TEACHER_HIDDEN: (size,)})


class TiledDivergence(torch.autograd.Function):
    """(hidden [T, H], weight [v, H], teacher's hidden [T, G], its matrix [v, G], labels [T]) ->
    [T] each of `Compared`.

    The gradient of `hidden` is this rank's share: the caller sums it over the group.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_TH: Tensor,
        weight_vH: Tensor,
        teacher_TG: Tensor,
        matrix_vG: Tensor,
        labels_T: Tensor,
        group: Any,
        temperatures: tuple[float, float],
        beta: float,
        shared: int,
        tile_bytes: int,
    ) -> tuple[Tensor, ...]:
        v = len(weight_vH)
        first = group.rank() * v
        both = _Both(hidden_TH, weight_vH, teacher_TG, matrix_vG, shared - first, temperatures)
        sums, normals, kept = [], [], []
        blocks = row_blocks(len(hidden_TH), v, tile_bytes // 2)  # two logits at a time
        for rows in blocks:
            logits = both.logits(rows, slice(0, v))
            normals.append(_normals_of_all_ranks(logits, group))
            kept = _log_probs(logits, normals[-1])
            of_rows = _sums(*kept, labels_T[rows] - first, beta)
            if group.size() > 1:
                dist.all_reduce(of_rows, group=group)
            sums.append(of_rows)
        of_p_T, of_q_T, entropy_T, label_q_T, label_p_T = torch.cat(sums, 1)
        normals_4T = torch.cat(normals, 1)
        is_best_T = (label_p_T == -normals_4T[3]).to(of_q_T.dtype)
        found = _divergence(of_p_T, of_q_T, beta), label_q_T, label_p_T, entropy_T, is_best_T
        if len(blocks) > 1:
            kept = []
        ctx.save_for_backward(*both[:4], normals_4T, of_q_T, *kept)
        ctx.not_tensors, ctx.beta = both[4:], beta
        ctx.tiles = blocks, [slice(0, v)]
        if not is_one(ctx.tiles):
            ctx.tiles = square_tiles(len(hidden_TH), v, tile_bytes // 2)
        ctx.mark_non_differentiable(*found[1:])
        ctx.set_materialize_grads(False)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        *tensors, normals_4T, of_q_T = ctx.saved_tensors[:6]
        both, kept = _Both(*tensors, *ctx.not_tensors), ctx.saved_tensors[6:]
        upstream_T = untempered(grads[0], both.temperatures[0])
        if upstream_T is None:
            return (None,) * 10

        def of_logits(rows: slice, columns: slice) -> Tensor:
            log_probs = kept or _log_probs(both.logits(rows, columns), normals_4T[:, rows])
            slope_nw = _slope(*log_probs, of_q_T[rows].unsqueeze(1), ctx.beta)
            return slope_nw.mul_(upstream_T[rows].unsqueeze(1)).to(both.hidden_TH.dtype)

        of_hidden_and_weight = multiplied(
            of_logits, both.hidden_TH, both.weight_vH, ctx.tiles, ctx.needs_input_grad
        )
        return *of_hidden_and_weight, *[None] * 8


class _Both(NamedTuple):
    """Inputs of the logits of student and teacher. known: number of this rank's columns that both
    models have, below 1 for none; temperatures: divisors of each one's logits."""

    hidden_TH: Tensor
    weight_vH: Tensor
    teacher_TG: Tensor
    matrix_vG: Tensor
    known: int
    temperatures: tuple[float, float]

    def logits(self, rows: slice, columns: slice) -> list[Tensor]:
        """[n, w] of the student, and of the teacher; ids unknown to one of them get no mass."""
        found = []
        pairs = (self.hidden_TH, self.weight_vH), (self.teacher_TG, self.matrix_vG)
        for (hidden, matrix), temperature in zip(pairs, self.temperatures, strict=True):
            logits_nw = tempered_logits(hidden[rows], matrix[columns], temperature)
            logits_nw = logits_nw.to(torch.promote_types(logits_nw.dtype, torch.float32))
            least = torch.finfo(logits_nw.dtype).min / 4  # its differences are still finite
            logits_nw[:, max(self.known - columns.start, 0) :] = least
            found.append(logits_nw)
        return found


def _normals_of_all_ranks(logits: Sequence[Tensor], group: Any) -> Tensor:
    """[4, n]: the student's largest logit and log Σ exp(logit - largest), then the teacher's."""
    peaks_2n = torch.stack([logits_nv.amax(-1) for logits_nv in logits])
    if group.size() > 1:
        dist.all_reduce(peaks_2n, op=dist.ReduceOp.MAX, group=group)
    pairs = zip(logits, peaks_2n, strict=True)
    totals_2n = torch.stack([(x_nv - peak_n.unsqueeze(1)).exp_().sum(-1) for x_nv, peak_n in pairs])
    if group.size() > 1:
        dist.all_reduce(totals_2n, group=group)
    return torch.stack([peaks_2n, totals_2n.log_()], 1).flatten(0, 1)


def _log_probs(logits: Sequence[Tensor], normals_4n: Tensor) -> list[Tensor]:
    """log q and log p, [n, w], in place of the logits."""
    pairs = zip(logits, normals_4n.view(2, 2, -1, 1), strict=True)
    return [x_nw.sub_(peak_n1).sub_(log_total_n1) for x_nw, (peak_n1, log_total_n1) in pairs]


def _sums(log_q_nv: Tensor, log_p_nv: Tensor, local_n: Tensor, beta: float) -> Tensor:
    """This slice's part, [5, n], of KL(p ‖ m or q), of KL(q ‖ m or p), each 0 where D does not need
    it, of the entropy, and of log q and log p of the label."""
    q_nv, none_n = log_q_nv.exp(), torch.zeros_like(log_q_nv[:, 0])
    of_p_n = of_q_n = none_n
    if beta == 1:
        of_q_n = _part_of_kl(log_q_nv, q_nv, log_p_nv, log_p_nv.exp())
    elif beta == 0:
        of_p_n = _part_of_kl(log_p_nv, log_p_nv.exp(), log_q_nv, q_nv)
    else:
        log_m_nv = _log_mixture(log_q_nv, log_p_nv, beta)
        m_nv = log_m_nv.exp()
        of_q_n = _part_of_kl(log_q_nv, q_nv, log_m_nv, m_nv)
        of_p_n = _part_of_kl(log_p_nv, log_p_nv.exp(), log_m_nv, m_nv)
    entropy_n = -q_nv.mul_(log_q_nv).sum(-1)
    is_mine_n = (local_n >= 0) & (local_n < log_q_nv.shape[1])
    column_n1 = local_n.masked_fill(~is_mine_n, 0).unsqueeze(1)
    of_labels = [x.gather(1, column_n1).squeeze(1) for x in (log_q_nv, log_p_nv)]
    of_labels = [torch.where(is_mine_n, x_n, 0.0) for x_n in of_labels]
    return torch.stack([of_p_n, of_q_n, entropy_n, *of_labels])


def _part_of_kl(log_a: Tensor, a: Tensor, log_b: Tensor, b: Tensor) -> Tensor:
    """Σ a (log a - log b) + b - a, [n]: b - a sums to 0, and cancels the first-order effect of
    rounding in logits and sums; the rest is as small as the divergence."""
    return (log_a - log_b).mul_(a).add_(b - a).sum(-1)


def _divergence(of_p_T: Tensor, of_q_T: Tensor, beta: float) -> Tensor:
    if beta in (0, 1):
        return of_p_T + of_q_T  # one of them is 0
    return beta * of_p_T + (1 - beta) * of_q_T


def _slope(log_q_nw: Tensor, log_p_nw: Tensor, of_q_n1: Tensor, beta: float) -> Tensor:
    """d D / d logit of a tile."""
    q_nw = log_q_nw.exp()
    if beta == 0:
        return q_nw.sub_(log_p_nw.exp())
    if beta == 1:
        return q_nw.mul_((log_q_nw - log_p_nw).sub_(of_q_n1))
    log_m_nw = _log_mixture(log_q_nw, log_p_nw, beta)
    return q_nw.mul_(log_m_nw.neg_().add_(log_q_nw).sub_(of_q_n1)).mul_(1 - beta)


def _log_mixture(log_q: Tensor, log_p: Tensor, beta: float) -> Tensor:
    return torch.logaddexp(log_q + math.log1p(-beta), log_p + math.log(beta))
