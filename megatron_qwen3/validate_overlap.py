"""Checks settings of overlap and memory: one line per fault, as `validate.py` does the others.

The rules are megatron-core's own, most of which it asserts only while the model is built, and our
own. `parallel/installed.py` reports missing packages.
"""

import os
from collections.abc import Iterator

from megatron_qwen3.modes import belongs
from megatron_qwen3.settings import Config
from megatron_qwen3.settings_overlap import DENSE_PARTS, SPARSE_PARTS, OverlapConfig
from megatron_qwen3.toml import emit

# With it Transformer Engine's buffers are shared by CUDA IPC; its initialize_ub reads it.
_BY_IPC = "UB_SKIPMC"
_LEAST_TO_MULTICAST = (9, 0)  # compute capability
# bf16 has 8 bits: a moving average whose weight of the new value is below 2^-8 stands still where
# it should move by less than half a step of its own rounding.
_MOST_BETA_OF_BF16 = 1 - 2**-8


def faults(config: Config) -> Iterator[str]:
    """Faults that can be seen without the world size."""
    if config.run.device == "cpu":
        yield from cpu_faults(config, 'run.device = "cpu"')
    if config.optim.gradients == "bf16" and config.train.precision != "bf16":
        yield (
            'optim.gradients = "bf16" goes with train.precision = "bf16", not '
            f'"{config.train.precision}"; set optim.gradients = "fp32"'
        )
    yield from _moment_faults(config)
    yield from _offload_faults(config)
    yield from _kind_faults(config)
    yield from _tensor_faults(config)
    yield from _expert_faults(config)
    yield from _activation_faults(config)


def cpu_faults(config: Config, why: str) -> Iterator[str]:
    """Settings for a GPU where there is none, for the reason `why`."""
    for asked, way_out in _of_gpus(config).items():
        yield f"{asked} is for GPUs, and {why}; set {way_out}"


def multicast_faults(config: Config, whose: str, has_multicast: bool) -> Iterator[str]:
    """Where one write does not reach the buffers of all tensor ranks; `whose` is for people."""
    if config.overlap.tensor and not has_multicast and os.environ.get(_BY_IPC, "0") == "0":
        yield (
            f"overlap.tensor = true, and {whose} has no CUDA multicast, by which buffers are "
            f"written on all tensor ranks at once; export {_BY_IPC}=1 (by CUDA IPC, slower), or "
            "leave it out"
        )


def chip_has_multicast(capability: tuple[int, int]) -> bool:
    """Whether chips of this compute capability can have it; NVSwitch and the driver must, too."""
    return capability >= _LEAST_TO_MULTICAST


def _of_gpus(config: Config) -> dict[str, str]:
    """Settings that need a GPU, as NAME = VALUE, each with the value that a CPU takes."""
    optim = config.optim
    found = {}
    if optim.adam in ("te", "apex"):
        found[f'optim.adam = "{optim.adam}"'] = 'optim.adam = "auto"'
    for name in ("first_moment", "second_moment"):
        if getattr(optim, name) == "bf16":
            found[f'optim.{name} = "bf16"'] = f'optim.{name} = "fp32"'
    if optim.offload:
        found[f"optim.offload = {optim.offload:g}"] = "optim.offload = 0"
    if config.overlap.nccl_buffers:
        found["overlap.nccl_buffers = true"] = "overlap.nccl_buffers = false"
    return found


def _moment_faults(config: Config) -> Iterator[str]:
    optim = config.optim
    for name, beta in (("first_moment", "beta1"), ("second_moment", "beta2")):
        if getattr(optim, name) != "bf16":
            continue
        asked = f'optim.{name} = "bf16"'
        yield from _mixed_faults(config, asked, f'optim.{name} = "fp32"')
        if optim.adam not in ("auto", "te"):
            yield (
                f"{asked} is Transformer Engine's AdamW's, but optim.adam = \"{optim.adam}\"; "
                "valid: auto, te"
            )
        if optim.offload:
            yield (
                f"{asked} and optim.offload = {optim.offload:g}: the host keeps float32 moments; "
                f'set optim.{name} = "fp32", or optim.offload = 0'
            )
        if getattr(optim, beta) > _MOST_BETA_OF_BF16:
            yield (
                f"{asked} with optim.{beta} = {getattr(optim, beta):g}: a step moves the average "
                f"by less than bf16 can show, and it stands still; valid: optim.{beta} at most "
                f'{_MOST_BETA_OF_BF16:.4f}, or optim.{name} = "fp32"'
            )


def _mixed_faults(config: Config, asked: str, way_out: str) -> Iterator[str]:
    """Of megatron-core's precision-aware optimizer, which works on shards of bf16 weights."""
    if config.train.precision != "bf16":
        yield (
            f'{asked} goes with train.precision = "bf16", not "{config.train.precision}"; '
            f"set {way_out}"
        )
    if not config.optim.distributed:
        yield f"{asked} needs optim.distributed = true; set it, or {way_out}"


def _offload_faults(config: Config) -> Iterator[str]:
    optim = config.optim
    if not optim.offload:
        if optim.offload_overlap:
            yield "optim.offload_overlap = true needs optim.offload above 0; set it too"
        return
    asked = f"optim.offload = {optim.offload:g}"
    yield from _mixed_faults(config, asked, "optim.offload = 0")
    if config.fp8.gather:
        yield (
            f"{asked} updates bf16 weights, and with fp8.gather = true there are none; leave one "
            "of them out"
        )
    if config.distill.teacher.in_turns:
        yield (
            f"{asked} and distill.teacher.in_turns = true both move the optimizer to the host; "
            "leave one of them out"
        )


def _kind_faults(config: Config) -> Iterator[str]:
    """All but NCCL's buffers are options of Transformer Engine's layers, which says for itself
    where it cannot be had."""
    usual = OverlapConfig()
    for name, value in vars(config.overlap).items():
        if name == "nccl_buffers" or value == getattr(usual, name):
            continue
        if config.model.kind != "te":
            yield (
                f'overlap.{name} = {emit(as_list(value))} needs model.kind = "te", not '
                f'"{config.model.kind}"; set it, or leave overlap.{name} out'
            )


def _tensor_faults(config: Config) -> Iterator[str]:
    """Transformer Engine's buffers have one shape: that of a micro-batch of full rows."""
    overlap, p, mode = config.overlap, config.parallel, config.run.mode
    if not overlap.tensor:
        return
    if p.tensor == 1:
        yield "overlap.tensor = true, but parallel.tensor = 1 has nothing to send; leave it out"
    elif not p.sequence:
        yield "overlap.tensor = true needs parallel.sequence = true; set it, or leave it out"
    if config.train.precision != "bf16":
        yield (
            'overlap.tensor = true goes with train.precision = "bf16", not '
            f'"{config.train.precision}"; leave it out'
        )
    if belongs("rollouts", mode):
        yield (
            "overlap.tensor = true has buffers for rows of data.sequence_length alone, and "
            f'run.mode = "{mode}" has others; leave it out'
        )
    if config.parallel.context_exchange != "own":
        yield (
            "overlap.tensor = true has buffers for rows of data.sequence_length alone, and "
            f'parallel.context_exchange = "{config.parallel.context_exchange}" pads documents to '
            'longer ones; leave it out, or set parallel.context_exchange = "own"'
        )
    if mode == "sft" and config.sft.teacher.path:
        yield (
            "overlap.tensor = true has buffers for one model, and sft.teacher.path is another in "
            "the same process; leave one of them out"
        )


def _expert_faults(config: Config) -> Iterator[str]:
    """Rules of megatron-core's combined schedule, and ours for options that it does not know."""
    overlap, p, model = config.overlap, config.parallel, config.model
    if not overlap.experts:
        if overlap.delay_weight_gradients:
            yield "overlap.delay_weight_gradients = true needs overlap.experts = true; set it too"
        return
    asked = "overlap.experts = true"
    if p.expert == 1:
        yield f"{asked}, but parallel.expert = 1 sends no tokens; leave it out"
    if p.pipeline > 1 and p.virtual_pipeline == 1:
        yield (
            f"{asked} with parallel.pipeline = {p.pipeline} needs parallel.virtual_pipeline above "
            "1: without, no second micro-batch is there to be computed meanwhile"
        )
    if p.recompute != "none":
        yield (
            f'{asked} takes layers apart, and parallel.recompute = "{p.recompute}" computes them '
            'again whole; set parallel.recompute = "none"'
        )
    if config.train.precision != "bf16":
        yield (
            f'{asked} goes with train.precision = "bf16", not "{config.train.precision}"; leave it '
            "out"
        )
    if model.tie_embeddings:
        yield (
            f"{asked} ends the output layer's backward pass before the embedding's, and "
            "model.tie_embeddings = true makes one weight of both; leave one of them out"
        )


def _activation_faults(config: Config) -> Iterator[str]:
    """Activations on the host: parts of layers, or the first layers whole."""
    overlap, p, layers = config.overlap, config.parallel, config.model.num_layers
    parts = overlap.offload_parts
    valid = SPARSE_PARTS if config.model.num_experts else DENSE_PARTS
    if unknown := [part for part in parts if part not in valid]:
        kind = "sparse" if config.model.num_experts else "dense"
        yield (
            f'overlap.offload_parts: "{unknown[0]}" is no part of a {kind} layer that can be '
            f"sent; valid: {', '.join(valid)}"
        )
    if len({*parts}) < len(parts):
        yield f"overlap.offload_parts = {emit([*parts])} names a part twice"
    if "attn_proj" in parts and "core_attn" not in parts:
        yield (
            'overlap.offload_parts: "attn_proj" reads the result that "core_attn" keeps; add '
            '"core_attn"'
        )
    if parts and p.virtual_pipeline > 1:
        yield (
            f"overlap.offload_parts with parallel.virtual_pipeline = {p.virtual_pipeline}: "
            "megatron-core 0.19 takes one model chunk's activations for another's; set it to 1"
        )
    if overlap.offload_layers >= layers:
        yield (
            f"overlap.offload_layers = {overlap.offload_layers} must be below model.num_layers = "
            f"{layers}: the last layer's activations are needed at once"
        )
    again = {"full": set(parts), "selective": {"expert_fc1", "moe_act"} & set(parts)}
    if named := [part for part in parts if part in again.get(p.recompute, ())]:
        yield (
            f'overlap.offload_parts: "{named[0]}" is computed again with parallel.recompute = '
            f'"{p.recompute}", and not kept; leave one of them out'
        )
    if not overlap.offload_layers:
        return
    if parts:
        yield "overlap.offload_layers and offload_parts send the same; leave one of them out"
    if p.recompute != "none":
        yield (
            f"overlap.offload_layers = {overlap.offload_layers} keeps activations on the host that "
            f'parallel.recompute = "{p.recompute}" does not keep; leave one of them out'
        )
    if p.pipeline > 1:
        yield (
            f"overlap.offload_layers = {overlap.offload_layers} needs parallel.pipeline = 1, not "
            f"{p.pipeline}; overlap.offload_parts goes with any"
        )
    if overlap.experts:
        yield (
            "overlap.offload_layers and overlap.experts = true: layers that are taken apart are "
            "not sent; set overlap.offload_parts in place of offload_layers"
        )


def as_list(value: object) -> object:
    """A value as TOML has it."""
    return [*value] if isinstance(value, tuple) else value
