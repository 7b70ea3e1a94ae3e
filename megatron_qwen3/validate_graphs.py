"""Checks overlap.cuda_graphs: one line per fault, as `validate_overlap.py` does the others.

A graph replays one sequence of kernels on fixed memory. So the captured part may depend on tensors
alone, and rows have one shape: the first rules are about rows, the others about options that
megatron-core refuses or that nobody has shown to be captured rightly.
"""

from collections.abc import Iterator

from megatron_qwen3.settings import Config
from megatron_qwen3.settings_overlap import DENSE_GRAPHS, SPARSE_GRAPHS
from megatron_qwen3.toml import emit


def faults(config: Config) -> Iterator[str]:
    """Faults that can be seen without the world size."""
    if config.overlap.cuda_graphs:
        yield from _part_faults(config)
        yield from _row_faults(config)
        yield from _other_faults(config)


def _asked(config: Config) -> str:
    return f"overlap.cuda_graphs = {emit([*config.overlap.cuda_graphs])}"


def _part_faults(config: Config) -> Iterator[str]:
    parts, is_sparse = config.overlap.cuda_graphs, bool(config.model.num_experts)
    valid, kind = (SPARSE_GRAPHS, "sparse") if is_sparse else (DENSE_GRAPHS, "dense")
    if unknown := [part for part in parts if part not in valid]:
        yield (
            f'overlap.cuda_graphs: "{unknown[0]}" is no part of a {kind} layer that can be '
            f"captured; valid: {', '.join(valid)}"
        )
    if len({*parts}) < len(parts):
        yield f"{_asked(config)} names a part twice"


def _row_faults(config: Config) -> Iterator[str]:
    """Documents, context ranks and Dual Chunk Attention are given by values that are no tensors."""
    asked = f"{_asked(config)} reads whole rows alone"
    if config.run.mode != "pretrain":
        yield f'{asked}, and run.mode = "{config.run.mode}" has texts in them; leave it out'
    if config.data.reset_at_documents:
        yield (
            f"{asked}, and data.reset_at_documents = true has documents in them; set it to false, "
            "or leave overlap.cuda_graphs out"
        )
    if config.parallel.context > 1:
        yield (
            f"{asked}, and parallel.context = {config.parallel.context} cuts them; set it to 1, or "
            "leave overlap.cuda_graphs out"
        )
    if config.rope.has_dca:
        yield (
            f"{asked}, and rope.dca_chunk_size = {config.rope.dca_chunk_size} reads them by "
            "chunks; leave one of them out"
        )


def _other_faults(config: Config) -> Iterator[str]:
    asked, parts, overlap = _asked(config), config.overlap.cuda_graphs, config.overlap
    recompute = config.parallel.recompute
    again = {"full": parts, "selective": [part for part in parts if part != "attn"]}
    if named := again.get(recompute):
        yield (
            f'{asked}: "{named[0]}" is computed again with parallel.recompute = "{recompute}", '
            "and a graph's activations are not; leave one of them out"
        )
    if config.fp8.is_on:
        yield (
            f'{asked} and fp8.recipe = "{config.fp8.recipe}": when a graph casts weights anew is '
            "decided by kernels on which it was not tried; leave one of them out"
        )
    if config.data.loader == "dali":
        yield (
            f'{asked} and data.loader = "dali", whose threads ask the GPU for memory while graphs '
            'are captured; set data.loader = "thread"'
        )
    for name in ("tensor", "experts", "offload_parts", "offload_layers"):
        if getattr(overlap, name):
            yield (
                f"{asked} and overlap.{name}: streams and buffers of the one would be captured by "
                "the other; leave one of them out"
            )
