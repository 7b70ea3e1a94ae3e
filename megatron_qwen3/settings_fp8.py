"""The table [fp8]: products of matrices in 8 bits, or 4, by Transformer Engine.

Weights, gradients and the optimizer's state stay as train.precision = "bf16" has them; the layers'
products alone take their factors in fewer bits, each with a scale that a recipe chooses. Embedding,
output layer, norms, router and attention stay in bf16. No weight of a checkpoint depends on this
table: a run may change it, or leave it out, whenever it is started again. Nothing here imports
torch.
"""

from dataclasses import dataclass
from typing import Final

from megatron_qwen3.fields import setting

# The arithmetic of each recipe's products, as the planner names it.
ARITHMETIC: Final = {
    "delayed": "fp8",
    "tensorwise": "fp8",
    "blockwise": "fp8",
    "mxfp8": "mxfp8",
    "nvfp4": "nvfp4",
}
_RECIPES: Final = {"fp8": "tensorwise", "mxfp8": "mxfp8", "nvfp4": "nvfp4"}
# Both sizes of every matrix, on each rank, are multiples of these. Transformer Engine asks for 16;
# micro-scaled formats scale 32 numbers together, blocks are 128 wide: a rank's share of a matrix
# with a part of a block would be scaled otherwise than the whole.
UNITS: Final = {"delayed": 16, "tensorwise": 16, "blockwise": 128, "mxfp8": 32, "nvfp4": 32}
LEAST_ROWS: Final = 8  # of a micro-batch on one tensor rank, in every recipe


@dataclass(frozen=True)
class Fp8Config:
    """Products of the layers' matrices in FP8 or FP4, where model.kind is "te"."""

    recipe: str = setting(
        "none",
        "scales of the numbers: of whole tensors by their past (delayed) or their present "
        "(tensorwise), blocks of 128 (blockwise), or 32 in a row (mxfp8), 16 in FP4 (nvfp4)",
        choices=("none", "delayed", "tensorwise", "blockwise", "mxfp8", "nvfp4"),
    )
    format: str = setting(
        "auto",
        "e4m3, or hybrid: e5m2 for gradients; auto is hybrid where whole tensors have one scale",
        choices=("auto", "e4m3", "hybrid"),
    )
    first_layers_bf16: int = setting(0, "layers at the model's start left in bf16", at_least=0)
    last_layers_bf16: int = setting(0, "layers at the model's end left in bf16", at_least=0)
    gather: bool = setting(
        False, "keep weights in FP8 alone beside the float32 master, and gather them so"
    )
    expert_rows: str = setting(
        "pad",
        "how rows of an expert become a multiple of 16 or more: rows of zeros (pad), or further "
        "tokens with weight 0, which saves a copy (route)",
        choices=("pad", "route"),
    )
    history: int = setting(
        1024,
        "delayed: passes whose largest values are remembered; of a layer that is computed again "
        "each counts",
        at_least=1,
    )
    history_choice: str = setting(
        "max", "delayed: which of them sets the scale", choices=("max", "most_recent")
    )
    margin: int = setting(0, "delayed: powers of two left above it", at_least=0, below=64)

    @property
    def is_on(self) -> bool:
        """Whether any product is in fewer bits than bf16."""
        return self.recipe != "none"

    @property
    def bits_format(self) -> str:
        """e4m3, hybrid or, of nvfp4, e2m1."""
        if self.recipe == "nvfp4":
            return "e2m1"
        if self.format != "auto":
            return self.format
        return "hybrid" if self.recipe in ("delayed", "tensorwise") else "e4m3"

    def described(self) -> str:
        """The recipe, its format and its limits, for a log."""
        if not self.is_on:
            return "none"
        ends = self.first_layers_bf16, self.last_layers_bf16
        layers = f", first {ends[0]} and last {ends[1]} layers in bf16" if any(ends) else ""
        return f"{self.recipe} ({self.bits_format}){', weights too' if self.gather else ''}{layers}"


def of_arithmetic(precision: str) -> Fp8Config:
    """The settings that the planner's fp8, mxfp8 or nvfp4 stands for; of bf16 and fp32 none."""
    return Fp8Config(recipe=_RECIPES.get(precision, "none"))
