"""FP8 in megatron-core: arguments for its configurations, and the check of this machine.


    check(config)                             # before any rank joins; ConfigError
    TransformerConfig(…, **of_model(config))
    DistributedDataParallelConfig(…, **of_gradients(config))
    OptimizerConfig(…, **of_optimizer(config))

`settings_fp8.py` explains the settings, `validate_fp8.py` their combinations.
"""

from collections.abc import Iterator

import torch
from packaging.version import Version

from megatron_qwen3 import launcher
from megatron_qwen3.cpu import device
from megatron_qwen3.parallel import installed
from megatron_qwen3.settings import Config, ConfigError
from megatron_qwen3.validate_fp8 import chip_faults

_PACKAGE = "transformer_engine"
# The first release of Transformer Engine with a recipe in the form that megatron-core uses.
_LEAST_ENGINE = {
    "delayed": "1.11",  # the first with grouped products in FP8
    "mxfp8": "2.1",
    "tensorwise": "2.2",
    "blockwise": "2.3",
    "nvfp4": "2.7",
}
_LEAST_CUDA = {"blockwise": "12.9"}


def check(config: Config) -> None:
    """ConfigError where this machine's chip, or its software, lacks products of the recipe.

    On a CPU, where Transformer Engine is only for tests, chip and CUDA are not checked.
    """
    if config.fp8.is_on and (found := list(_faults(config))):
        raise ConfigError("\n".join(found))


def of_model(config: Config) -> dict[str, object]:
    """Arguments for megatron-core's TransformerConfig; {} where products are in bf16."""
    fp8 = config.fp8
    if not fp8.is_on:
        return {}
    is_four_bits = fp8.recipe == "nvfp4"
    bits = {"fp4": fp8.bits_format, "fp4_recipe": fp8.recipe}
    if not is_four_bits:
        bits = {"fp8": fp8.bits_format, "fp8_recipe": fp8.recipe, "fp8_param": fp8.gather}
    settings: dict[str, object] = dict(bits)
    if fp8.recipe == "delayed":
        settings |= {
            "fp8_margin": fp8.margin,
            "fp8_amax_history_len": fp8.history,
            "fp8_amax_compute_algo": fp8.history_choice,
        }
    if fp8.first_layers_bf16 or fp8.last_layers_bf16:
        settings |= {
            "first_last_layers_bf16": True,
            "num_layers_at_start_in_bf16": fp8.first_layers_bf16,
            "num_layers_at_end_in_bf16": fp8.last_layers_bf16,
        }
    if config.model.num_experts:
        settings["moe_router_padding_for_quantization"] = fp8.expert_rows == "route"
    return settings


def of_gradients(config: Config) -> dict[str, object]:
    """Arguments for megatron-core's DistributedDataParallelConfig."""
    return {"fp8_param_gather": True} if config.fp8.gather else {}


def of_optimizer(config: Config) -> dict[str, object]:
    """Arguments for megatron-core's OptimizerConfig, needed where weights are kept in FP8."""
    return {"fp8_recipe": config.fp8.recipe} if config.fp8.gather else {}


def _faults(config: Config) -> Iterator[str]:
    recipe = config.fp8.recipe
    if not torch.cuda.is_available():
        yield f'fp8.recipe = "{recipe}", but torch sees no GPU, which it needs; valid here: "none"'
        return
    least = _LEAST_ENGINE[recipe]
    is_there, old = installed.release(_PACKAGE), installed.older_than(_PACKAGE, least)
    if old or not is_there:
        found = f"{old} is installed" if old else "it is not installed"
        yield (
            f'fp8.recipe = "{recipe}" needs Transformer Engine {least} or newer, and {found}: '
            f"pip install --upgrade --no-build-isolation '{_PACKAGE}[pytorch]>={least}'"
        )
        return
    if not device.is_gpu():
        return
    chip = torch.cuda.get_device_properties(launcher.local_rank())
    yield from chip_faults(config, chip.name, (chip.major, chip.minor))
    needed, cuda = _LEAST_CUDA.get(recipe, "0"), torch.version.cuda or "0"
    if Version(cuda) < Version(needed):
        yield (
            f'fp8.recipe = "{recipe}" needs CUDA {needed} or newer, and torch was built for '
            f'{cuda}; set fp8.recipe = "tensorwise", or install a torch of a newer CUDA'
        )
