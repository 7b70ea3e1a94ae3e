"""One training job: everything that memory and step time depend on, but the hardware.

    job = Job.of(config, world_size=256)

A job of ours comes from a configuration; the search and published runs make theirs field by field,
and may ask for what the trainer does not have.
"""

from dataclasses import dataclass

from megatron_qwen3.parallel.layout import Layout
from megatron_qwen3.planner import architecture
from megatron_qwen3.planner.architecture import Architecture
from megatron_qwen3.settings import Config

# What `parallel.recompute` stands for: parts of a layer that backward computes again.
RECOMPUTED = {
    "none": frozenset[str](),
    "selective": frozenset({"mlp"}),
    "full": frozenset({"layer"}),
}


@dataclass(frozen=True)
class Job:
    """A model in a layout, with its batch.

    precision             of the matrix products: bf16, fp32, fp8, mxfp8, nvfp4
    recompute             parts of a layer: layer, mlp, moe, layernorm, moe_act, core_attn
    distributed_optimizer data-parallel ranks share the optimizer's state (ZeRO-1)
    fully_sharded         they share weights and gradients, too (FSDP, ZeRO-3)
    overlap_data          gradients are reduced, and weights gathered, while the model computes
    """

    model: Architecture
    layout: Layout
    sequence_length: int
    micro_batch: int
    precision: str = "bf16"
    recompute: frozenset[str] = frozenset()
    sequence_parallel: bool = True
    distributed_optimizer: bool = True
    fully_sharded: bool = False
    overlap_data: bool = True

    @classmethod
    def of(cls, config: Config, world_size: int) -> "Job":
        """The job of a validated configuration; ConfigError if `world_size` does not fit it."""
        parallel = config.parallel
        return cls(
            model=architecture.of(config.model),
            layout=Layout.of(config, world_size),
            sequence_length=config.data.sequence_length,
            micro_batch=config.train.micro_batch,
            precision=config.train.precision,
            recompute=RECOMPUTED[parallel.recompute],
            sequence_parallel=parallel.sequence and parallel.tensor > 1,
            distributed_optimizer=config.optim.distributed,
            overlap_data=parallel.overlap,
        )

    @property
    def weight_bytes(self) -> int:
        """Bytes of one weight that the forward pass reads from memory."""
        return 4 if self.precision == "fp32" else 2
