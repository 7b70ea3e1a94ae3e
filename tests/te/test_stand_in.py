"""The base of other tests of this folder: the stand-in for kernels, and ranks that have it."""

import sys

import pytest
import torch

from tests.ranks import RankError
from tests.te.te_ranks import run_te_ranks


def _what_is_seen():
    import megatron.core.extensions.transformer_engine as extension
    import transformer_engine

    from megatron_qwen3.cpu import redirect

    tensor = torch.ones(1)
    return extension.HAVE_TE, transformer_engine.__version__, redirect.REDIRECTED, tensor.is_cuda


def test_ranks_have_transformer_engine_and_this_process_does_not():
    assert run_te_ranks(_what_is_seen, 1) == [(True, "2.20.2", True, False)]
    assert sys.modules.get("transformer_engine") is None


def _fails():
    raise ValueError("of a rank")


def test_errors_of_ranks_are_told():
    with pytest.raises(RankError, match="ValueError: of a rank"):
        run_te_ranks(_fails, 1)


def _of_a_kernel_that_is_missing():
    import transformer_engine_torch as tex

    return tex.layernorm_fwd(None)


def test_a_kernel_that_is_not_stood_in_raises():
    with pytest.raises(RankError, match="layernorm_fwd is not stood in"):
        run_te_ranks(_of_a_kernel_that_is_missing, 1)


def _modules():
    """Of each: the largest relative difference of result and gradients from torch's own."""
    import transformer_engine.pytorch as te

    torch.manual_seed(0)
    return {"linear": _linear(te), "norm": _norm(te), "grouped": _grouped(te), "adam": _adam(te)}


def _differences(made, expected, leaves):
    grad = torch.randn_like(expected)
    pairs = [(made, expected)]
    gradients = [torch.autograd.grad(x, leaves, grad, retain_graph=True) for x in (made, expected)]
    pairs += zip(*gradients, strict=True)
    return max(((a - b).norm() / b.norm()).item() for a, b in pairs)


def _linear(te):
    x = torch.randn(6, 2, 16, requires_grad=True)
    linear = te.Linear(16, 24, bias=False, device="cpu")
    return _differences(linear(x), x @ linear.weight.t(), (x, linear.weight))


def _norm(te):
    norm, x = te.RMSNorm(16, eps=1e-6, device="cpu"), torch.randn(6, 2, 16, requires_grad=True)
    expected = torch.nn.functional.rms_norm(x, (16,), norm.weight, 1e-6)
    return _differences(norm(x), expected, (x, norm.weight))


def _grouped(te):
    """Of three experts one has no row."""
    x = torch.randn(7, 16, requires_grad=True)
    experts = te.GroupedLinear(3, 16, 24, bias=False, device="cpu")
    weights = [experts.weight0, experts.weight2]
    first, second = x.split([3, 4])
    expected = torch.cat([first @ weights[0].t(), second @ weights[1].t()])
    return _differences(experts(x, [3, 0, 4]), expected, (x, *weights))


def _adam(te):
    """Three steps of each AdamW."""
    kinds = te.optimizers.FusedAdam, torch.optim.AdamW
    weights = [torch.linspace(-1, 1, 24).requires_grad_() for _ in kinds]
    settings = {"lr": 0.1, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    adams = [kind([x], **settings) for kind, x in zip(kinds, weights, strict=True)]
    for step in range(3):
        for adam, weight in zip(adams, weights, strict=True):
            weight.grad = (weight.detach() * (step + 1)).cos()
            adam.step()
    return ((weights[0] - weights[1]).norm() / weights[1].norm()).item()


def test_its_modules_and_adam_compute_what_torch_does():
    (differences,) = run_te_ranks(_modules, 1)
    assert max(differences.values()) < 1e-6, differences


def _attention(form, dtype_name, lengths):
    """Differences of result and gradients from torch's attention, of each text by itself."""
    import transformer_engine.pytorch as te

    from tests.te import stand_in

    torch.manual_seed(0)
    dtype, heads, groups, size = getattr(torch, dtype_name), 4, 2, 8
    q, k, v = (torch.randn(sum(lengths), n, size, dtype=dtype) for n in (heads, groups, groups))
    leaves = [x.requires_grad_() for x in (q, k, v)]
    attend = te.DotProductAttention(heads, size, num_gqa_groups=groups, attention_dropout=0.0)
    if form == "thd":
        bounds = torch.tensor([0, *lengths]).cumsum(0).int()
        longest = max(lengths)
        arguments = {
            "cu_seqlens_q": bounds,
            "cu_seqlens_kv": bounds,
            "max_seqlen_q": longest,
            "max_seqlen_kv": longest,
            "attn_mask_type": "padding_causal",
        }
        made = attend(q, k, v, qkv_format=form, **arguments).view(-1, heads, size)
    else:
        rows = [x.unflatten(0, (len(lengths), -1)).transpose(0, 1) for x in leaves]
        made = attend(*rows, qkv_format=form, attn_mask_type="causal")
        made = made.transpose(0, 1).reshape(-1, heads, size)
    texts = zip(*(x.split(lengths) for x in leaves), strict=True)
    expected = torch.cat([_of_one_text(*text) for text in texts])
    fused = stand_in.calls["fused_attn_fwd"], stand_in.calls["fused_attn_bwd"]
    difference = _differences(made.float(), expected, leaves)
    assert (stand_in.calls["fused_attn_bwd"] > fused[1]) == (fused[0] > 0)
    return difference, fused[0]


def _of_one_text(q, k, v):
    q, k, v = (x.float().transpose(0, 1)[None] for x in (q, k, v))
    mixed = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, is_causal=True, enable_gqa=True
    )
    return mixed[0].transpose(0, 1)


@pytest.mark.parametrize("form, lengths", [("sbhd", [6, 6]), ("thd", [5, 1, 6])])
def test_its_attention_of_rows_and_of_packed_documents_is_torchs(form, lengths):
    ((difference, calls),) = run_te_ranks(_attention, 1, form, "float32", lengths)
    assert difference < 1e-6 and calls == 0


@pytest.mark.parametrize("form, lengths", [("sbhd", [6, 6]), ("thd", [5, 1, 6])])
def test_the_fused_attention_that_is_stood_in_is_torchs(form, lengths):
    made = run_te_ranks(_attention, 1, form, "bfloat16", lengths, fused_attention=True)
    difference, calls = made[0]
    assert difference < 0.01 and calls == 1
