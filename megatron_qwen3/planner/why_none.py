"""Why a search of layouts finds none, and the nearest question that has an answer, in one line.

raise ConfigError(why_none(question))
"""

from dataclasses import replace

from megatron_qwen3.planner import search
from megatron_qwen3.planner.job import Job
from megatron_qwen3.planner.memory import Memory
from megatron_qwen3.planner.question import Question


def why_none(question: Question) -> str:
    """Why no layout is possible, and the nearest that is."""
    smallest = search.least_memory(question)
    where = f"{question.name} on {question.gpus} {question.cluster.name}"
    if smallest is None:
        return f"no layout of {where} divides as asked: {_undivided(question)}"
    job, recompute = smallest
    need, have = Memory.of(job).total / 1e9, search.usable_bytes(question.cluster) / 1e9
    leanest = f"({job.described}, recompute {recompute})"
    text = (
        f"{where} does not fit: even the leanest layout {leanest} needs {need:.1f} GB, and of the "
        f"{question.cluster.memory_gb:g} GB per GPU {have:.1f} can be used"
    )
    return f"{text}; {_nearest_gpus(question)}"


def _nearest_gpus(question: Question) -> str:
    """The next doubling of GPUs at which a layout fits."""
    found = search.fewest_gpus(question)
    if found:
        return f"the fewest that fit, doubling: {found[0]} GPUs ({found[1].described})"
    return "shorter sequences, a smaller model, or unpinned sizes may"


def _undivided(question: Question) -> str:
    """Which pin stands in the way, and what it could be."""
    for name, value in question.fixed:
        rest = tuple(item for item in question.fixed if item[0] != name)
        free = replace(question, fixed=rest)
        sizes = (_size(job, name) for job in search.candidates(free))
        found = {size for size in sizes if size is not None}
        if found and isinstance(value, int):
            wanted = value
            near = sorted(found, key=lambda size: abs(size - wanted))[:3]
            valid = ", ".join(map(str, sorted(near)))
            return f"{name} = {value} does not; with the rest as asked, valid near it: {valid}"
    unit = question.gpus
    near_batch = max(1, round(question.global_batch / unit)) * unit
    return (
        f"the global batch of {question.global_batch} sequences cannot be shared by "
        f"{question.gpus} GPUs in any layout; near it: {near_batch}"
    )


def _size(job: Job, name: str) -> int | None:
    if name == "micro_batch":
        return job.micro_batch
    size: int | None = getattr(job.layout, name, None)
    return size
