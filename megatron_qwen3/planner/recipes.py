"""Settings of published runs that their rows lack, from the public recipes that they ran.

Megatron-Bridge's scripts/performance/configs and perf_recipes name, by model, GPU and release, how
tokens reach their experts, which parts CUDA graphs capture and which kernels are fused; Megatron-
MoE-ModelZoo's launch scripts do for theirs. A row is a line of published_perf.csv.
"""

import math
import re
from collections.abc import Iterable, Mapping

Row = Mapping[str, str]
_NOTHING = ("", "-", "none", "null", "nan", "n/a")


def number(row: Row, name: str) -> float | None:
    """A cell as a finite number, 1,024 too; None where it is empty or no number."""
    try:
        value = float((row.get(name) or "").replace(",", ""))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def count(row: Row, name: str, default: int = 1) -> int:
    """A cell as a whole number; 0 counts as empty."""
    return int(number(row, name) or default)


def uncountable(row: Row, names: Iterable[str]) -> str:
    """The fault of the first of these cells that is set but no whole number; "" without one."""
    for name in names:
        cell, value = row.get(name) or "", number(row, name)
        is_whole = value is not None and value >= 0 and value == int(value)
        if cell.lower() not in _NOTHING and not is_whole:
            return f"{name} = {cell} is not a whole number above 0"
    return ""


def note(row: Row) -> str:
    """All words of a row, in lower case."""
    names = ("notes", "dispatcher", "comm_overlap", "source_repo")
    return " ".join(row.get(name) or "" for name in names).lower()


def release_of(row: Row) -> tuple[int, ...]:
    """(26, 4, 1) of 26.04.01; a date such as 2026-08-14 counts as (26, 8)."""
    numbers = [int(n) for n in re.findall(r"\d+", row.get("release") or "")]
    if numbers and numbers[0] > 2000:
        return (numbers[0] - 2000, *numbers[1:2])
    return tuple(numbers)


def _is_bridge(row: Row) -> bool:
    return "Megatron-Bridge" in (row.get("source_repo") or "")


def _is_235b(row: Row) -> bool:
    return "235b" in row["model"].lower()


def dispatcher(row: Row) -> str:
    """How tokens reached their experts: alltoall, deepep or hybridep."""
    text = (row.get("dispatcher") or "").lower()
    for name in ("alltoall", "hybridep", "deepep"):
        if name in text:
            return name
    if _is_bridge(row):
        if _is_235b(row) and row["gpu"] in ("B200", "B300", "H100"):
            return "alltoall"
        return "hybridep" if release_of(row) >= (26,) else "deepep"
    return "alltoall"


def overlaps_exchange(row: Row) -> bool:
    """Whether one micro-batch's exchange ran beside another's computation."""
    text = f"{row.get('comm_overlap') or ''} {row.get('notes') or ''}".lower()
    if re.search(r"ep_a2a_1f1b|ep_a2a_overlap(?!=false)|a2a_overlap=1", text):
        return "ep_a2a_overlap=0" not in text
    if row.get("comm_overlap") or not _is_bridge(row):
        return False
    if _is_235b(row) and row["gpu"] in ("B200", "B300") and count(row, "vpp") > 1:
        return True
    return graphs(row, precision_of(row), True) == "full"


def recomputed(row: Row) -> frozenset[str]:
    """Parts of a layer that backward computed again. AWS's scripts that compare dispatchers
    recompute everything unless the row says otherwise, and their exchanges do not overlap."""
    text = (row.get("recompute") or "").lower()
    if not text and "awsome" in (row.get("source_repo") or "") and not overlaps_exchange(row):
        text = "full"
    if "full" in text:
        return frozenset({"layer"})
    kind, _, parts = text.partition(":")
    if kind == "selective" and not parts:
        return frozenset({"core_attn"})
    return frozenset(part.strip() for part in parts.split(",") if part.strip())


def graphs(row: Row, precision: str, is_sparse: bool) -> str:
    """The parts that CUDA graphs captured: none, partial (attention, router), full (the step)."""
    text = (row.get("cuda_graph") or "").lower()
    if re.match(r"none|no\b|false|off|0$", text):
        return "none"
    if text:
        return "full" if "full" in text else "partial"
    if "cuda_graph" in note(row):
        return "partial"
    if "ModelZoo" in (row.get("source_repo") or "") and row["gpu"].startswith("GB"):
        return "partial"  # its launch scripts capture attention there
    if not _is_bridge(row) or not is_sparse:
        return "none"
    return _recipe_graphs(row, precision)


def _recipe_graphs(row: Row, precision: str) -> str:
    """From 26.06 (B200, B300: 26.06.01) recipes capture the step where experts are in MXFP8."""
    gpu, release = row["gpu"], release_of(row)
    if gpu == "H100" or release < (26,):
        return "none"
    captures_step = release >= ((26, 6) if gpu.startswith("GB") else (26, 6, 1))
    if precision == "mxfp8" and captures_step and not _is_gpt_oss(row):
        return "full"
    if gpu in ("B200", "B300") and (_is_235b(row) or count(row, "mbs") == 1):
        return "none"
    return "partial"


def _is_gpt_oss(row: Row) -> bool:
    return "oss" in row["model"].lower()


def capacity(row: Row) -> float:
    """Rows of an expert in units of an even load, where tokens beyond it are dropped; else 0, which
    a factor below 0 says as well."""
    text = f"{row.get('routing') or ''} {row['model']} {row.get('notes') or ''}".lower()
    if said := re.search(r"capacity[ _-]?factor(?: of)?[\s=:('\"]*(-?\d*\.?\d+)", text):
        return max(float(said[1]), 0.0)
    drops = re.search(r"(?<!\bno )(?<!\bwithout )token[ _-]?drop(?!less)", text)
    return 1.0 if drops else 0.0


def fuses_experts(row: Row, graphs: str) -> bool:
    """Whether experts' kernels are fused: Megatron-Bridge's recipes that capture the step do."""
    return _is_bridge(row) and graphs == "full" and release_of(row) >= (26, 6)


def fuses_permutation(row: Row) -> bool:
    """Whether one kernel sorts rows: outside NVIDIA's benchmarks NCCL's exchange ran with
    Megatron-LM's defaults of 2025, which use many small kernels."""
    if "permute_fusion disabled" in note(row):
        return False
    source = row.get("source_repo") or ""
    return dispatcher(row) != "alltoall" or any(
        name in source for name in ("Megatron-Bridge", "dgxc-benchmarking", "awsome")
    )


def attends_in_fp8(row: Row, graphs: str) -> bool:
    """Whether attention is in FP8: in the same recipes, except for DeepSeek-V3 on GB200."""
    on_gb200 = "deepseek" in row["model"].lower() and row["gpu"] == "GB200"
    return fuses_experts(row, graphs) and not on_gb200


def is_early(row: Row) -> bool:
    """Whether the release was among the first with FP8: Blackwell before 25.11, Hopper before
    25."""
    tag = re.match(r"v(\d+)\.(\d+)", row.get("source_ref") or "")
    release = release_of(row) or (tuple(map(int, tag.groups())) if tag else ())
    if not release:
        return False
    is_blackwell = row["gpu"].startswith(("B", "GB"))
    return release < ((25, 11) if is_blackwell else (25,))


def precision_of(row: Row) -> str:
    """bf16 (and fp16, as fast), fp8 (a scale per tensor or tile), mxfp8 or nvfp4; "" for any other
    precision."""
    text = f"{row['precision']} {row.get('fp8_recipe') or ''}".lower()
    if "nvfp4" in text:
        return "nvfp4"
    if "mx" in text and "fp4" not in text:
        return "mxfp8"
    if "fp8" in text:
        return "fp8"
    return "bf16" if "bf16" in text or "fp16" in text else ""
