"""What settings of overlap and memory must keep: one line per fault, as `validate.py` has others.

The rules are megatron-core's own, most of which it asserts only while the model is built, and those
of ours that it does not know. `parallel/installed.py` says what is not installed.
"""

from collections.abc import Iterator

from megatron_qwen3.settings import Config

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


def cpu_faults(config: Config, why: str) -> Iterator[str]:
    """What is asked of a GPU, where there is none: `why` says that."""
    for asked, way_out in _of_gpus(config).items():
        yield f"{asked} is for GPUs, and {why}; set {way_out}"


def _of_gpus(config: Config) -> dict[str, str]:
    """Settings that a GPU alone has, as NAME = VALUE, and what a CPU takes in their place."""
    optim = config.optim
    found = {}
    if optim.adam in ("te", "apex"):
        found[f'optim.adam = "{optim.adam}"'] = 'optim.adam = "auto"'
    for name in ("first_moment", "second_moment"):
        if getattr(optim, name) == "bf16":
            found[f'optim.{name} = "bf16"'] = f'optim.{name} = "fp32"'
    if optim.offload:
        found[f"optim.offload = {optim.offload:g}"] = "optim.offload = 0"
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
    if config.distill.teacher.in_turns:
        yield (
            f"{asked} and distill.teacher.in_turns = true both move the optimizer to the host; "
            "leave one of them out"
        )
