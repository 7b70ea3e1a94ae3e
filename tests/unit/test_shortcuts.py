"""The stand-ins of `cpu/shortcuts.py` compute the same as the originals."""

import pytest
import torch

from megatron_qwen3.cpu import shortcuts


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weight_gradients_add_up_in_the_buffer(dtype):
    rows, grads = torch.randn(6, 4).to(dtype), torch.randn(6, 3).to(dtype)
    main_grad = torch.ones(3, 4)
    shortcuts.add_weight_gradient(rows, grads, main_grad)
    expected = 1 + grads.float().T @ rows.float()
    torch.testing.assert_close(main_grad, expected, rtol=0.01, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_first_product_of_a_step_writes_over_the_last_steps_gradient(dtype):
    rows, grads = torch.randn(6, 4).to(dtype), torch.randn(6, 3).to(dtype)
    main_grad = torch.full((3, 4), torch.nan)
    main_grad.is_old = True
    for _ in range(2):
        shortcuts.add_weight_gradient(rows, grads, main_grad)
    expected = 2 * grads.float().T @ rows.float()
    torch.testing.assert_close(main_grad, expected, rtol=0.01, atol=0.05)


class _Group:
    def __init__(self, ranks: int) -> None:
        self.ranks = ranks

    def size(self) -> int:
        return self.ranks


@pytest.mark.parametrize("ranks, in_place, runs", [(1, True, 0), (1, False, 1), (2, True, 1)])
def test_only_a_copy_of_a_tensor_to_itself_is_skipped(ranks, in_place, runs):
    calls = []
    collective = shortcuts._unless_alone(lambda *args, **kwargs: calls.append(args))
    source = torch.zeros(4)
    output = source.view(-1) if in_place else torch.zeros(4)
    handle = collective(output, source, group=_Group(ranks), async_op=True)
    assert len(calls) == runs
    if not runs:
        handle.wait()
