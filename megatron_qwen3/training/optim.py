"""AdamW through megatron-core's optimizers, and the learning rate of each step.

    optimizer = build_optimizer(config, chunks)
    grad_norm = update(optimizer, learning_rate(config, step), config.optim.clip_grad)
"""

import math

from megatron_qwen3.parallel import cpu  # isort: skip  (before megatron-core)
import torch
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, get_megatron_optimizer
from torch import nn

from megatron_qwen3.config import Config


def build_optimizer(config: Config, chunks: list[nn.Module]) -> MegatronOptimizer:
    """AdamW with float32 master weights and moments; norms and other vectors do not decay.

    With optim.distributed each data-parallel rank keeps its share of the state (ZeRO-1).
    """
    optim, bf16 = config.optim, config.train.precision == "bf16"
    settings = OptimizerConfig(
        optimizer="adam",
        lr=optim.lr,
        min_lr=optim.min_lr,
        weight_decay=optim.weight_decay,
        adam_beta1=optim.beta1,
        adam_beta2=optim.beta2,
        adam_eps=optim.eps,
        clip_grad=optim.clip_grad,
        bf16=bf16,
        params_dtype=torch.bfloat16 if bf16 else torch.float32,
        use_distributed_optimizer=optim.distributed,
        overlap_param_gather=config.parallel.overlap and optim.distributed,
    )
    with cpu.cuda_type_names():
        optimizer = get_megatron_optimizer(settings, chunks, use_gloo_process_groups=False)
    for part in _parts(optimizer):
        if isinstance(part.optimizer, torch.optim.AdamW):
            _fuse(part.optimizer)
    return optimizer


def _parts(optimizer: MegatronOptimizer) -> list[MegatronOptimizer]:
    """Dense and expert parameters have an optimizer each; one without parameters is a stub."""
    parts = getattr(optimizer, "chained_optimizers", [optimizer])
    return [part for part in parts if not getattr(part, "is_stub_optimizer", False)]


def _fuse(optimizer: torch.optim.AdamW) -> None:
    """One pass over weights, gradients and moments: megatron-core asks torch for the slow loop."""
    for group in optimizer.param_groups:
        group["fused"], group["foreach"] = True, False


def learning_rate(config: Config, step: int) -> float:
    """Rate of step `step`, counted from 0.

    A linear rise over warmup_steps, then: 'constant'; 'cosine' down to min_lr at the last step
    (SGDR, arXiv 1608.03983); 'wsd', constant and then a linear fall to min_lr over the last
    decay_steps (warmup-stable-decay, arXiv 2404.06395, section 4).
    """
    optim, steps = config.optim, config.steps
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / optim.warmup_steps
    if optim.schedule == "constant":
        return optim.lr
    if optim.schedule == "cosine":
        start, shape = optim.warmup_steps, _half_cosine
    else:
        start, shape = steps - (optim.decay_steps or max(1, steps // 10)), _linear
    progress = (step - start + 1) / max(1, steps - start)
    return optim.min_lr + (optim.lr - optim.min_lr) * shape(min(max(progress, 0.0), 1.0))


def _half_cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


def _linear(progress: float) -> float:
    return 1 - progress


@torch.no_grad()
def update(optimizer: MegatronOptimizer, rate: float, clip_grad: float) -> float:
    """Clip the reduced gradients to norm `clip_grad` (0 = as they are) and take one step.

    Returns the global norm before clipping. Where it is NaN or infinite nothing is updated: the
    caller must check.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.prepare_grads()
    norm = float(optimizer.get_grad_norm())
    if not math.isfinite(norm):
        return norm
    scale = clip_grad / (norm + 1e-6) if clip_grad else 1.0
    parameters = [p for part in _parts(optimizer) for p in part.get_parameters()]
    grads = [p.grad for p in parameters if p.grad is not None]
    if scale < 1.0 and grads:
        torch._foreach_mul_(grads, scale)
    optimizer.step_with_ready_grads()
    return norm
