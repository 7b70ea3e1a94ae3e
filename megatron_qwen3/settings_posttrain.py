"""The settings of the modes of post-training: the tables that `settings.py` does not have.

A mode's table has the settings that no other mode has. Everything else (model, layout, optimizer,
checkpoints) is set as for pretraining. Nothing here imports torch.
"""

from dataclasses import dataclass, field

from megatron_qwen3.fields import REQUIRED, setting


@dataclass(frozen=True)
class DialogSourceConfig:
    """One tokenized dialog set, and how much of it the run uses: its weight, or its epochs."""

    name: str = setting(REQUIRED, "name of the source in logs")
    path: str = setting(REQUIRED, "prefix that mq3 data dialogs wrote")
    weight: float = setting(
        1.0, "share of the mixture's tokens, relative to the other sources", above=0
    )
    epochs: float = setting(
        0.0, "times that each of its dialogs is trained, in place of weights; 0 is none", at_least=0
    )


@dataclass(frozen=True)
class TeacherConfig:
    """The model whose next-token distribution is the soft target, in a layout of its own."""

    path: str = setting(
        "",
        "run folder, checkpoint or folder of Hugging Face's format; empty reads targets that "
        "mq3 data build teacher stored beside the dialog sets; {dir} is run.dir",
    )
    tensor: int = setting(1, "ranks that split each matrix of the teacher", at_least=1)
    pipeline: int = setting(1, "ranks that split its layers", at_least=1)
    expert: int = setting(1, "ranks that split its experts", at_least=1)
    top_k: int = setting(
        64,
        "its most probable tokens that are compared; all others are one bin together",
        at_least=1,
    )
    temperature: float = setting(1.0, "that both distributions are taken at", above=0)
    share: float = setting(
        0.5, "of the soft targets in objective both; the rest is cross-entropy's", above=0, below=1
    )


@dataclass(frozen=True)
class SftConfig:
    """Supervised fine-tuning on dialogs: run.mode = "sft"."""

    objective: str = setting(
        "cross_entropy",
        "loss of each trained token; dft weighs its cross-entropy by its probability "
        "(arXiv 2508.05629)",
        choices=("cross_entropy", "dft", "soft_targets", "both"),
    )
    loss: str = setting(
        "token",
        "unit of equal weight: each trained token, or each dialog, its samples together",
        choices=("token", "dialog"),
    )
    held_out: float = setting(
        0.01,
        "fraction of each source's dialogs, about, that is never trained on",
        at_least=0,
        below=1,
    )
    sources: tuple[DialogSourceConfig, ...] = setting(
        (), "tables [[sft.sources]]: name, path, weight or epochs"
    )
    teacher: TeacherConfig = field(default_factory=TeacherConfig)


@dataclass(frozen=True)
class PairSourceConfig:
    """One tokenized set of pairs: an answer that was chosen, and one that was rejected."""

    name: str = setting(REQUIRED, "name of the source in logs")
    path: str = setting(REQUIRED, "prefix that mq3 data dialogs wrote of pairs")


@dataclass(frozen=True)
class RewardConfig:
    """A reward model on pairs of answers: run.mode = "reward"."""

    margin: bool = setting(True, "rewards are to differ by each pair's margin, where it has one")
    centering: float = setting(
        0.0,
        "coefficient of the squared sum of a pair's rewards, to keep them near 0",
        at_least=0,
    )
    held_out: float = setting(
        0.01,
        "fraction of each source's pairs, about, that is never trained on",
        at_least=0,
        below=1,
    )
    sources: tuple[PairSourceConfig, ...] = setting((), "tables [[reward.sources]]: name, path")
