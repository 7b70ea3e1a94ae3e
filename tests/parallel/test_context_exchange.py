"""The exchange of context-parallel ranks, on real ranks, for rows of any length."""

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks

from megatron_qwen3.model.attention import attention
from megatron_qwen3.model.context import ContextShare
from megatron_qwen3.model.reads import Reads
from megatron_qwen3.model.stretches import Stretches


def exchanged(length):
    """A rank's part, the exchanged result, and the expected one."""
    dist.init_process_group("gloo")
    share = ContextShare(dist.group.WORLD)
    random = torch.Generator().manual_seed(length)
    x_BSD = torch.randn(2, length, 3, generator=random)
    grad_BSD = torch.randn(2, length, 3, generator=random)
    part = share.of(x_BSD).requires_grad_()
    whole = share.whole(part, length)
    whole.backward(grad_BSD)
    return {
        "outputs": (whole.detach(), x_BSD),
        "outputs' gradient": (part.grad, share.of(grad_BSD)),
        "ids": (share.whole(share.of(x_BSD.long()), length), x_BSD.long()),
    }


def attended(length, starts, chunk):
    """Attention of a rank's part and of the whole row, and their gradients."""
    dist.init_process_group("gloo")
    share = ContextShare(dist.group.WORLD)
    random = torch.Generator().manual_seed(length)
    sizes = [(length, 2, heads, 8) for heads in (4, 2, 2, 4)]
    *qkv, grad = (torch.randn(s, generator=random, dtype=torch.float64) for s in sizes)
    stretches = Stretches.of(starts, length)
    whole = [x.clone().requires_grad_() for x in qkv]
    expected = attention(*whole, Reads.of(2, length, stretches, chunk=chunk))
    expected.backward(grad.flatten(2))
    mine = [share.of(x, 0).requires_grad_() for x in qkv]
    reads = Reads.of(2, length, stretches, share.pieces(length), chunk)
    mixed = share.attention(*mine, reads, None)
    mixed.backward(share.of(grad, 0).flatten(2))
    pairs = [(mixed.detach(), expected.detach())]
    pairs += [(x.grad, y.grad) for x, y in zip(mine, whole, strict=True)]
    names = ("result", "gradient by q", "gradient by k", "gradient by v")
    return {n: (x, share.of(y, 0)) for n, (x, y) in zip(names, pairs, strict=True)}


def assert_pairs(of_ranks, **tolerance):
    for found in of_ranks:
        for name, (actual, expected) in found.items():
            say = lambda text, n=name: f"{n}: {text}"  # noqa: E731
            torch.testing.assert_close(actual, expected, msg=say, **tolerance)


@pytest.mark.parametrize("ranks, length", [(2, 8), (2, 7), (3, 20), (3, 4)])
def test_outputs_come_whole_and_their_gradients_back_to_who_made_them(ranks, length):
    assert_pairs(run_ranks(exchanged, ranks, length), rtol=0, atol=0)


@pytest.mark.parametrize("ranks, length", [(2, 48), (2, 37), (3, 50)])
@pytest.mark.parametrize("chunk", [None, 7])
def test_each_rank_reads_all_ranks_keys_of_its_documents(ranks, length, chunk):
    starts = [[0, 1, 11, length - 1], [0]]
    assert_pairs(run_ranks(attended, ranks, length, starts, chunk), rtol=0, atol=1e-12)
