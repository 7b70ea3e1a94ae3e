"""Published training runs as jobs that the planner can price.

    rows = read("published_perf.csv")      # each a PublishedRun, or why it is left out

Values that a row lacks come from the public recipe that it ran: Megatron-Bridge's
scripts/performance/configs name the dispatcher of experts, CUDA graphs and the precision of
gradients by model, GPU and release.
"""

import csv
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from megatron_qwen3.parallel.layout import Layout, even_stages
from megatron_qwen3.planner import architecture, hardware, recipes
from megatron_qwen3.planner.architecture import Architecture
from megatron_qwen3.planner.hardware import Cluster
from megatron_qwen3.planner.job import Job
from megatron_qwen3.planner.recipes import Row, count, note, number, uncountable
from megatron_qwen3.presets import PRESETS
from megatron_qwen3.settings import ConfigError, ModelConfig
from megatron_qwen3.toml import read_toml


class Incomparable(ValueError):
    """Why a row cannot be compared."""


@dataclass(frozen=True)
class PublishedRun:
    """One row: its job and measurements, or the `reason` for leaving it out.

    `is_tuned`: published as a performance figure, not as a functional check or a deliberately
    slow comparison. `source`: who published it. `on_last_rank`: the peak is that of the last
    pipeline rank, not the largest.
    """

    row_id: str
    model: str
    gpu: str
    precision: str
    is_tuned: bool
    seconds: float | None
    peak_bytes: float | None
    job: Job | None = None
    cluster: Cluster | None = None
    reason: str = ""
    on_last_rank: bool = False
    source: str = ""


def table(path: str | Path) -> tuple[list[str], list[Row]]:
    """Columns and rows of a CSV; a row's cells have no outer blanks, missing ones are empty."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = columns
            return columns, [_tidy(row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or "not a CSV in UTF-8"
        raise ConfigError(f"{path}: cannot be read ({reason})") from None


def _tidy(row: Mapping[str, str | None]) -> Row:
    """The named cells of a row; cells beyond the last column have no name, and are dropped."""
    return {name: (cell or "").strip() for name, cell in row.items() if name is not None}


def read(path: str | Path) -> list[PublishedRun]:
    """Every row of a CSV with the columns of published_perf.csv."""
    columns, rows = table(path)
    needed = ("model", "gpu", "n_gpus", "precision", "gbs", "mbs", "seq_len", "step_time_s")
    missing = [name for name in needed if name not in columns]
    if missing:
        raise ConfigError(f"{path}: no column {', '.join(missing)}; columns are listed in --help")
    return [run_of(row) for row in rows]


def run_of(row: Row) -> PublishedRun:
    """The run of one row."""
    row = {**row, "gpu": _gpu(row["gpu"])}
    given = PublishedRun(
        row_id=row.get("row_id") or "",
        model=row["model"],
        gpu=row["gpu"],
        precision=recipes.precision_of(row) or row["precision"],
        is_tuned=_is_tuned(row),
        seconds=_above_zero(row, "step_time_s"),
        peak_bytes=_peak_bytes(row),
        source=row.get("source_repo") or "",
    )
    try:
        _check(row)
        return replace(given, job=_job(row), cluster=_cluster(row))
    except (Incomparable, ConfigError) as error:
        return replace(given, reason=str(error))


def _is_tuned(row: Row) -> bool:
    slow = ("not a tuned", "dispatcher a/b", "functional", "user report", "smoke", "not mcore")
    return not any(word in note(row) for word in slow)


def _gpu(name: str) -> str:
    """H100 of "NVIDIA H100 80GB SXM5"; the name itself for unknown chips, or for a
    slower card with it."""
    words = re.findall(r"\w+", name.lower())
    chips = [chip for chip in hardware.names() if chip in words]
    if len(chips) != 1 or {"pcie", "nvl"} & {*words}:
        return name
    return chips[0].upper()


def _above_zero(row: Row, name: str) -> float | None:
    value = number(row, name)
    return value if value is not None and value > 0 else None


def _peak_bytes(row: Row) -> float | None:
    """Megatron-Bridge reports GB, others GiB."""
    peak = _above_zero(row, "peak_mem_gb")
    if peak is None:
        return None
    return peak * (1e9 if "Megatron-Bridge" in (row.get("source_repo") or "") else 2**30)


_OTHER_LAYERS = {
    "nemotron-h": "Mamba layers",
    "nemotron_h": "Mamba layers",
    "nemotron_3": "Mamba layers",
    "nemotron-3": "Mamba layers",
    "nemotron3": "Mamba layers",
    "nemotron v3": "Mamba layers",
    "nemotron nano": "Mamba layers",
    "nemotron_nano": "Mamba layers",
    "glm5": "DeepSeek's sparse attention",
    "glm-5": "DeepSeek's sparse attention",
    "v3.2": "DeepSeek's sparse attention",
    "v3_2": "DeepSeek's sparse attention",
    "next": "gated delta-rule layers",
    "qwen3_5": "gated delta-rule layers",
    "qwen3.5": "gated delta-rule layers",
    "qwen3_6": "gated delta-rule layers",
    "qwen3.6": "gated delta-rule layers",
    "qwen3_8_27b": "gated delta-rule layers",
    "vl": "a vision encoder",
    "llava": "a vision encoder",
    "omni": "encoders of images and sound",
}
_NEEDED = ("n_gpus", "gbs", "mbs", "seq_len")
_SIZES = (*_NEEDED, "tp", "pp", "vpp", "cp", "ep", "etp", "fsdp", "layers_override")


def _check(row: Row) -> None:
    """Incomparable for runs that the model of time does not cover."""
    task, text, model = (row.get("task") or "pretrain").lower(), note(row), row["model"].lower()
    for part, what in _OTHER_LAYERS.items():
        if part in model:
            raise Incomparable(f"{row['model']} has {what}, which the planner does not describe")
    if "lora" in task or "peft" in task:
        raise Incomparable("trains adapters, not the model")
    if "sft" in task:
        raise Incomparable("fine-tuning on packed texts whose lengths are not published")
    if "lacks deepep" in text:
        raise Incomparable("known bad: the container lacked DeepEP")
    if any(word in text for word in ("fsdp2", "not mcore", "torchtitan")):
        raise Incomparable("trained by PyTorch's FSDP2, not by megatron-core")
    if "offload" in text:
        raise Incomparable("offloads to the host")
    if not (_above_zero(row, "step_time_s") or _peak_bytes(row)):
        raise Incomparable("no step time is published")
    _check_cells(row)


def _check_cells(row: Row) -> None:
    if fault := uncountable(row, _SIZES):
        raise Incomparable(fault)
    for name in _NEEDED:
        if not count(row, name, 0):
            raise Incomparable(f"{name} is not published")
    if not recipes.precision_of(row):
        said = row["precision"]
        raise Incomparable(
            f"precision {said} is not described" if said else "no precision is published"
        )


def _job(row: Row) -> Job:
    model = _override(architecture_of(row["model"]), row)
    layout = _layout(row, model)
    precision = recipes.precision_of(row)
    graphs = recipes.graphs(row, precision, bool(model.num_experts))
    routing = (row.get("routing") or "").lower()
    return Job(
        model=model,
        layout=layout,
        sequence_length=count(row, "seq_len"),
        micro_batch=count(row, "mbs"),
        precision=precision,
        kernels="transformer_engine",
        tiled_logits=False,
        gradient_bytes=2,  # Megatron-Bridge's and NeMo's recipes reduce gradients in bf16
        recompute=recipes.recomputed(row),
        sequence_parallel=layout.tensor > 1,
        fully_sharded=count(row, "fsdp", 0) > 1,
        dispatcher=recipes.dispatcher(row),
        overlap_exchange=recipes.overlaps_exchange(row),
        graphs=graphs,
        force_balanced="natural" not in routing,
        capacity=recipes.capacity(row),
        proxy="uccl" if "uccl" in note(row) else "nvshmem",
        fused_experts=recipes.fuses_experts(row, graphs),
        fused_permutation=recipes.fuses_permutation(row),
        fp8_attention=recipes.attends_in_fp8(row, graphs),
        early_software=recipes.is_early(row),
    )


@cache
def _known() -> dict[str, Architecture]:
    path = Path(__file__).with_name("architectures.toml")
    tables = read_toml(path, "architectures")
    known = {name: Architecture(name=name, **table) for name, table in tables.items()}
    qwen = {name: ModelConfig(preset=name, **values) for name, values in PRESETS.items()}  # type: ignore[arg-type]
    return known | {name: architecture.of(model) for name, model in qwen.items()}


_NAMES = (
    (r"qwen-?3-(0\.6b|1\.7b|4b|8b|14b|32b)(?:-base)?$", "qwen3-{0}"),
    (r"qwen-?3-600m$", "qwen3-0.6b"),
    (r"qwen-?3.*\b30b.*a3b", "qwen3-30b-a3b"),
    (r"qwen-?3.*\b235b.*a22b", "qwen3-235b-a22b"),
    (r"llama-?2-(7b)$", "llama-2-{0}"),
    (r"(?:meta-)?llama-?3(?:\.[13])?-(8b|70b|405b)$", "llama-3-{0}"),
    (r"llama-?4-maverick.*", "llama-4-maverick"),
    (r"nemotron-?4-(15b|340b)$", "nemotron-4-{0}"),
    (r"nemotron-8b$", "nemotron-8b"),
    (r"gpt-?3-(20b|175b)$", "gpt-3-{0}"),
    (r"grok-?1.*", "grok-1"),
    (r"gpt-oss-(20b|120b)$", "gpt-oss-{0}"),
    (r"deepseek-?v3.*", "deepseek-v3"),
    (r"kimi-k2.*", "kimi-k2"),
    (r"moonlight-16b-a3b$", "moonlight-16b-a3b"),
)


def architecture_of(name: str) -> Architecture:
    """The architecture that a published table calls `name`."""
    plain = re.sub(r"[\s_]+", "-", re.sub(r"^\S+/", "", name.strip().lower()))  # Qwen/Qwen3-8B
    plain = re.sub(r"-([01])[p-](?=[67]b)", r"-\1.", plain)  # 1p7b
    for pattern, known in _NAMES:
        match = re.match(pattern, plain)
        if match:
            return _known()[known.format(*match.groups())]
    raise Incomparable(f"the shape of {name} is not known to the planner")


def _override(model: Architecture, row: Row) -> Architecture:
    layers = count(row, "layers_override", 0)
    if layers > model.num_layers:
        raise Incomparable(f"layers_override = {layers} exceeds {model.name}'s {model.num_layers}")
    if "w/o mtp" in row["model"].lower():
        model = replace(model, predicted_layers=0)
    return replace(model, num_layers=layers) if layers else model


def _layout(row: Row, model: Architecture) -> Layout:
    world, tp, pp = count(row, "n_gpus"), count(row, "tp"), count(row, "pp")
    vpp, cp, ep = count(row, "vpp"), count(row, "cp"), count(row, "ep")
    data, rest = divmod(world, tp * pp * cp)
    if not model.num_experts:
        ep = etp = 1
    else:
        etp = count(row, "etp", tp if world % (ep * tp * pp) == 0 else 1)
        if model.num_experts % ep:
            raise Incomparable(f"ep {ep} does not divide {model.num_experts} experts")
    if model.num_attention_heads % tp:
        raise Incomparable(f"tp {tp} does not divide {model.num_attention_heads} attention heads")
    if rest or not data or world % (ep * etp * pp):
        raise Incomparable(
            f"tp {tp} · pp {pp} · cp {cp}, ep {ep} · etp {etp} do not divide {world}"
        )
    micro_batches, rest = divmod(count(row, "gbs"), data * count(row, "mbs"))
    if rest or not micro_batches:
        raise Incomparable(f"gbs {count(row, 'gbs')} does not divide among {data} data ranks")
    if pp == 1:
        vpp = 1
    if pp * vpp > model.num_layers + 2 or min(_stages(model, pp * vpp)) < 0:
        raise Incomparable(f"{pp} · {vpp} pipeline stages exceed {model.num_layers} layers")
    return Layout(
        world_size=world,
        tensor=tp,
        pipeline=pp,
        virtual=vpp,
        expert=ep,
        expert_tensor=etp,
        context=cp,
        data=data,
        expert_data=world // (ep * etp * pp),
        micro_batches=micro_batches,
        stage_layers=_stages(model, pp * vpp),
    )


def _stages(model: Architecture, stages: int) -> tuple[int, ...]:
    """Even stages; embedding and loss count as a layer each, if that makes stages even."""
    layers, extra = model.num_layers, model.predicted_layers if stages > 1 else 0
    if (layers + 2) % stages == 0 and not extra:
        split = list(even_stages(layers + 2, stages))
        split[0] -= 1
        split[-1] -= 1
        return tuple(split)
    split = list(even_stages(layers + extra, stages))
    taken = min(extra, split[-1] - 1)
    split[-1] -= taken
    split[0] -= extra - taken
    return tuple(split)


def _cluster(row: Row) -> Cluster:
    text = note(row)
    name = row["gpu"].lower()
    if name not in hardware.names():  # a table's cell must not open files
        raise Incomparable(f"no GPU named {name!r} is known; known: {', '.join(hardware.names())}")
    if "efa" in text or "p6-b300" in text or "p5.48" in text:
        name = f"{name}_efa"
    cluster = hardware.load(name)
    if not cluster.supports(recipes.precision_of(row)):
        raise Incomparable(f"{cluster.name} does not compute in {recipes.precision_of(row)}")
    return cluster


def compared(runs: list[PublishedRun]) -> Iterator[PublishedRun]:
    """Runs that have a job and a step time."""
    return (run for run in runs if run.job and run.seconds)
