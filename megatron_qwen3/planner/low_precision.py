"""Memory of FP8 and FP4 copies of weights, beside or in place of the bf16 weights.

    bytes_beside(job, layers_of_the_rank)

Transformer Engine keeps each matrix of the layers in low precision from one micro-batch of a step
to the next, and a second copy transposed, or scaled along its other side. With fp8.gather there is
no other copy. activations.py counts the activations that low precision saves.
"""

from collections.abc import Sequence
from typing import Final

from megatron_qwen3.planner.job import Job

# Bytes of a weight's two copies, with their scales.
_COPY_BYTES: Final = {
    "delayed": 2.0,
    "tensorwise": 2.0,
    "blockwise": 2.0,
    "mxfp8": 2 * (1 + 1 / 32),
    "nvfp4": 2 * (1 / 2 + 1 / 16),
}


def bytes_beside(job: Job, layers: Sequence[int]) -> float:
    """Bytes that the copies of these layers' matrices take on a rank, less the bf16 that is gone.

    layers: those of the rank.
    """
    if not job.fp8.is_on:
        return 0.0
    kept = job.weight_bytes if job.fp8.gather else 0
    return (_COPY_BYTES[job.fp8.recipe] - kept) * _elements(job, layers)


def _elements(job: Job, layers: Sequence[int]) -> int:
    """Weights of the matrices that are multiplied in low precision; router and norms are not."""
    fp8, layout = job.fp8, job.layout
    ends = range(fp8.first_layers_bf16, job.model.num_layers - fp8.last_layers_bf16)
    return sum(
        matrix.local_elements(layout.tensor, layout.expert, layout.expert_tensor)
        for layer in layers
        if layer in ends
        for matrix in job.model.layer_matrices(layer)
        if matrix.cut
    )
