"""The question that a search of layouts answers: which model, on which GPUs.

question = ask("235b-a22b", "h100", gpus=256)
plans = search(question, calibration.load())
raise ConfigError(why_none(question))               # if there are none (why_none.py)
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from megatron_qwen3.named_model import named_model
from megatron_qwen3.planner import hardware
from megatron_qwen3.planner.hardware import Cluster
from megatron_qwen3.planner.job import RECOMPUTED, Job
from megatron_qwen3.settings import ConfigError, ModelConfig
from megatron_qwen3.toml import did_you_mean

_BATCH_TOKENS = 2**23  # of one step, by default
_HERE, _HYPOTHETICAL = ("alltoall",), ("alltoall", "deepep")  # dispatchers of tokens
_PINNED = ("tensor", "pipeline", "virtual", "context", "expert", "expert_tensor", "micro_batch")
PRECISIONS = ("bf16", "fp8", "mxfp8", "nvfp4")


@dataclass(frozen=True)
class Question:
    """A model to be trained, and the GPUs. `fixed` pins sizes by name (tensor, pipeline, virtual,
    context, expert, expert_tensor, micro_batch) and recompute.

    dispatchers  of tokens that may be used
    like         a job whose other properties all layouts have; None are the trainer's defaults
    """

    model: ModelConfig
    cluster: Cluster
    gpus: int
    sequence_length: int
    global_batch: int
    precisions: tuple[str, ...] = ("bf16",)
    dispatchers: tuple[str, ...] = _HYPOTHETICAL
    force_balanced: bool = False
    fixed: tuple[tuple[str, int | str], ...] = ()
    like: Job | None = None

    def allows(self, name: str, value: int | str) -> bool:
        """Whether no other value is pinned."""
        return dict(self.fixed).get(name, value) == value

    @property
    def name(self) -> str:
        """The model's name."""
        return self.model.preset or "the model"


def ask(
    model: str,
    gpu: str,
    gpus: int,
    *,
    sequence_length: int = 4096,
    global_batch: int | None = None,
    precision: str = "bf16",
    hypothetical: bool = False,
    force_balanced: bool = False,
    fixed: Mapping[str, int | str] | None = None,
) -> Question:
    """The question by names; ConfigError says which of them is wrong.

    model: as named_model takes it. gpu: of hardware/, or a TOML file of a cluster.
    global_batch: sequences of a step; about 8.4M tokens without. precision: of PRECISIONS, or auto.
    hypothetical: layouts that need DeepEP or an overlapped exchange, too. fixed: the pins.
    """
    cluster, fixed = hardware.load(gpu), fixed or {}
    sizes = {"gpus": gpus, "sequence_length": sequence_length}
    if global_batch is not None:
        sizes["global_batch"] = global_batch
    _check_pins(fixed)
    for name, value in (sizes | {k: v for k, v in fixed.items() if k in _PINNED}).items():
        _check_count(name, value)
    return Question(
        model=named_model(model),
        cluster=cluster,
        gpus=gpus,
        sequence_length=sequence_length,
        global_batch=global_batch or usual_batch(sequence_length, gpus),
        precisions=_precisions(precision, cluster),
        dispatchers=_HYPOTHETICAL if hypothetical else _HERE,
        force_balanced=force_balanced,
        fixed=tuple(fixed.items()),
    )


def _check_pins(fixed: Mapping[str, object]) -> None:
    """ConfigError where something else is pinned than a size or the recomputation."""
    for name, value in fixed.items():
        if name == "recompute":
            if not isinstance(value, str) or value not in RECOMPUTED:
                raise ConfigError(f"recompute = {value!r}; valid: {', '.join(RECOMPUTED)}")
        elif name not in _PINNED:
            known = (*_PINNED, "recompute")
            guess = did_you_mean(name, known) or f"; valid: {', '.join(known)}"
            raise ConfigError(f"fixed: {name} cannot be pinned{guess}")


def _check_count(name: str, value: object) -> None:
    if type(value) is not int:
        raise ConfigError(f"{name} = {value!r} is not a whole number")
    if value <= 0:
        raise ConfigError(f"{name} = {value} must be above 0")


def usual_batch(sequence_length: int, gpus: int) -> int:
    """About _BATCH_TOKENS; sequences per GPU are a power of two, which micro-batches divide."""
    per_gpu = _BATCH_TOKENS / sequence_length / gpus
    return gpus << max(0, round(math.log2(per_gpu)))


def _precisions(asked: str, cluster: Cluster) -> tuple[str, ...]:
    if asked not in (*PRECISIONS, "auto"):
        raise ConfigError(f"precision = {asked}; valid: {', '.join(PRECISIONS)}, auto")
    if asked == "auto":
        best = "mxfp8" if cluster.supports("mxfp8") else "fp8"
        return ("bf16", best) if cluster.supports(best) else ("bf16",)
    if not cluster.supports(asked):
        valid = [p for p in PRECISIONS if cluster.supports(p)]
        raise ConfigError(f"--precision {asked}: {cluster.name} has {', '.join(valid)}")
    return (asked,)
