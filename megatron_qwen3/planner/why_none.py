"""Explains in one line why a search finds no layout, with the nearest question that has one.

raise ConfigError(why_none(question))
"""

from collections.abc import Callable
from dataclasses import replace

from megatron_qwen3.parallel.layout import near, row_unit
from megatron_qwen3.planner import candidates, search
from megatron_qwen3.planner.job import Job
from megatron_qwen3.planner.memory import Memory
from megatron_qwen3.planner.question import Question
from megatron_qwen3.settings import ParallelConfig
from megatron_qwen3.settings_fp8 import of_arithmetic
from megatron_qwen3.validate_fp8 import width_faults

Pins = tuple[tuple[str, int | str], ...]


def why_none(question: Question) -> str:
    """Why no layout is possible, and the nearest possible question."""
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
    pins, found = _in_the_way(question, _fitting)
    if found:
        text += f"; without {_named(pins)} one fits ({found.described})"
    return f"{text}; {_nearest_gpus(question)}"


def _fitting(question: Question) -> Job | None:
    """A layout that fits."""
    leanest = search.least_memory(question)
    if leanest and Memory.of(leanest[0]).total <= search.usable_bytes(question.cluster):
        return leanest[0]
    return None


def _dividing(question: Question) -> Job | None:
    """A layout that divides."""
    return next(candidates.candidates(question), None)


def _in_the_way(
    question: Question, answer: Callable[[Question], Job | None]
) -> tuple[Pins, Job | None]:
    """The pin without which there is an answer, or all of them; and the answer."""
    each: list[Pins] = [(item,) for item in question.fixed]
    for pins in [*each, question.fixed] if len(each) > 1 else each:
        rest = tuple(item for item in question.fixed if item not in pins)
        if found := answer(replace(question, fixed=rest)):
            return pins, found
    return (), None


def _named(pins: Pins) -> str:
    """tensor = 3, pipeline = 5 and virtual = 2."""
    *before, last = (f"{name} = {value}" for name, value in pins)
    return f"{', '.join(before)} and {last}" if before else last


def _nearest_gpus(question: Question) -> str:
    """The next doubling of GPUs at which a layout fits."""
    found = search.fewest_gpus(question)
    if found:
        return f"the fewest that fit, doubling: {found[0]} GPUs ({found[1].described})"
    return "shorter sequences, a smaller model, or unpinned sizes may"


def _undivided(question: Question) -> str:
    """The setting at fault, and valid values for it: the length of a row, pins, the model in this
    precision, or the batch."""
    if fault := _row_fault(question):
        return fault
    pins, found = _in_the_way(question, _dividing)
    if len(pins) == 1:
        return _pin_fault(question, *pins[0])
    if found:
        return f"{_named(pins)} do not; without them {found.described} does"
    fp8 = of_arithmetic(question.precisions[0])
    if fp8.is_on and (fault := next(width_faults(question.model, ParallelConfig(), fp8), "")):
        return fault
    unit = question.gpus
    near_batch = max(1, round(question.global_batch / unit)) * unit
    return (
        f"the global batch of {question.global_batch} sequences cannot be shared by "
        f"{question.gpus} GPUs in any layout; near it: {near_batch}"
    )


def _row_fault(question: Question) -> str:
    """The unit that a row's length must be a multiple of, if such a length has a layout; or ""."""
    pinned, length = dict(question.fixed), question.sequence_length
    tensor, context = (int(pinned.get(name, 1)) for name in ("tensor", "context"))
    shares = ParallelConfig(tensor=tensor, context=context)
    unit, settings = row_unit(shares, of_arithmetic(question.precisions[0]))
    if length % unit == 0:
        return ""
    if not _dividing(replace(question, sequence_length=length + -length % unit)):
        return ""
    return (
        f"sequence_length = {length} is no multiple of {unit}, which {settings} needs; valid near "
        f"it: {near(length, unit)}"
    )


def _pin_fault(question: Question, name: str, value: int | str) -> str:
    """Which sizes a pin could have instead."""
    free = replace(question, fixed=tuple(item for item in question.fixed if item[0] != name))
    found = {size for job in candidates.candidates(free) if (size := _size(job, name)) is not None}
    closest = sorted(found, key=lambda size: abs(size - int(value)))[:3]
    valid = ", ".join(map(str, sorted(closest)))
    return f"{name} = {value} does not; with the rest as asked, valid near it: {valid}"


def _size(job: Job, name: str) -> int | None:
    if name == "micro_batch":
        return job.micro_batch
    size: int | None = getattr(job.layout, name, None)
    return size
