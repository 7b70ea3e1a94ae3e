"""The state of a rank between two steps, to the byte: weights, gradients, optimizer.

    state = State.of(job, pipeline_rank=0)
    state.weight_bytes, state.gradient_bytes, state.optimizer_bytes

Equal to that of training/engine.py: flat bf16 (float32) weights and float32 gradients with
megatron-core's padding, and per element that the rank owns a float32 master weight (none where
weights are float32) and Adam's two moments, in the types of the settings. AdamW's step counts in
torch, 4 bytes per weight, are not counted, nor are the router's statistics.
"""

import math
from dataclasses import dataclass
from functools import cached_property

from megatron_qwen3.planner.architecture import Matrix
from megatron_qwen3.planner.buffers import Buffer, BufferedWeight
from megatron_qwen3.planner.job import Job

_MASTER_BYTES = 4  # float32 copy of a bf16 weight


@dataclass(frozen=True)
class State:
    """The state of one rank; `dense` is shared by the data ranks, `sparse` (the experts) by the
    expert-data ranks. One buffer per model chunk."""

    job: Job
    parameters: int
    dense: tuple[Buffer, ...]
    sparse: tuple[Buffer, ...]

    @classmethod
    def of(cls, job: Job, pipeline_rank: int) -> "State":
        """The state of the ranks of a pipeline stage; all tensor and expert ranks hold equally
        much."""
        layout = job.layout
        chunks = [chunk_weights(job, pipeline_rank, i) for i in range(layout.virtual)]
        dense_chunks = [[w for w, is_expert in chunk if not is_expert] for chunk in chunks]
        sparse_chunks = [[w for w, is_expert in chunk if is_expert] for chunk in chunks]
        data = layout.data * layout.context
        return cls(
            job,
            sum(weight.elements for chunk in chunks for weight, _ in chunk),
            _buffers(job, dense_chunks, data, pipeline_rank),
            _buffers(job, sparse_chunks, layout.expert_data, pipeline_rank),
        )

    @cached_property
    def buffer_elements(self) -> int:
        """Elements of all flat buffers; without the distributed optimizer these have no padding."""
        if not self.job.distributed_optimizer:
            return self.parameters
        return sum(buffer.elements for buffer in (*self.dense, *self.sparse))

    @property
    def weight_bytes(self) -> int:
        """Bytes of the rank's weights."""
        return self.buffer_elements * self.job.weight_bytes

    @property
    def gradient_bytes(self) -> int:
        """Bytes of the rank's gradients."""
        return self.buffer_elements * self.job.gradient_bytes

    @property
    def optimizer_bytes(self) -> int:
        """Bytes of master weights and moments on the fullest data rank, device and host together;
        ranks differ by padding."""
        if not self.job.distributed_optimizer:
            return self.parameters * self._bytes_per_element
        most = sum(buffer.most_owned for buffer in (*self.dense, *self.sparse))
        return most * self._bytes_per_element

    def optimizer_bytes_of(self, data_rank: int, expert_data_rank: int) -> int:
        """Bytes of master weights and moments of one rank, by its data ranks."""
        if not self.job.distributed_optimizer:
            return self.optimizer_bytes
        owned = sum(buffer.owned(data_rank) for buffer in self.dense)
        owned += sum(buffer.owned(expert_data_rank) for buffer in self.sparse)
        return owned * self._bytes_per_element

    @property
    def _bytes_per_element(self) -> int:
        return self.job.moment_bytes + (_MASTER_BYTES if self.job.weight_bytes == 2 else 0)


def chunk_weights(job: Job, pipeline_rank: int, chunk: int) -> list[tuple[BufferedWeight, bool]]:
    """The weights of model chunk `chunk` of a pipeline rank, in the model's order, each with
    whether it belongs to experts."""
    layout, model = job.layout, job.model
    stage = chunk * layout.pipeline + pipeline_rank
    first = sum(layout.stage_layers[:stage])
    weights = []
    if stage == 0:
        weights.append((_embedding(job, "embedding"), False))
    for layer in range(first, first + layout.stage_layers[stage]):
        weights += [_local(job, matrix) for matrix in model.layer_matrices(layer)]
    if stage == len(layout.stage_layers) - 1:
        for _ in range(model.predicted_layers):
            matrices = model.layer_matrices(model.num_layers - 1)
            weights += [_local(job, matrix) for matrix in (*matrices, model.prediction_matrix)]
        weights.append((BufferedWeight("final_layernorm", model.hidden_size), False))
        if model.scalar_head:
            weights.append((BufferedWeight("output_layer", model.hidden_size), False))
        elif not model.tie_embeddings or stage > 0:
            weights.append((_embedding(job, "output_layer"), False))
    return weights


def _local(job: Job, matrix: Matrix) -> tuple[BufferedWeight, bool]:
    layout = job.layout
    elements = matrix.local_elements(layout.tensor, layout.expert, layout.expert_tensor)
    return BufferedWeight(matrix.name, elements), matrix.experts > 0


def _embedding(job: Job, name: str) -> BufferedWeight:
    """An embedding; the first and last stage of a tied model hold one each, in its own bucket."""
    elements = job.model.vocab_size // job.layout.tensor * job.model.hidden_size
    return BufferedWeight(name, elements, job.model.tie_embeddings and job.layout.pipeline > 1)


def _buffers(
    job: Job, chunks: list[list[BufferedWeight]], ranks: int, pipeline_rank: int
) -> tuple[Buffer, ...]:
    """One buffer per chunk. Only the first chunk of the first stage is cut into buckets: elsewhere,
    in megatron-core's words, the reduction is not on the critical path."""
    layout = job.layout
    bucket = max(40_000_000, 1_000_000 * layout.data * layout.context)
    buffers = []
    for index, weights in enumerate(chunks):
        is_bucketed = job.overlap_data and pipeline_rank == 0 and index == 0
        buffers.append(Buffer.of(weights, ranks, bucket if is_bucketed else math.inf))
    return tuple(buffers)
