"""Which modules a Qwen3 layer is made of: the one place that knows what is installed.

Today there is one kind, 'torch': our layer on megatron-core's parallel linears, with torch's
fused attention and grouped products, on CPUs and GPUs alike. Transformer Engine's kind (its
linears, FP8, context parallelism) and apex's fused optimizer belong here as further functions
beside `torch_block_spec`; nothing outside this module asks what is installed.
"""

from megatron_qwen3.cpu import redirect
from megatron_qwen3.model.experts import SparseMLP
from megatron_qwen3.model.layer import DenseMLP, Layer, RMSNorm
from megatron_qwen3.parallel.mcore import (
    ModuleSpec,
    TransformerBlockSubmodules,
    TransformerConfig,
    TransformerLayerSubmodules,
    get_num_layers_to_build,
)


def block_spec(config: TransformerConfig, vp_stage: int | None) -> TransformerBlockSubmodules:
    """The layers that this pipeline rank holds in model chunk `vp_stage`."""
    return torch_block_spec(config, vp_stage)


def torch_block_spec(config: TransformerConfig, vp_stage: int | None) -> TransformerBlockSubmodules:
    """Layers without Transformer Engine."""
    mlp = ModuleSpec(module=SparseMLP if config.num_moe_experts else DenseMLP)
    layer = ModuleSpec(module=Layer, submodules=TransformerLayerSubmodules(mlp=mlp))
    count = get_num_layers_to_build(config, vp_stage=vp_stage)
    return TransformerBlockSubmodules(layer_specs=[layer] * count, layer_norm=RMSNorm)


def settings_of_device() -> dict[str, bool]:
    """What megatron-core's configuration says of the device that layers are made and run on."""
    return {
        "use_cpu_initialization": redirect.REDIRECTED,
        # gloo reads what it sends until the send is done, even where nobody waits for it.
        "deallocate_pipeline_outputs": not redirect.REDIRECTED,
    }
