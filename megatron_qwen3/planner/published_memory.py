"""Megatron-LM's recorded memory peaks as jobs that the planner can weigh.

    runs = read("published_memory.csv")    # each a PublishedRun, or why it is left out

A row holds the arguments of a functional test and torch's max_memory_allocated. Missing values have
Megatron-LM's defaults: GPT-2's vocabulary padded to 128 · tp, an MLP of 4 · hidden, tied
embeddings, dropout, an expert as wide as the MLP, one DGX node of eight.
"""

import re
from dataclasses import replace
from pathlib import Path

from megatron_qwen3.parallel.layout import Layout, even_stages
from megatron_qwen3.planner.architecture import Architecture
from megatron_qwen3.planner.job import Job
from megatron_qwen3.planner.published import Incomparable, PublishedRun, table
from megatron_qwen3.planner.recipes import Row, count, number, uncountable
from megatron_qwen3.settings import ConfigError

_GPT2_VOCABULARY = 50257
_NODE = 8
_LEFT_OUT = {
    "muon": "trained with Muon, whose state the planner does not describe",
    "offloading": "offloads activations to the host",
    "grpo": "reinforcement learning: the memory is the sampling engine's",
    "release": "a run over several nodes whose number is not published",
    "flextron": "layers of several widths",
    "multi_dist_optimizer_instances": "the optimizer is sharded over a part of the ranks only",
    "fsdp2": "sharded by torch's FSDP2",
}


_NEEDED = ("num-layers", "hidden-size", "num-attention-heads")
_SIZES = (
    *_NEEDED,
    *("n_gpus", "seq-length", "micro-batch-size", "global-batch-size", "vocab-size"),
    *("ffn-hidden-size", "kv-channels", "num-query-groups", "num-experts", "moe-router-topk"),
    *("moe-ffn-hidden-size", "moe-shared-expert-intermediate-size", "mtp-num-layers"),
    *("tensor-model-parallel-size", "pipeline-model-parallel-size", "context-parallel-size"),
    *("expert-model-parallel-size", "expert-tensor-parallel-size"),
    *("num-layers-per-virtual-pipeline-stage", "num-virtual-stages-per-pipeline-rank"),
)


def is_one(path: str | Path) -> bool:
    """Whether a CSV has recorded memory peaks instead of step times."""
    return "mem_max_allocated_gb" in table(path)[0]


def read(path: str | Path) -> list[PublishedRun]:
    """Every row; is_one(path)."""
    columns, rows = table(path)
    missing = [name for name in ("test_case", "family", "gpu", *_NEEDED) if name not in columns]
    if missing:
        raise ConfigError(f"{path}: no column {', '.join(missing)}")
    return [_run(row) for row in rows]


def _run(row: Row) -> PublishedRun:
    peak = number(row, "mem_max_allocated_gb") or 0.0
    given = PublishedRun(
        row_id=f"{row['test_case']} {row['gpu']}",
        model=row["family"],
        gpu=row["gpu"],
        precision="fp8" if row.get("fp8-format") else "bf16",
        is_tuned=True,
        seconds=None,
        peak_bytes=peak * 1e9 if peak > 0 else None,
        on_last_rank=True,  # the rank that writes Megatron-LM's logs
    )
    try:
        return replace(given, job=_job(row))
    except Incomparable as reason:
        return replace(given, reason=str(reason))


def _is_set(row: Row, name: str) -> bool:
    return row.get(name) == "True"


def _job(row: Row) -> Job:
    if row["family"] not in ("gpt", "moe", "mixtral"):
        raise Incomparable(f"{row['family']}: not a decoder-only transformer")
    for part, reason in _LEFT_OUT.items():
        if part in row["test_case"]:
            raise Incomparable(reason)
    _check_cells(row)
    model = _architecture(row)
    drops = any((row.get(f"{kind}-dropout") or "0.1") != "0.0" for kind in ("attention", "hidden"))
    backend = row.get("attention-backend") or ""
    if not backend and "mcore" in row["test_case"] and "_te_" not in row["test_case"]:
        backend = "local"  # tests of layers without Transformer Engine
    layout = _layout(row, model)
    return Job(
        model=model,
        layout=layout,
        sequence_length=count(row, "seq-length", 1024),
        micro_batch=count(row, "micro-batch-size", 1),
        precision="fp8" if row.get("fp8-format") else "bf16",
        kernels="transformer_engine",
        tiled_logits=False,
        recompute=_recompute(row),
        sequence_parallel=_is_set(row, "sequence-parallel") and layout.tensor > 1,
        distributed_optimizer=_is_set(row, "use-distributed-optimizer"),
        fully_sharded=row.get("data-parallel-sharding-strategy") == "optim_grads_params",
        overlap_data=_is_set(row, "overlap-grad-reduce"),
        dropout=drops,
        fused_attention=backend not in ("unfused", "local"),
        force_balanced=True,
    )


def _check_cells(row: Row) -> None:
    if not number(row, "mem_max_allocated_gb"):
        raise Incomparable("no memory peak is published")
    if fault := uncountable(row, _SIZES):
        raise Incomparable(fault)
    for name in _NEEDED:
        if not count(row, name, 0):
            raise Incomparable(f"{name} is not published")


def _recompute(row: Row) -> frozenset[str]:
    if row.get("recompute-granularity") == "full":
        return frozenset({"layer"})
    parts = re.findall(r"\w+", row.get("recompute-modules") or "")
    if row.get("recompute-granularity") == "selective" and not parts:
        parts = ["core_attn"]
    return frozenset(parts)


def _architecture(row: Row) -> Architecture:
    hidden, heads = count(row, "hidden-size"), count(row, "num-attention-heads")
    latent = _is_set(row, "multi-latent-attention")
    tp = count(row, "tensor-model-parallel-size", 1)
    experts = count(row, "num-experts", 0)
    ffn = count(row, "ffn-hidden-size", 4 * hidden)
    unit = 128 * tp
    vocabulary = -(-count(row, "vocab-size", _GPT2_VOCABULARY) // unit) * unit
    grouped = _is_set(row, "group-query-attention")
    return Architecture(
        name=row["family"],
        num_layers=count(row, "num-layers"),
        hidden_size=hidden,
        vocab_size=vocabulary,
        num_attention_heads=heads,
        num_query_groups=count(row, "num-query-groups", heads) if grouped else heads,
        head_dim=128 if latent else count(row, "kv-channels", hidden // heads),
        ffn_hidden_size=ffn,
        num_experts=experts,
        experts_per_token=count(row, "moe-router-topk", 2) if experts else 0,
        expert_ffn_hidden_size=count(row, "moe-ffn-hidden-size", ffn) if experts else 0,
        shared_ffn_hidden_size=count(row, "moe-shared-expert-intermediate-size", 0),
        tie_embeddings=not _is_set(row, "untie-embeddings-and-output-weights"),
        gated=_is_set(row, "swiglu"),
        dense_layers=_dense_layers(row.get("moe-layer-freq") or ""),
        latent_query_rank=512 if latent else 0,
        latent_key_value_rank=512 if latent else 0,
        latent_rope_dim=64 if latent else 0,
        predicted_layers=count(row, "mtp-num-layers", 0),
    )


def _dense_layers(frequency: str) -> int:
    """([0]*3+[1]*12) -> 3."""
    match = re.match(r"\(\[0\]\*(\d+)", frequency)
    return int(match.group(1)) if match else 0


def _layout(row: Row, model: Architecture) -> Layout:
    world = count(row, "n_gpus", _NODE)
    tp = count(row, "tensor-model-parallel-size", 1)
    pp = count(row, "pipeline-model-parallel-size", 1)
    cp = count(row, "context-parallel-size", 1)
    ep = count(row, "expert-model-parallel-size", 1) if model.num_experts else 1
    etp = count(row, "expert-tensor-parallel-size", tp) if model.num_experts else 1
    per_chunk = count(row, "num-layers-per-virtual-pipeline-stage", 0)
    virtual = model.num_layers // pp // per_chunk if per_chunk else 1
    virtual = count(row, "num-virtual-stages-per-pipeline-rank", virtual)
    data, rest = divmod(world, tp * pp * cp)
    if rest or not data or world % (ep * etp * pp):
        raise Incomparable(
            f"tp {tp} · pp {pp} · cp {cp}, ep {ep} · etp {etp} do not divide {world}"
        )
    if not 1 <= pp * virtual <= model.num_layers:
        raise Incomparable(
            f"{pp} · {virtual} pipeline stages do not suit {model.num_layers} layers"
        )
    micro_batches = count(row, "global-batch-size", 32) // (
        data * count(row, "micro-batch-size", 1)
    )
    return Layout(
        world_size=world,
        tensor=tp,
        pipeline=pp,
        virtual=virtual,
        expert=ep,
        expert_tensor=etp,
        context=cp,
        data=data,
        expert_data=world // (ep * etp * pp),
        micro_batches=max(micro_batches, 1),
        stage_layers=even_stages(model.num_layers, pp * virtual),
    )
