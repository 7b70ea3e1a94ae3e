"""AdamW through megatron-core's optimizers, and the learning rate of each step.

optimizer = build_optimizer(config, chunks)
norm = gradient_norm(optimizer).item()      # if it is finite:
update(optimizer, learning_rate(config, step), config.optim.clip_grad, norm)
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megatron_qwen3.cpu import redirect
from megatron_qwen3.cpu.norms import norms
from megatron_qwen3.parallel import fp8
from megatron_qwen3.parallel.mcore import (
    DistributedOptimizer,
    MegatronOptimizer,
    OptimizerConfig,
    get_megatron_optimizer,
)
from megatron_qwen3.settings import Config
from megatron_qwen3.training.adams import adam_of


def build_optimizer(config: Config, chunks: list[nn.Module]) -> MegatronOptimizer:
    """AdamW with float32 master weights and moments; vectors (norms, biases) do not decay.

    With optim.distributed each data-parallel rank keeps its share of the state (ZeRO-1).
    """
    with redirect.cuda_type_names(), adam_of(config.optim.adam):
        optimizer = get_megatron_optimizer(
            optimizer_config(config), chunks, use_gloo_process_groups=False
        )
    for group in optimizer.param_groups:
        # megatron-core sets `wd_mult` 0 for vectors, and multiplies only in its own scheduler.
        group["weight_decay"] = config.optim.weight_decay * group["wd_mult"]
    for adam in _adams(optimizer):
        _fuse(adam)
    return optimizer


def optimizer_config(config: Config) -> OptimizerConfig:
    """megatron-core's configuration of the optimizer."""
    optim, bf16 = config.optim, config.train.precision == "bf16"
    types = {"fp32": torch.float32, "bf16": torch.bfloat16}
    mixed: dict[str, Any] = {}
    if optim.is_mixed:
        mixed = {
            "use_precision_aware_optimizer": True,
            "main_grads_dtype": types[optim.gradients],
            "exp_avg_dtype": types[optim.first_moment],
            "exp_avg_sq_dtype": types[optim.second_moment],
            # A checkpoint has the whole float32 weights, not only the bits that bf16 lacks.
            "store_param_remainders": False,
        }
    return OptimizerConfig(
        optimizer="adam",
        lr=optim.lr,
        min_lr=optim.min_lr,
        weight_decay=optim.weight_decay,
        adam_beta1=optim.beta1,
        adam_beta2=optim.beta2,
        adam_eps=optim.eps,
        clip_grad=optim.clip_grad,
        bf16=bf16,
        params_dtype=types[config.train.precision],
        use_distributed_optimizer=optim.distributed,
        overlap_param_gather=config.parallel.overlap and optim.distributed,
        **fp8.of_optimizer(config),
        optimizer_cpu_offload=bool(optim.offload),
        optimizer_offload_fraction=optim.offload,
        overlap_cpu_optimizer_d2h_h2d=optim.offload_overlap,
        **mixed,
    )


def described(optimizer: MegatronOptimizer) -> str:
    """The full name of the AdamW in use: torch's, apex's or Transformer Engine's; all of them where
    a part of the state is in the host's memory."""
    names = dict.fromkeys(map(_name, _updating(_parts(optimizer)[0].optimizer)))
    return " and ".join(names)


def _name(adam: torch.optim.Optimizer) -> str:
    name = f"{type(adam).__module__}.{type(adam).__qualname__}"
    return f"{name}, fused" if isinstance(adam, torch.optim.AdamW) else name


def _parts(optimizer: MegatronOptimizer) -> list[MegatronOptimizer]:
    """The optimizers of dense and of expert parameters, without stubs that have no parameters."""
    parts = getattr(optimizer, "chained_optimizers", [optimizer])
    return [part for part in parts if not getattr(part, "is_stub_optimizer", False)]


def _adams(optimizer: MegatronOptimizer) -> list[torch.optim.AdamW]:
    """The torch AdamWs inside; empty where apex or Transformer Engine bring their own."""
    inner = [part.optimizer for part in _parts(optimizer)]
    return [adam for adam in inner if isinstance(adam, torch.optim.AdamW)]


def _fuse(optimizer: torch.optim.AdamW) -> None:
    """Fuse the update into one pass; megatron-core selects torch's slow loop."""
    for group in optimizer.param_groups:
        group["fused"], group["foreach"] = True, False


class OwnedState(NamedTuple):
    """This rank's share of one parameter: its elements from `start` on, flattened.

    tensors: the moments `exp_avg` and `exp_avg_sq`, and `fp32_param` where AdamW updates another
    tensor than the model's own weight. They are the optimizer's own tensors, not copies.
    """

    param: nn.Parameter
    start: int
    tensors: dict[str, Tensor]

    @property
    def numel(self) -> int:
        return next(iter(self.tensors.values())).numel()


def owned_states(optimizer: MegatronOptimizer) -> Iterator[OwnedState]:
    """The optimizer state of this rank by parameter; moments of zero before the first step."""
    for part in _parts(optimizer):
        updates = _updates(part.optimizer)
        for param, main, start in _owned_params(part):
            adam, updated = updates[id(main)]
            state = adam.state[updated]
            if "exp_avg" not in state:
                _allocate(adam, state, updated)
            tensors = {name: state[name] for name in ("exp_avg", "exp_avg_sq")}
            # An AdamW that gets the model's own weights keeps float32 copies itself.
            master = state.get("master_param", updated)
            if master.dtype != param.dtype:
                tensors["fp32_param"] = master.detach()
            yield OwnedState(param, start, tensors)


def _updating(adam: torch.optim.Optimizer) -> list[torch.optim.Optimizer]:
    """The optimizers that take steps: several where the host holds a part of the state."""
    several: list[torch.optim.Optimizer] = getattr(adam, "sub_optimizers", [adam])
    return several


def _updates(adam: torch.optim.Optimizer) -> dict[int, tuple[torch.optim.Optimizer, Tensor]]:
    """For the id of each tensor that megatron-core gave AdamW: its optimizer, and the tensor
    updated in its place, a copy where the host holds a part of the state."""
    outer = getattr(adam, "inner_param_to_orig_param", {})
    return {
        id(outer.get(updated, updated)): (one, updated)
        for one in _updating(adam)
        for group in one.param_groups
        for updated in group["params"]
    }


def reload_weights(optimizer: MegatronOptimizer) -> None:
    """Copy the model's weights, after a load, to AdamW's float32 weights."""
    optimizer.reload_model_params()
    for part in _parts(optimizer):
        for _, main, _ in _owned_params(part):
            state = part.optimizer.state.get(main, {})
            if "master_param" in state and not hasattr(part.optimizer, "sub_optimizers"):
                state["master_param"].copy_(main.detach())


def state_tensors(optimizer: MegatronOptimizer) -> list[Tensor]:
    """All tensors of `owned_states`, without AdamW's counts of steps, which are single numbers."""
    return [tensor for state in owned_states(optimizer) for tensor in state.tensors.values()]


def _owned_params(part: MegatronOptimizer) -> Iterator[tuple[nn.Parameter, Tensor, int]]:
    """(model parameter, tensor that AdamW updates for it, its first element within it)."""
    if isinstance(part, DistributedOptimizer):
        for param, (group, index) in part.model_param_group_index_map.items():
            main = part.optimizer.param_groups[group]["params"][index]
            yield param, main, part._get_model_param_range_map(param)["param"].start
        return
    masters: dict[int, nn.Parameter] = {}
    for low, high in zip(
        getattr(part, "float16_groups", ()),
        getattr(part, "fp32_from_float16_groups", ()),
        strict=True,
    ):
        masters |= {id(master): param for param, master in zip(low, high, strict=True)}
    for group in part.optimizer.param_groups:
        yield from ((masters.get(id(main), main), main, 0) for main in group["params"])


def _allocate(adam: torch.optim.Optimizer, state: dict[str, Any], main: Tensor) -> None:
    if hasattr(adam, "initialize_state"):  # Transformer Engine's, which has types of its own
        adam.initialize_state(main, False)
        return
    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(main), torch.zeros_like(main)
    if isinstance(adam, torch.optim.AdamW):
        state["step"] = torch.zeros((), device=main.device)


def recast(optimizer: MegatronOptimizer) -> None:
    """Copy AdamW's float32 weights to the model's own, on the ranks that own them."""
    for part in _parts(optimizer):
        part._copy_main_params_to_model_params()


def set_step(optimizer: MegatronOptimizer, step: int) -> None:
    """Set the number of past updates for AdamW's bias correction."""
    for adam in (one for part in _parts(optimizer) for one in _updating(part.optimizer)):
        for group in adam.param_groups:
            if not isinstance(adam, torch.optim.AdamW):
                group["step"] = step  # apex and Transformer Engine count by group
        for state in adam.state.values():
            if "step" in state:
                state["step"].fill_(step)


def learning_rate(config: Config, step: int) -> float:
    """Rate of step `step`, counted from 0.

    A linear rise over warmup_steps, then: 'constant'; 'cosine' down to min_lr at the last step
    (SGDR, arXiv 1608.03983); 'wsd', constant and then a linear fall to min_lr over the last
    decay_steps, after the rise (warmup-stable-decay, arXiv 2404.06395, section 4).
    """
    optim, steps = config.optim, config.steps
    if step < optim.warmup_steps:
        return optim.lr * (step + 1) / optim.warmup_steps
    if optim.schedule == "constant":
        return optim.lr
    if optim.schedule == "cosine":
        start, shape = optim.warmup_steps, _half_cosine
    else:
        decay_steps = optim.decay_steps or max(1, steps // 10)
        start, shape = max(optim.warmup_steps, steps - decay_steps), _linear
    progress = (step - start + 1) / max(1, steps - start)
    return optim.min_lr + (optim.lr - optim.min_lr) * shape(min(max(progress, 0.0), 1.0))


def _half_cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


def _linear(progress: float) -> float:
    return 1 - progress


@torch.no_grad()
def gradient_norm(optimizer: MegatronOptimizer) -> Tensor:
    """Give the reduced gradients to the optimizer; returns their norm over all ranks, float32 [].

    Does not wait for the device; megatron-core's own norm does, once per parameter without apex
    or Transformer Engine.
    """
    optimizer.prepare_grads()
    squares: dict[Any, Tensor] = {}
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        group, grads = part.get_grad_stats_parallel_group(), _counted_gradients(part)
        square = torch.zeros((), device=torch.cuda.current_device())
        if grads:
            square = norms(grads).square().sum()
        squares[group] = squares[group] + square if group in squares else square
    for group, square in squares.items():
        dist.all_reduce(square, group=group)
    return torch.stack(list(squares.values())).sum().sqrt()


def _counted_gradients(part: MegatronOptimizer) -> list[Tensor]:
    """The gradients for the norm: of copies on several ranks, one counts."""
    new_name = "get_grads_for_grad_norm"  # of later releases than 0.16
    name = new_name if hasattr(part, new_name) else "get_main_grads_for_grad_norm"
    gradients: list[Tensor] = getattr(part, name)()
    return gradients


@torch.no_grad()
def update(optimizer: MegatronOptimizer, rate: float, clip_grad: float, norm: float) -> None:
    """Clip the gradients, whose norm is `norm`, to `clip_grad` (0: no clipping); take one step."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    scale = clip_grad / (norm + 1e-6) if clip_grad else 1.0
    grads = [grad for part in _parts(optimizer) for grad in _gradients(part)]
    if scale < 1.0 and grads:
        torch._foreach_mul_(grads, scale)
    optimizer.step_with_ready_grads()


def _gradients(part: MegatronOptimizer) -> list[Tensor]:
    """The gradients that AdamW reads; under another name where their type is not the weights'."""
    apart = part.config.use_precision_aware_optimizer_no_fp8_or_ds_fp8
    grads = [getattr(p, "decoupled_grad" if apart else "grad", None) for p in part.get_parameters()]
    return [grad for grad in grads if grad is not None]
