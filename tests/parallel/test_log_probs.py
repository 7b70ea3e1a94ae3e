"""Log-probabilities of a split vocabulary equal those of a whole one, derivatives included."""

import pytest
import torch
from ranks import run_ranks

from megatron_qwen3.config import load
from megatron_qwen3.model.log_probs import vocab_parallel_log_probs
from megatron_qwen3.parallel.runtime import start

SHAPE, VOCABULARY = (5, 3), 64


def inputs():
    generator = torch.Generator().manual_seed(3)
    logits = 9 * torch.randn(*SHAPE, VOCABULARY, generator=generator)
    logits[0, 0, 7] = 80.0  # one sure token: what is not it has no probability to speak of
    labels = torch.randint(VOCABULARY, SHAPE, generator=generator)
    weights = torch.randn(2, *SHAPE, generator=generator)
    return logits, labels, weights


def on_ranks(ranks, dtype):
    from megatron.core import parallel_state

    settings = [f"parallel.tensor={ranks}", "train.steps=1", "model.num_query_groups=4"]
    start(load([], ["model.preset=tiny-dense", *settings]))
    group = parallel_state.get_tensor_model_parallel_group()
    logits, labels, weights = inputs()
    mine = logits.to(dtype).chunk(ranks, dim=-1)[group.rank()].clone().requires_grad_()
    outputs = vocab_parallel_log_probs(mine, labels, group)
    (outputs * weights).sum().backward()
    return outputs.detach(), mine.grad


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients_equal_those_of_one_log_softmax(ranks, dtype):
    logits, labels, weights = inputs()
    logits = logits.to(dtype).double().requires_grad_()
    log_p = logits.log_softmax(-1).gather(-1, labels[..., None]).squeeze(-1)
    expected = torch.stack([log_p, logits.logsumexp(-1)])
    (expected * weights).sum().backward()
    results = run_ranks(on_ranks, ranks, ranks, dtype)
    for outputs, _ in results:
        torch.testing.assert_close(outputs.double(), expected.detach(), rtol=1e-6, atol=1e-5)
    gradient = torch.cat([grad for _, grad in results], dim=-1).double()
    near = {torch.float32: 1e-6, torch.bfloat16: 1e-2}[dtype]
    torch.testing.assert_close(gradient, logits.grad, rtol=near, atol=near)
