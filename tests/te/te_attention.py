"""Transformer Engine's fused attention (cuDNN's), by torch: forward and backward in float32.

See `te_kernels.py`. Off by default, as Transformer Engine then takes its own torch code, which
knows float32 and sets documents apart by rows; `QWEN3_TE_FUSED=1` in a process's environment turns
it on. It takes bf16 alone, and context parallelism has no other.

Layouts: SBHD, BSHD and THD, of queries, keys and values, of the result and of gradients alike.
`cu` are where sequences begin without padding, `padded` where they begin in memory.
Legend: s queries, t keys, h heads, d head size.
"""

import os

import torch
import transformer_engine_torch as tex
from torch import Tensor

HIDDEN = float("-inf")


def get_fused_attn_backend(*args, **kwargs):
    backends = tex.NVTE_Fused_Attn_Backend
    if os.environ.get("QWEN3_TE_FUSED") == "1":
        return backends.NVTE_F16_arbitrary_seqlen, ""
    return backends.NVTE_No_Backend, "not stood in"


def fused_attn_fwd(
    max_seqlen_q,
    max_seqlen_kv,
    is_training,
    attn_scale,
    p_dropout,
    set_zero,
    qkv_layout,
    o_format,
    qkv_scale_inv_format,
    bias_type,
    attn_mask_type,
    softmax_type,
    window_size,
    bottom_right_diagonal,
    cu_seqlens_q,
    cu_seqlens_kv,
    Q,
    K,
    V,
    fake_dtype,
    cu_seqlens_q_padded,
    cu_seqlens_kv_padded,
    *rest,
):
    mask, (of_q, of_k, of_v) = _mask(attn_mask_type, bottom_right_diagonal), _formats(qkv_layout)
    of_out = _name(o_format, tex.NVTE_QKV_Format)
    out = Q.new_zeros(_shape(Q, of_q, of_out)[:-1] + V.shape[-1:])
    lse, lse_of = _denominators(Q, of_q, cu_seqlens_q_padded, cu_seqlens_q)
    queries, keys = (cu_seqlens_q, cu_seqlens_q_padded), (cu_seqlens_kv, cu_seqlens_kv_padded)
    cut = zip(
        _cut(Q, of_q, *queries, mask),
        _cut(K, of_k, *keys, mask),
        _cut(V, of_v, *keys, mask),
        _cut(out, of_out, *queries, mask),
        strict=True,
    )
    for number, (q, k, v, o) in enumerate(cut):
        if len(q) and len(k):
            scores = _scores(q, k, attn_scale, mask)
            denominators = scores.logsumexp(-1, keepdim=True)
            weights = torch.nan_to_num(torch.exp(scores - denominators))
            o.copy_(torch.einsum("hst,thd->shd", weights, _of_all_heads(v, q)))
            lse_of(number, len(q)).copy_(denominators)
    return [out, lse, torch.zeros(2, dtype=torch.int64)]


def fused_attn_bwd(
    max_seqlen_q,
    max_seqlen_kv,
    attn_scale,
    p_dropout,
    set_zero,
    qkv_layout,
    o_format,
    do_format,
    dqkv_layout,
    qkv_scale_inv_format,
    do_scale_inv_format,
    bias_type,
    attn_mask_type,
    softmax_type,
    window_size,
    bottom_right_diagonal,
    deterministic,
    cu_seqlens_q,
    cu_seqlens_kv,
    Q,
    K,
    V,
    O,  # noqa: E741 (as in the real one)
    dO,
    fake_dtype,
    Aux_CTX_Tensors,
    cu_seqlens_q_padded,
    cu_seqlens_kv_padded,
    *rest,
):
    mask, formats = _mask(attn_mask_type, bottom_right_diagonal), _formats(qkv_layout)
    of_grads = _formats(dqkv_layout)
    of_out, of_do = (_name(x, tex.NVTE_QKV_Format) for x in (o_format, do_format))
    inputs = (Q, K, V)
    grads = [
        x.new_zeros(_shape(x, now, wanted))
        for x, now, wanted in zip(inputs, formats, of_grads, strict=True)
    ]
    queries, keys = (cu_seqlens_q, cu_seqlens_q_padded), (cu_seqlens_kv, cu_seqlens_kv_padded)
    lse_of = _views(Aux_CTX_Tensors[0], formats[0], cu_seqlens_q_padded, cu_seqlens_q)
    cut = zip(
        *(
            _cut(x, form, *(keys if number % 3 else queries), mask)
            for number, (x, form) in enumerate(
                zip((*inputs, *grads), (*formats, *of_grads), strict=True)
            )
        ),
        _cut(O, of_out, *queries, mask),
        _cut(dO, of_do, *queries, mask),
        strict=True,
    )
    for number, (q, k, v, dq, dk, dv, o, do) in enumerate(cut):
        if len(q) and len(k):
            weights = torch.exp(_scores(q, k, attn_scale, mask) - lse_of(number, len(q)))
            parts = _gradients(torch.nan_to_num(weights), attn_scale, q, k, v, o, do)
            for grad, part in zip((dq, dk, dv), parts, strict=True):
                grad.copy_(part)
    return [*grads, None, None]


def _gradients(weights, scale, q, k, v, o, do) -> tuple[Tensor, Tensor, Tensor]:
    o, do = o.float(), do.float()
    by_weights = torch.einsum("shd,thd->hst", do, _of_all_heads(v, q))
    by_scores = scale * weights * (by_weights - (do * o).sum(-1).t()[:, :, None])
    dq = torch.einsum("hst,thd->shd", by_scores, _of_all_heads(k, q))
    dk = torch.einsum("hst,shd->thd", by_scores, q.float())
    dv = torch.einsum("hst,shd->thd", weights, do)
    groups = k.shape[1]
    return dq, *(x.unflatten(1, (groups, -1)).sum(2) for x in (dk, dv))


def _scores(q: Tensor, k: Tensor, scale: float, mask: str) -> Tensor:
    scores = torch.einsum("shd,thd->hst", q.float(), _of_all_heads(k, q)) * scale
    if "CAUSAL" not in mask:
        return scores
    queries, keys = scores.shape[-2:]
    first = 1 + (keys - queries if "BOTTOM_RIGHT" in mask else 0)
    return scores.masked_fill(torch.ones(queries, keys, dtype=torch.bool).triu(first), HIDDEN)


def _of_all_heads(x: Tensor, q: Tensor) -> Tensor:
    """Keys or values [t, groups, d] for each query head, float32."""
    return x.float().repeat_interleave(q.shape[1] // x.shape[1], 1)


def _name(value, members) -> str:
    return members(int(value)).name.removeprefix("NVTE_")


def _mask(value, bottom_right: bool) -> str:
    name = _name(value, tex.NVTE_Mask_Type)
    return f"{name}_BOTTOM_RIGHT" if bottom_right and "CAUSAL" in name else name


def _formats(layout) -> list[str]:
    parts = _name(layout, tex.NVTE_QKV_Layout).split("_")
    if len(parts) != 3:
        raise NotImplementedError(f"{parts}: packed layouts are not stood in")
    return parts


def _shape(x: Tensor, now: str, wanted: str) -> torch.Size:
    return x.shape if now == wanted else x.transpose(0, 1).shape


def _cut(x: Tensor, form: str, cu, padded, mask: str) -> list[Tensor]:
    """Views [s, h, d], one for each sequence, without padding."""
    if form == "THD":
        starts = (cu if padded is None else padded).tolist()
        lengths = (cu[1:] - cu[:-1]).tolist()
        return [
            x[start : start + length] for start, length in zip(starts[:-1], lengths, strict=True)
        ]
    whole = list(x.unbind(1 if form == "SBHD" else 0))
    if "PADDING" not in mask or cu is None:
        return whole
    return [part[:length] for part, length in zip(whole, (cu[1:] - cu[:-1]).tolist(), strict=True)]


def _denominators(q: Tensor, form: str, padded, cu):
    """Room for the logarithms of all softmaxes' denominators, and views of one sequence's."""
    heads = q.shape[-2]
    if form == "THD":
        lse = torch.full((q.shape[0], heads, 1), HIDDEN)
    else:
        rows, length = (q.shape[1], q.shape[0]) if form == "SBHD" else q.shape[:2]
        lse = torch.full((rows, heads, length, 1), HIDDEN)
    return lse, _views(lse, form, padded, cu)


def _views(lse: Tensor, form: str, padded, cu):
    """Of sequence `number`, with `length` queries: [h, s, 1]."""
    starts = (cu if padded is None else padded).tolist() if form == "THD" else []

    def view(number: int, length: int) -> Tensor:
        if form == "THD":
            start = starts[number]
            rows = lse[start : start + length].reshape(length, -1, 1)
            return rows.transpose(0, 1)
        return lse[number].reshape(lse.shape[1], -1, 1)[:, :length]

    return view


def convert_thd_to_bshd(tensor, cu_seqlens, batch_size, max_seqlen):
    rows = tensor.new_zeros(batch_size, max_seqlen, *tensor.shape[1:])
    for row, text in zip(rows, _cut(tensor, "THD", cu_seqlens, None, ""), strict=True):
        row[: len(text)] = text
    return rows


def convert_bshd_to_thd(tensor, cu_seqlens, t):
    line = tensor.new_zeros(t, *tensor.shape[2:])
    for row, text in zip(tensor, _cut(line, "THD", cu_seqlens, None, ""), strict=True):
        text.copy_(row[: len(text)])
    return line
