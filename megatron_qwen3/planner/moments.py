"""Memory of a run with several models, moment by moment of a step.

    rank, parts = fullest(config, job, world_size, is_gpu=True)
    sum(parts.values()), parts["reference"]

A stage of RL or on-policy distillation has a reference or a teacher beside its policy, but does not
need everything at once: while answers are sampled, caches of keys and values take the place of an
update's activations. The fullest moment of the fullest pipeline rank counts. Pretraining and
dialogs have one moment, the update; a teacher of dialogs stays through it.
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
from megatron_qwen3.posttrain.rewards import model_settings
from megatron_qwen3.posttrain.teachers import teacher_settings
from megatron_qwen3.settings import Config
from megatron_qwen3.settings_rollouts import RolloutsConfig

Parts = dict[str, float]
PROCESS_BYTES = 0.5e9  # of a rank on a CPU: Python, torch and its threads
_ID_BYTES, _NUMBER_BYTES = 8, 4  # of soft targets on the device
# For a row's logits while its next token is chosen: float32, sorted, their ids, and in float64 the
# logits, their softmax and its sum (generate/sampler.py).
_CHOOSING_BYTES = 4 + 4 + 8 + 8 + 8 + 8
_OF_TRAINING = ("activations", "logits", "workspace", "fragmentation")
_OF_GPUS = ("nccl", "fragmentation")


def fullest(config: Config, job: Job, world_size: int, is_gpu: bool) -> tuple[int, Parts]:
    """The pipeline rank that needs most, and its bytes by name at the moment when it does.

    ConfigError where the layout of a teacher or reward model does not fit its model or the ranks.
    """
    ranks = heavy_ranks(job)
    found = [of_rank(config, job, rank, world_size, is_gpu) for rank in ranks]
    return max(zip(ranks, found, strict=True), key=lambda moment: sum(moment[1].values()))


def of_rank(config: Config, job: Job, rank: int, world_size: int, is_gpu: bool) -> Parts:
    """Bytes of a pipeline rank by name, at the moment when it needs most. ConfigError as above."""
    stays = {
        "teacher": teacher_bytes(config, world_size),
        "reward model": reward_model_bytes(config, world_size),
    }
    moments = _moments(config, job, rank, stays, compared_width(config))
    return max((_on(parts, is_gpu) for parts in moments), key=lambda parts: sum(parts.values()))


def _on(parts: Parts, is_gpu: bool) -> Parts:
    """The parts of this kind of device: a CPU has no NCCL, and its allocator frees memory."""
    if is_gpu:
        return parts
    own = {name: size for name, size in parts.items() if name not in _OF_GPUS}
    return own | {"process": PROCESS_BYTES}


def _moments(config: Config, job: Job, rank: int, others: Parts, width: int) -> Iterator[Parts]:
    """others: models beside the policy, whose layouts are their own."""
    update = Memory.of_rank(job, rank).parts()
    reference = {"reference": reference_bytes(config, job, rank)}
    told = {"targets": scores_bytes(config, job, rank, width)}
    beside = reference | others
    if not config.distill.teacher.in_turns:
        yield update | beside | told
    else:
        yield update | reference | told
        without = dict.fromkeys((*_OF_TRAINING, "optimizer"), 0.0)
        yield update | without | beside | told
    if belongs("rollouts", config.run.mode) and config.rollouts.engine == "own":
        stays = reference if config.distill.teacher.in_turns else beside
        matrix = {"targets": matrix_bytes(job, rank, width)}
        yield update | _sampling(job, rank, config.rollouts) | stays | matrix


def _sampling(job: Job, rank: int, rollouts: RolloutsConfig) -> Parts:
    """The weights' memory while they sample answers, in place of an update's."""
    cache, chosen = cache_bytes(job, rank, rollouts), choosing_bytes(job, rank, rollouts)
    parts = dict.fromkeys(_OF_TRAINING, 0.0)
    parts |= {"caches": cache, "sampling": chosen + MATMUL_WORKSPACE_BYTES}
    return parts | {"fragmentation": LOST_BETWEEN_BLOCKS * (cache + chosen)}


def rows_at_once(job: Job, rollouts: RolloutsConfig) -> int:
    """Answers that a data rank samples at a time: whole prompts, as many as rows allow; in
    evaluations and in an agent's later turns, single answers fill the rows."""
    prompts = min(rollouts.rows // rollouts.samples, -(-rollouts.prompts // job.layout.data))
    together = max(1, prompts) * rollouts.samples
    alone = _held_out(rollouts)
    if rollouts.agent.environment:
        alone = max(alone, rollouts.prompts * rollouts.samples)
    return max(together, min(rollouts.rows, -(-alone // job.layout.data)))


def _held_out(rollouts: RolloutsConfig) -> int:
    """Number of answers of an evaluation: one per task, in each of its modes."""
    modes = [source.mode or rollouts.mode for source in rollouts.tasks]
    asked = sum(2 if mode == "mixed" else 1 for mode in modes) * rollouts.eval_prompts
    return asked if rollouts.held_out else 0


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
    """Bytes to choose the next token of every answer; only the last stage chooses."""
    if rank != job.layout.pipeline - 1:
        return 0.0
    return float(rows_at_once(job, rollouts) * job.model.vocab_size * _CHOOSING_BYTES)


def reference_bytes(config: Config, job: Job, rank: int) -> float:
    """Weights of the reference model of RL, in the policy's layout."""
    if config.run.mode != "rl" or not config.rl.kl.coefficient:
        return 0.0
    return float(State.of(job, rank).parameters * job.weight_bytes)


def teacher_bytes(config: Config, world_size: int) -> float:
    """Bytes of a teacher in memory on the fullest rank: its weights, and in mode sft the targets of
    a step.

    Its activations are one layer's at a time, and freed before the student's exist.
    """
    _, asked = teacher_settings.table_of(config)
    if config.run.mode not in ("sft", "distill") or not asked.path:
        return 0.0
    job = Job.of(teacher_settings.settings_of(config, world_size), world_size)
    parameters = max(State.of(job, rank).parameters for rank in range(job.layout.pipeline))
    weights = float(parameters * job.weight_bytes)
    if config.run.mode == "distill":
        return weights
    rows = config.train.global_batch // Layout.of(config, world_size).data
    return weights + rows * config.data.sequence_length * _id_bytes(config.sft.teacher.top_k)


def reward_model_bytes(config: Config, world_size: int) -> float:
    """Weights of the reward model that scores answers, on its fullest rank."""
    if config.run.mode != "rl" or not model_settings.is_asked(config):
        return 0.0
    job = Job.of(model_settings.settings_of(config, world_size), world_size)
    parameters = max(State.of(job, rank).parameters for rank in range(job.layout.pipeline))
    return float(parameters * job.weight_bytes)


def scores_bytes(config: Config, job: Job, rank: int, width: int) -> float:
    """Bytes of a teacher's scores of an update's answers, in on-policy distillation: its hidden
    states and its output matrix, or a number of ids of each token.

    It scores all places of the rows, prompts too, which may be full.
    width: `compared_width`.
    """
    distill, rollouts = config.distill, config.rollouts
    if config.run.mode != "distill":
        return 0.0
    answers = rollouts.prompts * rollouts.samples / distill.updates / job.layout.data
    tokens = answers * config.data.sequence_length
    if not width:
        return float(tokens * _id_bytes(distill.top_k or 1))
    return float(tokens * width * job.weight_bytes) + matrix_bytes(job, rank, width)


def matrix_bytes(job: Job, rank: int, width: int) -> float:
    """The teacher's output matrix beside the student's, on its last stage."""
    is_there = rank == job.layout.pipeline - 1
    return float(is_there * job.model.vocab_size / job.layout.tensor * width * job.weight_bytes)


def compared_width(config: Config) -> int:
    """The hidden size of a teacher whose whole distribution is compared; 0 without one."""
    distill = config.distill
    if config.run.mode != "distill" or distill.divergence == "sampled" or distill.top_k:
        return 0
    return teacher_settings.settings_of(config, 1).model.hidden_size


def _id_bytes(top_k: int) -> int:
    return top_k * (_ID_BYTES + _NUMBER_BYTES) + _NUMBER_BYTES
