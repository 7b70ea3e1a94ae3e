"""Settings of the reward model of rl.judge.model, in its own layout beside the policy.

    theirs = settings_of(config, world_size)     # a Config of the reward model
    check(config, world_size)

Runs before any rank starts, and in the estimate of memory. No torch.
"""

from pathlib import Path

from megatron_qwen3.generate.load import ModelSource
from megatron_qwen3.parallel.layout import Layout
from megatron_qwen3.posttrain.teachers.teacher_settings import named, tokenizer_sha256
from megatron_qwen3.settings import Config, ConfigError


def is_asked(config: Config) -> bool:
    """Whether the run has a reward model."""
    return bool(config.rl.judge.model)


def settings_of(config: Config, world_size: int) -> Config:
    """The reward model's Config. ConfigError where its folder has none, or its layout does not
    fit."""
    asked = config.rl.judge
    overrides = [
        f"parallel.tensor={asked.tensor}",
        f"parallel.pipeline={asked.pipeline}",
        f"parallel.expert={asked.expert}",
        f'run.device="{config.run.device}"',
        f"guard.hang_seconds={config.guard.hang_seconds}",
    ]
    try:
        theirs = ModelSource(Path(asked.model)).config(overrides, world_size, head="scalar")
        Layout.of(theirs, world_size)
    except ConfigError as error:
        raise ConfigError(named("rl.judge", error, "rl.judge.model")) from None
    return theirs


def check(config: Config, world_size: int) -> None:
    """ConfigError where the reward model does not fit the run's ranks, or its tokenizer is not the
    policy's."""
    theirs = settings_of(config, world_size)
    own = tokenizer_sha256(theirs.data.tokenizer)
    policy = tokenizer_sha256(config.data.tokenizer)
    if not own or own != policy:
        told = f"another one (sha256 {own[:12]}…)" if own else "none that is known"
        raise ConfigError(
            f"data.tokenizer = {config.data.tokenizer} (sha256 {policy[:12]}…) is the policy's, "
            f"and rl.judge.model = {config.rl.judge.model} has {told}; valid: a reward model with "
            "the same tokenizer.json in its folder, as it scores the ids that were sampled"
        )
