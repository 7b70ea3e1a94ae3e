"""The parts of megatron-core that we use, importable even on a CPU.

    from megatron_qwen3.parallel.mcore import GPTModel, parallel_state

megatron-core looks for a GPU while it is imported, so the redirection of cpu/ must come first. It
does here and nowhere else: no other module of ours imports megatron-core.
"""

# isort: off
from megatron_qwen3.cpu import redirect as _redirect  # noqa: F401

# isort: on
from megatron.core import optimizer as optimizers
from megatron.core import parallel_state, tensor_parallel
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.mapping import (
    ShardedObject,
    ShardedTensorFactory,
    is_main_replica,
)
from megatron.core.distributed import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron.core.extensions.transformer_engine import HAVE_TE, TEDotProductAttention
from megatron.core.fp8_utils import (
    get_fp8_recipe,
    is_float8tensor,
    post_all_gather_processing,
)
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
from megatron.core.num_microbatches_calculator import (
    destroy_num_microbatches_calculator,
    init_num_microbatches_calculator,
)
from megatron.core.optimizer import (
    MegatronOptimizer,
    OptimizerConfig,
    distrib_optimizer,
    get_megatron_optimizer,
)
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer, Range
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    all_to_all,
)
from megatron.core.transformer.cuda_graphs import TECudaGraphHelper
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.moe.fused_a2a import HAVE_DEEP_EP, HAVE_HYBRIDEP
from megatron.core.transformer.spec_utils import ModuleSpec, build_module
from megatron.core.transformer.transformer_block import (
    TransformerBlockSubmodules,
    get_num_layers_to_build,
)
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import (
    BaseTransformerLayer,
    TransformerLayer,
    TransformerLayerSubmodules,
    get_transformer_layer_offset,
)

__all__ = [
    "HAVE_DEEP_EP",
    "HAVE_HYBRIDEP",
    "HAVE_TE",
    "AttnMaskType",
    "BaseTransformerLayer",
    "ColumnParallelLinear",
    "DistributedDataParallel",
    "DistributedDataParallelConfig",
    "DistributedOptimizer",
    "GPTModel",
    "MegatronModule",
    "MegatronOptimizer",
    "ModuleSpec",
    "OptimizerConfig",
    "PackedSeqParams",
    "ProcessGroupCollection",
    "Range",
    "RotaryEmbedding",
    "RowParallelLinear",
    "ShardedObject",
    "ShardedTensor",
    "ShardedTensorFactory",
    "TECudaGraphHelper",
    "TEDotProductAttention",
    "TransformerBlockSubmodules",
    "TransformerConfig",
    "TransformerLayer",
    "TransformerLayerSubmodules",
    "VocabParallelEmbedding",
    "all_to_all",
    "build_module",
    "destroy_num_microbatches_calculator",
    "distrib_optimizer",
    "finalize_model_grads",
    "get_forward_backward_func",
    "get_gpt_decoder_block_spec",
    "get_fp8_recipe",
    "get_megatron_optimizer",
    "get_num_layers_to_build",
    "get_transformer_layer_offset",
    "init_num_microbatches_calculator",
    "is_float8tensor",
    "is_main_replica",
    "optimizers",
    "parallel_state",
    "post_all_gather_processing",
    "tensor_parallel",
]
