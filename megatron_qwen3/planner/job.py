"""One training job: everything that memory and step time depend on, but the hardware.

    job = Job.of(config, world_size=256)

A job of ours is made from a configuration; the search and published runs make theirs field by
field, and may have features that the trainer lacks.
"""

from dataclasses import dataclass

from megatron_qwen3.parallel.layout import Layout
from megatron_qwen3.planner import architecture
from megatron_qwen3.planner.architecture import Architecture
from megatron_qwen3.settings import Config
from megatron_qwen3.settings_fp8 import ARITHMETIC, Fp8Config

_BF16 = Fp8Config()
# Values of `parallel.recompute`: the parts of a layer that backward computes again.
RECOMPUTED = {
    "none": frozenset[str](),
    "selective": frozenset({"mlp"}),
    "full": frozenset({"layer"}),
}


@dataclass(frozen=True)
class Job:
    """A model in a layout, with its batch.

    precision             of the matrix products: bf16, fp32, fp8, mxfp8, nvfp4
    fp8                   settings of our trainer for a precision below bf16
    kernels               of layers: "torch", ours, or "transformer_engine"
    tiled_logits          the loss computes logits tile by tile; ours only
    gradient_bytes        of one gradient: 4, or 2 where gradients are reduced in bf16
    moment_bytes          of Adam's two moments of a weight: 8, or less where one is bf16
    offload               share of the optimizer in the host's memory, which its CPU updates
    offload_overlap       the CPU updates weights while others are copied
    offload_parts         parts of layers whose activations wait on the host, as overlap has them
    offload_layers        first layers whose activations all wait there
    user_buffers          tensor ranks send from buffers of Transformer Engine's
    recompute             parts of a layer: layer, mlp, moe, layernorm, moe_act, core_attn,
                          mla_up_proj
    distributed_optimizer data-parallel ranks share the optimizer's state (ZeRO-1)
    fully_sharded         they share weights and gradients, too (FSDP, ZeRO-3)
    overlap_data          gradients are reduced, and weights gathered, while the model computes
    own_exchange          context ranks gather all keys before they attend, whatever the kernels;
                          without, those of Transformer Engine hide it behind attention
    dispatcher            of tokens to experts: alltoall, or fused kernels: deepep, hybridep
    overlap_exchange      the exchange of one micro-batch runs beside another's computation
    graphs                CUDA graphs: "none", "partial" (attention, router), "full" (the step)
    graph_parts           parts of layers that our trainer captures, as in overlap.cuda_graphs
    force_balanced        the router is forced to an even load, as in benchmarks
    capacity              rows to which an expert's are cut and filled up, in units of an even load;
                          0: none is dropped (Switch Transformer, arXiv 2101.03961)
    proxy                 who sends for fused kernels over EFA: "nvshmem", or UCCL's, "uccl"
    fused_experts         products, activation and casts of experts run as few fused kernels
    fused_permutation     rows are sorted by one kernel; before 2026 NCCL's exchange took many
    fp8_attention         attention's products in FP8
    dropout               masks are saved; Qwen3 has none
    fused_attention       no tensor of size S² is saved
    early_software        the first releases for a chip, whose kernels are not yet tuned
    """

    model: Architecture
    layout: Layout
    sequence_length: int
    micro_batch: int
    precision: str = "bf16"
    fp8: Fp8Config = _BF16
    kernels: str = "torch"
    tiled_logits: bool = True
    gradient_bytes: int = 4
    moment_bytes: int = 8
    offload: float = 0.0
    offload_overlap: bool = False
    offload_parts: tuple[str, ...] = ()
    offload_layers: int = 0
    user_buffers: bool = False
    recompute: frozenset[str] = frozenset()
    sequence_parallel: bool = True
    distributed_optimizer: bool = True
    fully_sharded: bool = False
    overlap_data: bool = True
    own_exchange: bool = False
    dispatcher: str = "alltoall"
    overlap_exchange: bool = False
    graphs: str = "none"
    graph_parts: tuple[str, ...] = ()
    force_balanced: bool = False
    capacity: float = 0.0
    proxy: str = "nvshmem"
    fused_experts: bool = False
    fused_permutation: bool = True
    fp8_attention: bool = False
    early_software: bool = False
    dropout: bool = False
    fused_attention: bool = True

    @classmethod
    def of(cls, config: Config, world_size: int) -> "Job":
        """The job of a validated configuration; ConfigError if `world_size` does not fit it."""
        parallel, optim, overlap = config.parallel, config.optim, config.overlap
        widths = {"fp32": 4, "bf16": 2}
        # "auto" is decided on the training machine; torch's layers, assumed here, save more.
        has_engine = config.fp8.is_on or config.model.kind == "te"
        return cls(
            model=architecture.of(config.model),
            layout=Layout.of(config, world_size),
            sequence_length=config.data.sequence_length,
            micro_batch=config.train.micro_batch,
            precision=ARITHMETIC.get(config.fp8.recipe, config.train.precision),
            fp8=config.fp8,
            kernels="transformer_engine" if has_engine else "torch",
            recompute=RECOMPUTED[parallel.recompute],
            sequence_parallel=parallel.sequence and parallel.tensor > 1,
            distributed_optimizer=optim.distributed,
            overlap_data=parallel.overlap,
            gradient_bytes=widths[optim.gradients],
            moment_bytes=widths[optim.first_moment] + widths[optim.second_moment],
            offload=optim.offload,
            offload_overlap=optim.offload_overlap,
            dispatcher=parallel.dispatch,
            overlap_exchange=overlap.experts,
            graphs="partial" if overlap.cuda_graphs else "none",
            graph_parts=overlap.cuda_graphs,
            offload_parts=overlap.offload_parts,
            offload_layers=overlap.offload_layers,
            user_buffers=overlap.tensor,
            own_exchange=parallel.context_exchange == "own",
        )

    @property
    def sizes(self) -> dict[str, int]:
        """Numbers of ranks and of stages, by the short names of plans."""
        layout = self.layout
        return {
            "tp": layout.tensor,
            "pp": layout.pipeline,
            "vpp": layout.virtual,
            "cp": layout.context,
            "ep": layout.expert,
            "etp": layout.expert_tensor,
        }

    @property
    def described(self) -> str:
        """tp2 pp8 ep8 mb1"""
        sizes = self.sizes.items()
        parts = [f"{name}{size}" for name, size in sizes if size > 1 or name in ("tp", "pp")]
        return " ".join([*parts, f"mb{self.micro_batch}"])

    @property
    def micro_batch_tokens(self) -> int:
        """Positions of one micro-batch on one rank, before tensor ranks share them."""
        return self.micro_batch * self.sequence_length // self.layout.context

    @property
    def gathers_keys(self) -> bool:
        """Whether attention waits for the keys of all context ranks, and holds them."""
        return self.kernels == "torch" or self.own_exchange

    @property
    def sequence_ranks(self) -> int:
        """Tensor ranks that share the positions outside the matrix products."""
        return self.layout.tensor if self.sequence_parallel else 1

    @property
    def weight_bytes(self) -> int:
        """Bytes of one weight that the forward pass reads from memory."""
        return 4 if self.precision == "fp32" else 2
