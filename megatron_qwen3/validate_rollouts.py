"""Checks settings of rollouts: one line per fault, as `validate.py` does the others."""

from collections.abc import Iterator

from megatron_qwen3.modes import belongs
from megatron_qwen3.settings import Config


def faults(config: Config) -> Iterator[str]:
    """Faults of [rollouts], and of the sizes of its groups."""
    if belongs("rollouts", config.run.mode):
        yield from _rollout_faults(config)
    if config.run.mode == "rl":
        yield from _group_faults(config)


def _rollout_faults(config: Config) -> Iterator[str]:
    rollouts, length = config.rollouts, config.data.sequence_length
    if rollouts.max_new_tokens >= length:
        yield (
            f"rollouts.max_new_tokens = {rollouts.max_new_tokens} leaves no room for a prompt in "
            f"data.sequence_length = {length}; valid: below it"
        )
    if rollouts.thinking_budget >= rollouts.max_new_tokens:
        yield (
            f"rollouts.thinking_budget = {rollouts.thinking_budget} leaves no room for an answer "
            f"in rollouts.max_new_tokens = {rollouts.max_new_tokens}; valid: below it, or 0 for "
            "none"
        )
    if config.batch_updates > rollouts.prompts:
        yield (
            f"{config.run.mode}.updates = {config.batch_updates} exceeds rollouts.prompts = "
            f"{rollouts.prompts}: an update has whole groups; valid: 1 to {rollouts.prompts}"
        )
    if rollouts.engine == "own" and rollouts.samples > rollouts.rows:
        yield (
            f"rollouts.samples = {rollouts.samples} exceeds rollouts.rows = {rollouts.rows}: the "
            "samples of a prompt are made at once; raise rows, or lower samples"
        )
    if rollouts.engine == "own" and config.parallel.context > 1:
        yield (
            f'rollouts.engine = "own" generates where ranks have whole rows, and parallel.context '
            f'= {config.parallel.context} splits them; set rollouts.engine = "vllm", or '
            "parallel.context = 1"
        )
    if rollouts.engine == "vllm" and not (rollouts.vllm.python or rollouts.vllm.urls):
        yield (
            'rollouts.engine = "vllm" needs rollouts.vllm.python, to start servers, or '
            "rollouts.vllm.urls of servers that run"
        )


def _group_faults(config: Config) -> Iterator[str]:
    rollouts, rl = config.rollouts, config.rl
    advantage = rl.advantage
    compares = advantage.baseline != "none" or advantage.scale == "group"
    if rollouts.samples == 1 and compares and advantage.lone == "zero":
        yield (
            "rollouts.samples = 1 has nothing to compare an answer with, and rl.advantage.lone = "
            '"zero" trains nothing then; raise samples, or set rl.advantage.baseline = "none" and '
            'rl.advantage.scale = "none" or "batch"'
        )
