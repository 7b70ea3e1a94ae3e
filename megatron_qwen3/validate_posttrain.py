"""Checks settings of post-training: one line per fault, as `validate.py` does the others."""

from collections.abc import Iterator

from megatron_qwen3.fields import settings_of
from megatron_qwen3.modes import head_of
from megatron_qwen3.settings import Config
from megatron_qwen3.settings_posttrain import SftConfig, TeacherConfig

RESULTS = ("all", "mode thinking", "mode non-thinking")  # held-out ones of several sources
TAUGHT = ("soft_targets", "both")  # objectives that have a teacher


def faults(config: Config) -> Iterator[str]:
    """Faults of the tables of `run.mode`."""
    yield from _name_faults(config)
    if config.run.mode == "sft":
        yield from _mixture_faults(config.sft)
        yield from _teacher_faults(config)
    yield from _head_faults(config)


def _name_faults(config: Config) -> Iterator[str]:
    named = {
        "sft.sources": [source.name for source in config.sft.sources],
        "reward.sources": [source.name for source in config.reward.sources],
        "rollouts.tasks": [source.name for source in config.rollouts.tasks],
    }
    for table, names in named.items():
        for name in names:
            if name in RESULTS:
                yield (
                    f"{table}: a source is named {name!r}, as held-out results of several sources "
                    "are; give it another name"
                )


def _head_faults(config: Config) -> Iterator[str]:
    mode, head = config.run.mode, config.model.head
    if head != head_of(mode):
        other = ', or set run.mode = "reward"' if head == "scalar" else ""
        yield (
            f'model.head = "{head}", but run.mode = "{mode}" trains "{head_of(mode)}"; leave '
            f"model.head out{other}"
        )
    if head == "scalar" and config.optim.z_loss:
        yield (
            f'optim.z_loss = {config.optim.z_loss} is of logits, which model.head = "scalar" does '
            "not make; set it to 0"
        )


def _mixture_faults(sft: SftConfig) -> Iterator[str]:
    by_epochs = [source.name for source in sft.sources if source.epochs]
    by_weight = [source.name for source in sft.sources if not source.epochs]
    if by_epochs and by_weight:
        yield (
            f"sft.sources: {by_epochs[0]!r} has epochs and {by_weight[0]!r} has none; give epochs "
            "to every source, or weights"
        )
    for source in sft.sources:
        if source.epochs and source.weight != 1.0:
            yield (
                f"sft.sources: {source.name!r} has weight = {source.weight} and epochs = "
                f"{source.epochs}, which both say how much of it is trained; leave one out"
            )


def _teacher_faults(config: Config) -> Iterator[str]:
    sft, teacher = config.sft, config.sft.teacher
    if sft.objective not in TAUGHT:
        for name in settings_of(TeacherConfig):
            if getattr(teacher, name) != getattr(TeacherConfig(), name):
                yield (
                    f"sft.teacher.{name} = {getattr(teacher, name)} goes with sft.objective = "
                    f'"{TAUGHT[0]}" or "{TAUGHT[1]}", not "{sft.objective}"'
                )
    elif teacher.top_k > config.model.vocab_size:
        yield (
            f"sft.teacher.top_k = {teacher.top_k} exceeds model.vocab_size = "
            f"{config.model.vocab_size}"
        )
