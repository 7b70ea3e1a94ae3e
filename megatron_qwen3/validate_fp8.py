"""Checks the settings of [fp8]: one line per fault, as `validate.py` does the others.

`faults` are those of settings alone; `chip_faults` names products that a chip lacks, before a job
waits in a queue and again on its nodes (`parallel/fp8.py`, which also checks installed packages).
"""

from collections.abc import Iterator

from megatron_qwen3.fields import settings_of
from megatron_qwen3.modes import belongs
from megatron_qwen3.parallel.layout import near, row_unit
from megatron_qwen3.settings import Config, ModelConfig, ParallelConfig
from megatron_qwen3.settings_fp8 import ARITHMETIC, UNITS, Fp8Config
from megatron_qwen3.toml import emit

_OF_DELAYED = ("history", "history_choice", "margin")
_GATHERED = ("delayed", "tensorwise")
# The first compute capability that has a recipe's products.
_LEAST_CHIP = {
    "delayed": (8, 9),
    "tensorwise": (8, 9),
    "blockwise": (9, 0),
    "mxfp8": (10, 0),
    "nvfp4": (10, 0),
}


def faults(config: Config) -> Iterator[str]:
    """Faults of the table, alone and with other tables."""
    fp8 = config.fp8
    if not fp8.is_on:
        yield from _left_over(fp8)
        return
    if config.train.precision != "bf16":
        yield (
            f'fp8.recipe = "{fp8.recipe}" with train.precision = "{config.train.precision}": all '
            'other products are in bf16; set train.precision = "bf16", or fp8.recipe = "none"'
        )
    if config.model.kind == "torch":
        yield (
            f'fp8.recipe = "{fp8.recipe}" with model.kind = "torch", whose layers multiply in '
            'bf16; set model.kind = "te" or "auto", or fp8.recipe = "none"'
        )
    yield from _recipe_faults(fp8)
    yield from _row_choice_faults(config)
    yield from _end_faults(config)
    yield from _gather_faults(config)
    yield from width_faults(config.model, config.parallel, fp8)
    yield from _row_faults(config)


def chip_faults(config: Config, name: str, capability: tuple[int, int]) -> Iterator[str]:
    """Recipes that a chip of this compute capability cannot compute; `name` is for people."""
    recipe = config.fp8.recipe
    able = ["none", *(r for r in ARITHMETIC if _computes(r, capability))]
    if recipe not in able:
        chip = f"{name}, of compute capability {capability[0]}.{capability[1]},"
        valid = ", ".join(able)
        yield f'fp8.recipe = "{recipe}": {chip} has no products of this kind; valid there: {valid}'


def _computes(recipe: str, capability: tuple[int, int]) -> bool:
    """As Transformer Engine's quantization.py says."""
    if recipe == "mxfp8" and capability >= (12, 0):
        return False  # not with every one of its factors transposed
    return capability >= _LEAST_CHIP[recipe]


def _left_over(fp8: Fp8Config) -> Iterator[str]:
    for name, row in settings_of(Fp8Config).items():
        if getattr(fp8, name) != row.default:
            yield (
                f'fp8.{name} = {emit(getattr(fp8, name))}, but fp8.recipe = "none" computes in '
                f"bf16; set a recipe, or this back to {emit(row.default)}"
            )


def _recipe_faults(fp8: Fp8Config) -> Iterator[str]:
    if fp8.recipe != "delayed":
        for name in _OF_DELAYED:
            default = getattr(Fp8Config(), name)
            if getattr(fp8, name) != default:
                yield (
                    f'fp8.{name} = {emit(getattr(fp8, name))} goes with fp8.recipe = "delayed", '
                    f'not "{fp8.recipe}"; set it back to {emit(default)}'
                )
    if fp8.recipe == "nvfp4" and fp8.format != "auto":
        yield (
            f'fp8.format = "{fp8.format}" is of 8 bits, and fp8.recipe = "nvfp4" has 4; set it '
            'back to "auto"'
        )


def _row_choice_faults(config: Config) -> Iterator[str]:
    rows, usual = config.fp8.expert_rows, Fp8Config().expert_rows
    if rows != usual and not config.model.num_experts:
        yield (
            f'fp8.expert_rows = "{rows}", but the model is dense; set it back to "{usual}", or a '
            "model of experts"
        )


def _end_faults(config: Config) -> Iterator[str]:
    fp8, layers = config.fp8, config.model.num_layers
    ends = {"first_layers_bf16": fp8.first_layers_bf16, "last_layers_bf16": fp8.last_layers_bf16}
    if not any(ends.values()):
        return
    told = " and ".join(f"fp8.{name} = {n}" for name, n in ends.items() if n)
    if fp8.recipe == "delayed":
        yield (
            f'{told} with fp8.recipe = "delayed", whose scales are those of all layers together; '
            'set fp8.recipe = "tensorwise", or 0 layers'
        )
    if sum(ends.values()) >= layers:
        yield (
            f"{told} leave none of model.num_layers = {layers} to FP8; valid: less than {layers} "
            "together"
        )
        return
    # megatron-core compares with an even share of a pipeline rank.
    most = layers // config.parallel.pipeline
    for name, count in ends.items():
        if count > most:
            yield (
                f"fp8.{name} = {count} exceeds model.num_layers / parallel.pipeline = {layers} / "
                f"{config.parallel.pipeline}, which megatron-core takes at most; valid: 0 to {most}"
            )


def _gather_faults(config: Config) -> Iterator[str]:
    """Weights in FP8 are cast from the shares of them that data ranks own."""
    fp8, mode = config.fp8, config.run.mode
    if not fp8.gather:
        return
    if fp8.recipe not in _GATHERED:
        yield (
            f'fp8.gather = true with fp8.recipe = "{fp8.recipe}": weights are kept so by recipes '
            f"of whole tensors alone; set it to false, or fp8.recipe = {' or '.join(_GATHERED)}"
        )
    if not config.optim.distributed:
        yield (
            "fp8.gather = true needs optim.distributed = true, whose ranks cast and gather the "
            "weights that they own; set one of them"
        )
    if belongs("rollouts", mode):
        yield (
            f'fp8.gather = true with run.mode = "{mode}", whose answers are sampled by weights in '
            "bf16; set it to false"
        )


def width_faults(model: ModelConfig, p: ParallelConfig, fp8: Fp8Config) -> Iterator[str]:
    """Sizes of matrices on each rank that a recipe cannot multiply.

    `validate.py` has already named those that ranks do not divide.
    """
    heads, groups = model.num_attention_heads, model.num_query_groups
    widths = {
        "model.hidden_size": (model.hidden_size, 1, ""),
        "model.num_attention_heads * head_dim": (heads * model.head_dim, p.tensor, "tensor"),
        "model.num_query_groups * head_dim": (groups * model.head_dim, p.tensor, "tensor"),
    }
    if model.num_experts:
        name, size = "model.expert_ffn_hidden_size", model.expert_ffn_hidden_size
        widths[name] = (size, p.expert_tensor, "expert_tensor")
    else:
        widths["model.ffn_hidden_size"] = (model.ffn_hidden_size, p.tensor, "tensor")
    unit = UNITS[fp8.recipe]
    of_preset = f" (preset {model.preset})" if model.preset else ""
    for name, (size, ranks, setting) in widths.items():
        if size % ranks == 0 and size // ranks % unit:
            share = f" / parallel.{setting} = {size} / {ranks}" if ranks > 1 else ""
            yield (
                f"{name}{share} = {size // ranks}{of_preset} is no multiple of {unit}, which "
                f'fp8.recipe = "{fp8.recipe}" needs; valid near it: {near(size, unit * ranks)}'
                f"{_fewer(size, ranks, setting, unit)}"
            )


def _fewer(size: int, ranks: int, setting: str, unit: int) -> str:
    """The largest number of ranks that leave each a multiple of the unit, as text."""
    fitting = [n for n in range(1, ranks) if ranks % n == 0 and size % (n * unit) == 0]
    return f", or parallel.{setting} = {fitting[-1]}" if fitting else ""


def _row_faults(config: Config) -> Iterator[str]:
    """Positions of a row on a rank: rows of a micro-batch stand side by side."""
    length = config.data.sequence_length
    alone, _ = row_unit(config.parallel)
    unit, settings = row_unit(config.parallel, config.fp8)
    if length % unit and length % alone == 0:
        yield (
            f"data.sequence_length = {length} is no multiple of {unit}, which {settings} needs; "
            f"valid near it: {near(length, unit)}"
        )
