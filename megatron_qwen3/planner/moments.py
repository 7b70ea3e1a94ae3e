"""Memory of a run that holds more than the model in training, moment by moment of a step.

    rank, parts = fullest(config, job, world_size, is_gpu=True)
    sum(parts.values()), parts["reference"]

A stage of RL or on-policy distillation has a reference or a teacher beside its policy, and does not
need everything at once: while answers are sampled, caches of keys and values stand where the
activations of an update do. What counts is the fullest moment of the pipeline rank that needs most.
Pretraining and dialogs have one moment, the update; a teacher of dialogs stays through it.
"""

from collections.abc import Iterator

from megatron_qwen3.modes import belongs
from megatron_qwen3.parallel.layout import Layout
from megatron_qwen3.planner.job import Job
from megatron_qwen3.planner.memory import (
    LOST_BETWEEN_BLOCKS,
    MATMUL_WORKSPACE_BYTES,
    Memory,
    heavy_ranks,
)
from megatron_qwen3.planner.state import State
from megatron_qwen3.posttrain import teacher_settings
from megatron_qwen3.settings import Config
from megatron_qwen3.settings_rollouts import RolloutsConfig

Parts = dict[str, float]
PROCESS_BYTES = 0.5e9  # of a rank on a CPU: Python, torch and its threads
_ID_BYTES, _NUMBER_BYTES = 8, 4  # of soft targets on their device
# Of a row's logits while its next token is chosen: float32, sorted, their ids, and as float64 the
# logits, their softmax and its sum (generate/sampler.py).
_CHOOSING_BYTES = 4 + 4 + 8 + 8 + 8 + 8
_OF_TRAINING = ("activations", "logits", "workspace", "fragmentation")
_OF_GPUS = ("nccl", "fragmentation")


def fullest(config: Config, job: Job, world_size: int, is_gpu: bool) -> tuple[int, Parts]:
    """The pipeline rank that needs most, and its bytes by name at the moment when it does.

    ConfigError where the teacher's layout does not fit its model or the ranks.
    """
    teacher = teacher_bytes(config, world_size)
    found = [
        (rank, _on(parts, is_gpu))
        for rank in heavy_ranks(job)
        for parts in _moments(config, job, rank, teacher)
    ]
    return max(found, key=lambda moment: sum(moment[1].values()))


def _on(parts: Parts, is_gpu: bool) -> Parts:
    """A CPU has no NCCL, and its allocator gives back what is free."""
    if is_gpu:
        return parts
    own = {name: size for name, size in parts.items() if name not in _OF_GPUS}
    return own | {"process": PROCESS_BYTES}


def _moments(config: Config, job: Job, rank: int, teacher: float) -> Iterator[Parts]:
    update = Memory.of_rank(job, rank).parts()
    reference = reference_bytes(config, job, rank)
    beside = {"reference": reference, "teacher": teacher}
    if not config.distill.teacher.in_turns:
        yield update | beside
    else:
        yield update | {"reference": reference}
        without = dict.fromkeys((*_OF_TRAINING, "optimizer"), 0.0)
        yield update | without | beside
    if belongs("rollouts", config.run.mode) and config.rollouts.engine == "own":
        stays = {"reference": reference}
        if not config.distill.teacher.in_turns:
            stays = beside
        yield update | _sampling(job, rank, config.rollouts) | stays


def _sampling(job: Job, rank: int, rollouts: RolloutsConfig) -> Parts:
    """What the weights in training need to sample answers, in place of what an update does."""
    cache, chosen = cache_bytes(job, rank, rollouts), choosing_bytes(job, rank, rollouts)
    parts = dict.fromkeys(_OF_TRAINING, 0.0)
    parts |= {"caches": cache, "sampling": chosen + MATMUL_WORKSPACE_BYTES}
    return parts | {"fragmentation": LOST_BETWEEN_BLOCKS * (cache + chosen)}


def rows_at_once(job: Job, rollouts: RolloutsConfig) -> int:
    """Answers that a data rank samples at a time: all of a prompt, of as many as rows allow."""
    prompts = min(rollouts.rows // rollouts.samples, -(-rollouts.prompts // job.layout.data))
    return max(1, prompts) * rollouts.samples


def cache_bytes(job: Job, rank: int, rollouts: RolloutsConfig) -> float:
    """Keys and values of all answers at their full length, after the longest prompt that the rows
    of an update have room for; and the half of one layer's, which is copied as rows leave."""
    layout, model = job.layout, job.model
    layers = sum(layout.stage_layers[rank :: layout.pipeline])
    groups = model.num_query_groups / layout.tensor
    place = 2 * groups * model.head_dim * job.weight_bytes
    places = max(job.sequence_length, rollouts.max_new_tokens)
    return (layers + 0.5) * rows_at_once(job, rollouts) * places * place


def choosing_bytes(job: Job, rank: int, rollouts: RolloutsConfig) -> float:
    """What choosing the next token of every answer takes; the last stage alone chooses."""
    if rank != job.layout.pipeline - 1:
        return 0.0
    return float(rows_at_once(job, rollouts) * job.model.vocab_size * _CHOOSING_BYTES)


def reference_bytes(config: Config, job: Job, rank: int) -> float:
    """Weights of the reference model of RL, in the policy's layout."""
    if config.run.mode != "rl" or not config.rl.kl.coefficient:
        return 0.0
    return float(State.of(job, rank).parameters * job.weight_bytes)


def teacher_bytes(config: Config, world_size: int) -> float:
    """What a teacher in memory takes of the fullest rank: its weights, and the targets of a step.

    Its activations are one layer's at a time, and gone before the student's are there.
    """
    asked = config.sft.teacher
    if config.run.mode != "sft" or not asked.path:
        return 0.0
    job = Job.of(teacher_settings.settings_of(config), world_size)
    weights = max(State.of(job, rank).parameters for rank in range(job.layout.pipeline))
    rows = config.train.global_batch // Layout.of(config, world_size).data
    of_label = asked.top_k * (_ID_BYTES + _NUMBER_BYTES) + _NUMBER_BYTES
    return weights * job.weight_bytes + rows * config.data.sequence_length * of_label
