"""AdamW through megatron-core's optimizers, and the learning rate of each step.

optimizer = build_optimizer(config, chunks)
grad_norm = update(optimizer, learning_rate(config, step), config.optim.clip_grad)
"""

import functools
import math
from typing import Any

from megatron_qwen3.parallel import cpu  # isort: skip  (before megatron-core)
import torch
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
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
    for adam in _adams(optimizer):
        _fuse(adam)
    return optimizer


def _parts(optimizer: MegatronOptimizer) -> list[MegatronOptimizer]:
    """Dense and expert parameters have an optimizer each; one without parameters is a stub."""
    parts = getattr(optimizer, "chained_optimizers", [optimizer])
    return [part for part in parts if not getattr(part, "is_stub_optimizer", False)]


def _adams(optimizer: MegatronOptimizer) -> list[torch.optim.AdamW]:
    """torch's AdamW inside; none where apex or Transformer Engine bring their own."""
    inner = [part.optimizer for part in _parts(optimizer)]
    return [adam for adam in inner if isinstance(adam, torch.optim.AdamW)]


def _fuse(optimizer: torch.optim.AdamW) -> None:
    """One pass over weights, gradients and moments: megatron-core asks torch for the slow loop."""
    for group in optimizer.param_groups:
        group["fused"], group["foreach"] = True, False


def allocate_state(optimizer: MegatronOptimizer) -> None:
    """Moments of zero where there are none yet: megatron-core cannot describe an unused AdamW."""
    for adam in _adams(optimizer):
        for group in adam.param_groups:
            for p in group["params"]:
                if not adam.state[p]:
                    adam.state[p] = {
                        "step": torch.zeros((), device=p.device),
                        "exp_avg": torch.zeros_like(p),
                        "exp_avg_sq": torch.zeros_like(p),
                    }


def state_tensors(optimizer: MegatronOptimizer) -> list[torch.Tensor]:
    """What the optimizer keeps from step to step: Adam's moments, and the float32 weights.

    The weights only where the model's are not float32 themselves. AdamW's count of steps, one
    number per parameter, is left out.
    """
    allocate_state(optimizer)
    kept = []
    for adam in _adams(optimizer):
        for p in (p for group in adam.param_groups for p in group["params"]):
            kept += [adam.state[p]["exp_avg"], adam.state[p]["exp_avg_sq"]]
            kept += [p] if optimizer.config.bf16 else []
    return kept


def load_state(optimizer: MegatronOptimizer, state: dict[str, Any]) -> None:
    """Load a state from a checkpoint, as megatron-core read it."""
    for part in _parts(optimizer):
        if isinstance(part, DistributedOptimizer):
            part._set_main_param_and_optimizer_states = functools.partial(_set_state, part)
    optimizer.load_state_dict(state)
    _separate_steps(optimizer)


def _set_state(part: DistributedOptimizer, model_param: nn.Parameter, tensors: dict) -> None:
    """megatron-core's method of this name, which fails on AdamW's step: no checkpoint tensor.

    The step comes with the parameter groups and is in place by now.
    """
    group, index = part.model_param_group_index_map[model_param]
    adam_state = part.optimizer.state[part.optimizer.param_groups[group]["params"][index]]
    if "step" in adam_state:
        tensors = {**tensors, "step": adam_state["step"]}
    DistributedOptimizer._set_main_param_and_optimizer_states(part, model_param, tensors)


def _separate_steps(optimizer: MegatronOptimizer) -> None:
    """Give each parameter its own step count: megatron-core loads one tensor into all of them.

    AdamW counts up in place, so that the shared one would grow by the number of parameters.
    """
    for adam in _adams(optimizer):
        for state in adam.state.values():
            state["step"] = state["step"].clone()


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
