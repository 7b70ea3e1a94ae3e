"""Finds a run's soft targets: stored beside its dialog sets, or from a teacher in memory.

    soft_targets.check(config, mixture)                       # before any rank starts
    stored, teacher = soft_targets.sources(config, layout, mixture, engine.data_rank)

With sft.teacher.path a model in memory scores each batch before its step. Without it, the targets
that `mq3 data build teacher` wrote beside each set are read with the rows.
"""

from megatron_qwen3 import launcher
from megatron_qwen3.config import Config
from megatron_qwen3.convert import load
from megatron_qwen3.parallel.layout import Layout
from megatron_qwen3.posttrain.rows.dialog_mixture import DialogMixture
from megatron_qwen3.posttrain.rows.stored_targets import StoredTargets
from megatron_qwen3.posttrain.teachers import teacher_settings
from megatron_qwen3.posttrain.teachers.teacher import Teacher
from megatron_qwen3.validate_posttrain import TAUGHT


def check(config: Config, mixture: DialogMixture) -> None:
    """ConfigError where there is no teacher, or it does not fit sets, student or ranks."""
    if not config.sft.teacher.path:
        StoredTargets(config, mixture)
        return
    tokenizers = {source.dialogs.prefix: source.dialogs.tokenizer for source in mixture.sources}
    teacher_settings.check(config, launcher.world_size(), tokenizers)
    load.check_there("sft.teacher.path", config.sft.teacher.path)


def sources(
    config: Config, layout: Layout, mixture: DialogMixture, data_rank: int
) -> tuple[StoredTargets | None, Teacher | None]:
    """Either one, as the run is set; neither where its objective has no teacher."""
    if config.sft.objective not in TAUGHT:
        return None, None
    if config.sft.teacher.path:
        return None, Teacher(config, layout, data_rank)
    return StoredTargets(config, mixture), None
