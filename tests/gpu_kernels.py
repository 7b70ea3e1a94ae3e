"""A GPU's attention kernels by their documentation: a formula, and checks of their inputs.

    gpu_kernels.install(monkeypatch, has_flash=True)    # bfloat16; False: float32

The code for GPUs then runs on a CPU, with numbers. It says nothing of the kernels themselves.
"""

import types

import torch

from megatron_qwen3.cpu import kernels
from megatron_qwen3.model import attention, flash


def install(monkeypatch, has_flash):
    """In place of torch's, until the test ends."""
    for module in (attention, flash):
        monkeypatch.setattr(module, "_aten", GPU)
    monkeypatch.setattr(kernels, "has_attention_of_cpu", lambda q: False)
    monkeypatch.setattr(kernels, "has_packed_attention", lambda q: has_flash)


def _varlen(q, k, v, bounds_q, bounds_k, most_q, most_k, dropout, is_causal, debug):
    """As _flash_attention_forward is documented, [T, n, D], one place after the other."""
    assert torch.equal(bounds_q, bounds_k) and most_q == most_k == int(bounds_q.diff().max())
    assert (dropout, is_causal, debug) == (0.0, True, False)
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    mixed = []
    for begin, end in zip(bounds_q[:-1].tolist(), bounds_q[1:].tolist(), strict=True):
        for place in range(begin, end):
            seen = slice(begin, place + 1)
            score = torch.einsum("nd,tnd->nt", q[place], k[seen]) / q.shape[-1] ** 0.5
            mixed.append(torch.einsum("nt,tnd->nd", score.softmax(-1), v[seen]))
    return torch.stack(mixed), None, None, None, None


def _softmax(q, k, v, is_causal, bias=None):
    """Of [b, n, S, D] and as many heads of keys: result, and lse."""
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if is_causal:
        assert q.shape[2] == k.shape[2]
        scores = scores.masked_fill(~torch.ones(scores.shape[-2:]).bool().tril(), -torch.inf)
    scores = scores if bias is None else scores + bias
    return scores.softmax(-1) @ v, scores.logsumexp(-1), scores


def _gradients(grad, q, k, v, mixed, lse, is_causal):
    """By the formula of FlashAttention-2 (arXiv 2307.08691, algorithm 2)."""
    weights = (_softmax(q, k, v, is_causal)[2] - lse[..., None]).exp()
    of_scores = weights * (grad @ v.transpose(-1, -2) - (grad * mixed).sum(-1, keepdim=True))
    of_scores = of_scores / q.shape[-1] ** 0.5
    return of_scores @ k, of_scores.transpose(-1, -2) @ q, weights.transpose(-1, -2) @ grad


def _each_head(x, q):
    return x.repeat_interleave(q.shape[1] // x.shape[1], 1)


def _flash(q, k, v, dropout, is_causal):
    """As _scaled_dot_product_flash_attention is documented: it knows groups."""
    assert dropout == 0 and q.shape[1] % k.shape[1] == 0
    return *_softmax(q, _each_head(k, q), _each_head(v, q), is_causal)[:2], *[None] * 7


def _flash_backward(*args):
    grad, q, k, v, mixed, lse, bounds_q, bounds_k, S, T, dropout, is_causal, _, _ = args
    assert bounds_q is None and bounds_k is None and dropout == 0 and lse.is_contiguous()
    assert (q.shape[2], k.shape[2]) == (S, T)
    each = _each_head(k, q), _each_head(v, q)
    dq, *others = _gradients(grad, q, *each, mixed, lse, is_causal)
    return dq, *(x.unflatten(1, (k.shape[1], -1)).sum(2) for x in others)


def _efficient(q, k, v, bias, gives_lse, dropout, is_causal):
    """As _scaled_dot_product_efficient_attention is documented: no groups, lse padded with inf, a
    mask whose rows are aligned and leave some key to each query."""
    assert gives_lse and dropout == 0 and q.shape[1] == k.shape[1] == v.shape[1]
    if bias is not None:
        assert bias.shape == (*q.shape[:3], k.shape[2]) and bias.dtype == q.dtype
        assert bias.stride(-1) == 1 and bias.stride(-2) % 16 == 0 and not is_causal
        assert not (bias == -torch.inf).all(-1).any()
    mixed, lse, _ = _softmax(q, k, v, is_causal, bias)
    padding = (0, -lse.shape[-1] % 32)
    return mixed, torch.nn.functional.pad(lse, padding, value=torch.inf), None, None


def _efficient_backward(*args):
    grad, q, k, v, bias, mixed, lse, _, _, dropout, asked, is_causal = args
    assert bias is None and dropout == 0 and asked == [True, True, True, False]
    S = q.shape[2]
    assert q.shape[1] == k.shape[1] and lse.shape[2] == -(-S // 32) * 32
    assert lse[..., S:].isposinf().all()
    return *_gradients(grad, q, k, v, mixed, lse[..., :S], is_causal), None


GPU = types.SimpleNamespace(
    _flash_attention_forward=_varlen,
    _scaled_dot_product_flash_attention=_flash,
    _scaled_dot_product_flash_attention_backward=_flash_backward,
    _scaled_dot_product_efficient_attention=_efficient,
    _scaled_dot_product_efficient_attention_backward=_efficient_backward,
)
