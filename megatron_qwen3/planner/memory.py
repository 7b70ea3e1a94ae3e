"""Device memory of a job, part by part, on the rank that needs most.

    memory = Memory.of(job)
    memory.total, memory.parts()

Weights, gradients and optimizer are exact (state.py). Activations are counted from the code
(activations.py) and multiplied by the micro-batches in flight (schedule.py). Memory outside torch's
allocator (CUDA's context, NCCL's buffers) and losses between the allocator's blocks are rules of
thumb, named here and in the README.
"""

from dataclasses import asdict, dataclass

from megatron_qwen3.planner import activations, low_precision, schedule
from megatron_qwen3.planner.job import Job
from megatron_qwen3.planner.state import State

_CUDA_CONTEXT_BYTES = 0.6e9  # kernels and libraries of one process
_COMMUNICATOR_BYTES = 0.15e9  # NCCL's channel buffers, per group of more than one rank
MATMUL_WORKSPACE_BYTES = 64 * 2**20  # torch's cuBLAS workspaces on Hopper and later
_USER_BUFFERS = 12  # products that Transformer Engine's initialize_ub makes buffers for
LOST_BETWEEN_BLOCKS = 0.03  # share of activations and workspace, with expandable segments


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank; `pipeline_rank` says which."""

    pipeline_rank: int
    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    workspace: float
    nccl: float
    fragmentation: float

    @classmethod
    def of(cls, job: Job) -> "Memory":
        """The memory of the pipeline rank that needs most."""
        memories = (cls.of_rank(job, rank) for rank in heavy_ranks(job))
        return max(memories, key=lambda memory: memory.total)

    @classmethod
    def of_rank(cls, job: Job, rank: int) -> "Memory":
        """The memory of one pipeline rank."""
        state = State.of(job, rank)
        is_last = rank == job.layout.pipeline - 1
        kept = in_flight_bytes(job, rank)
        logits = activations.logits_bytes(job) if is_last else 0.0
        workspace = workspace_bytes(job, rank)
        weights, gradients = float(state.weight_bytes), float(state.gradient_bytes)
        weights += low_precision.bytes_beside(job, _rank_layers(job, rank))
        if job.fully_sharded:
            weights, gradients = _sharded(job, state, rank)
        return cls(
            pipeline_rank=rank,
            weights=weights,
            gradients=gradients,
            optimizer=(1 - job.offload) * state.optimizer_bytes,
            activations=kept,
            logits=logits,
            workspace=workspace,
            nccl=_CUDA_CONTEXT_BYTES + _COMMUNICATOR_BYTES * _communicators(job),
            fragmentation=LOST_BETWEEN_BLOCKS * (kept + logits + workspace),
        )

    def parts(self) -> dict[str, float]:
        """Bytes by name."""
        parts = asdict(self)
        del parts["pipeline_rank"]
        return parts

    @property
    def total(self) -> float:
        """Bytes that the device must have."""
        return sum(self.parts().values())

    @property
    def allocated(self) -> float:
        """The value that torch.cuda.max_memory_allocated would report."""
        return self.total - self.nccl - self.fragmentation


def heavy_ranks(job: Job) -> list[int]:
    """The pipeline ranks that may need most: of ranks with the same layers the first, which holds
    the most micro-batches in flight, and the last, which has the logits."""
    layout, sparse = job.layout, job.model.is_sparse
    first: dict[tuple[tuple[int, int], ...], int] = {}
    for rank in range(layout.pipeline):
        chunks = (_chunk_layers(job, rank, chunk) for chunk in range(layout.virtual))
        first.setdefault(tuple((len(chunk), sum(map(sparse, chunk))) for chunk in chunks), rank)
    return sorted({*first.values(), layout.pipeline - 1})


def in_flight_bytes(job: Job, rank: int) -> float:
    """Activations of all micro-batches that the schedule holds at once on a pipeline rank."""
    layout = job.layout
    order = schedule.rank_order(rank, layout.pipeline, layout.virtual, _few(job))
    chunks = [_chunk_bytes(job, rank, i) for i in range(layout.virtual)]
    if {*job.graph_parts} == {"attn", "mlp"}:  # a layer's output is copied for the next layer
        chunks = [
            size + len(_chunk_layers(job, rank, i)) * _hidden_bytes(job)
            for i, size in enumerate(chunks)
        ]
    held = schedule.peak(order, chunks)
    if rank == layout.pipeline - 1:  # the last norm and its output, of one micro-batch
        positions = job.micro_batch_tokens / job.sequence_ranks
        held += 2 * positions * job.weight_bytes * job.model.hidden_size
        last_layer = activations.layer_bytes(job, job.model.num_layers - 1)
        held += job.model.predicted_layers * last_layer
    if job.overlap_exchange:
        held += _beside_bytes(job, rank)
    return held


def _beside_bytes(job: Job, rank: int) -> float:
    """Activations of a second micro-batch during the backward pass of the first one's layers: of
    one more layer, or, between pipeline stages, of a model chunk."""
    if job.layout.pipeline == 1:
        return activations.layer_bytes(job, job.model.num_layers - 1)
    return max(_chunk_bytes(job, rank, chunk) for chunk in range(job.layout.virtual))


def workspace_bytes(job: Job, rank: int) -> float:
    """Memory that exists only while one layer runs: its gradients, or its recomputed activations.

    Keys and values of all context ranks do not exist at the same time as the MLP's gradients.
    """
    layers = _rank_layers(job, rank)
    layer = max(layers, key=lambda index: activations.mlp_bytes(job, index))
    everything = activations.attention_bytes(job) + activations.mlp_bytes(job, layer)
    mlp = activations.mlp_bytes(job, layer)
    again = mlp if job.recompute & {"mlp", "moe"} else 0.0
    if "layer" in job.recompute:
        again = everything
    gathered = 0.0
    if job.sequence_ranks > 1:  # the whole sequence, gathered for the weights' gradient
        gathered = job.micro_batch_tokens * job.model.hidden_size * job.weight_bytes
    block = max(mlp, activations.exchange_bytes(job))
    # One layer's tensors on their way to or from the host, and another's in use.
    travelling = 2 * max(activations.offloaded_bytes(job, index) for index in layers)
    if job.offload_layers:  # Transformer Engine keeps the layers that are not sent
        travelling = 0.0
    buffers = user_buffer_bytes(job) + graph_bytes(job, layer)
    return again + block + gathered + travelling + buffers + MATMUL_WORKSPACE_BYTES


def graph_bytes(job: Job, layer: int) -> float:
    """Extra memory of replaying a layer's CUDA graph: the gradients that it gets, in fixed places;
    for each captured weight a copy of the stand-in for its gradient, which its buffer has already;
    for a sparse layer the working memory of attention's backward pass, which experts cannot
    share."""
    if not job.graph_parts:
        return 0.0
    model, width = job.model, job.weight_bytes
    a, k = (n * model.head_dim for n in (model.num_attention_heads, model.num_query_groups))
    h, tp = model.hidden_size, job.layout.tensor
    weights = {
        "attn": h * (2 * a + 2 * k) / tp,
        "mlp": h * model.ffn_hidden_size * (3 if model.gated else 2) / tp,
        "moe_router": h * model.num_experts,
    }
    given = 2 if "moe_router" in job.graph_parts else 1
    apart = 0.0
    if model.is_sparse(layer) and "attn" in job.graph_parts:
        apart = activations.attention_bytes(job)
    clones = width * sum(weights[part] for part in job.graph_parts)
    return given * _hidden_bytes(job) + clones + apart


def _hidden_bytes(job: Job) -> float:
    """Bytes of a micro-batch's hidden states."""
    positions = job.micro_batch_tokens / job.sequence_ranks
    return positions * job.weight_bytes * job.model.hidden_size


def user_buffer_bytes(job: Job) -> float:
    """Transformer Engine's buffers for communication beside products: one for each such product, of
    the hidden states of all tensor ranks."""
    if not job.user_buffers:
        return 0.0
    return _USER_BUFFERS * job.micro_batch_tokens * job.model.hidden_size * job.weight_bytes


def _chunk_layers(job: Job, rank: int, chunk: int) -> range:
    stage = chunk * job.layout.pipeline + rank
    first = sum(job.layout.stage_layers[:stage])
    return range(first, first + job.layout.stage_layers[stage])


def _chunk_bytes(job: Job, rank: int, chunk: int) -> float:
    return sum(activations.layer_bytes(job, layer) for layer in _chunk_layers(job, rank, chunk))


def _rank_layers(job: Job, rank: int) -> list[int]:
    return [i for chunk in range(job.layout.virtual) for i in _chunk_layers(job, rank, chunk)]


def _few(job: Job) -> int:
    """Micro-batches after which the schedule holds no more than before."""
    return min(job.layout.micro_batches, 3 * job.layout.pipeline)


def _sharded(job: Job, state: State, rank: int) -> tuple[float, float]:
    """Weights and gradients that data ranks share, and two layers that are gathered."""
    data = job.layout.data * job.layout.context
    dense = sum(buffer.elements for buffer in state.dense)
    sparse = sum(buffer.elements for buffer in state.sparse)
    own = dense / data + sparse / job.layout.expert_data
    gathered = 2 * state.parameters / max(len(_rank_layers(job, rank)), 1)
    weights = job.weight_bytes * (own + gathered)
    return weights, job.gradient_bytes * (own + gathered / 2)


def _communicators(job: Job) -> int:
    layout = job.layout
    groups = (layout.tensor, layout.pipeline, layout.data, layout.context, layout.world_size)
    sparse = (layout.expert, layout.expert_tensor, layout.expert_data)
    return sum(size > 1 for size in groups + (sparse if job.model.num_experts else ()))
