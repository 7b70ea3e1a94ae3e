"""The table [overlap]: communication beside computation on GPUs, CUDA graphs, activations on the
host.

Each is an option of megatron-core's, which receives it unchanged. `parallel/README.md` describes
its effect, when it pays and its conflicts, which `validate_overlap.py` refuses before a rank
starts. The optimizer's are in [optim]; that gradients are reduced and weights gathered meanwhile is
parallel.overlap. Nothing here imports torch.
"""

from dataclasses import dataclass

from megatron_qwen3.fields import setting

# The parts of a layer whose activations can wait on the host for backward.
DENSE_PARTS = ("qkv_linear", "core_attn", "attn_proj")
SPARSE_PARTS = (*DENSE_PARTS, "mlp_norm", "expert_fc1", "moe_act")
# The parts of a layer that can be replayed as a CUDA graph.
DENSE_GRAPHS, SPARSE_GRAPHS = ("attn", "mlp"), ("attn", "moe_router")


@dataclass(frozen=True)
class OverlapConfig:
    """Communication beside computation, graphs, and activations on the host, of layers of kind
    "te"."""

    tensor: bool = setting(
        False, "gathers and scatters of tensor ranks run beside the products that need them"
    )
    experts: bool = setting(
        False,
        "one micro-batch's tokens travel to their experts while another one is computed: its "
        "forward pass beside the other's backward pass, layer by layer",
    )
    delay_weight_gradients: bool = setting(
        False, "with experts: weights' gradients are computed while the next layer's tokens travel"
    )
    nccl_buffers: bool = setting(
        False,
        "gradients and weights lie in memory that NCCL knows, so that reducing them takes fewer of "
        "the GPU's multiprocessors from the model",
    )
    cuda_graphs: tuple[str, ...] = setting(
        (),
        "parts of layers whose kernels are captured once, and replayed as a CUDA graph in training "
        "on whole rows: attn; of dense layers mlp, of sparse ones moe_router",
        metavar="PART",
    )
    offload_parts: tuple[str, ...] = setting(
        (),
        "parts of layers whose activations wait on the host for backward: "
        f"{', '.join(SPARSE_PARTS)}",
        metavar="PART",
    )
    offload_layers: int = setting(
        0, "first layers all of whose activations wait on the host for backward", at_least=0
    )
