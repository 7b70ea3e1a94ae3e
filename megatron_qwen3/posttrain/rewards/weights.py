"""The weights of a reward's parts: a run's, overridden by a source's, then by a task's.

    weights = of_source(config.rl.rewards, source.rewards)    # {"verifier": 1.0, "format": 0.1, …}
    weights = weights | task.rewards                           # a task's own come last

A named weight replaces the one before it; the others stay. Nothing imports torch.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from megatron_qwen3.fields import ConfigError
from megatron_qwen3.settings_rl import RewardWeightsConfig
from megatron_qwen3.toml import did_you_mean

PARTS = tuple(row.name for row in fields(RewardWeightsConfig))


def of_source(table: RewardWeightsConfig, given: Sequence[str]) -> dict[str, float]:
    """The weight of every part. ConfigError where a given one is invalid."""
    return asdict(table) | parsed(given)


def parsed(given: Sequence[str]) -> dict[str, float]:
    """`["verifier=1.0", "judge=0.5"]` as a table. ConfigError names a wrong one."""
    found: dict[str, float] = {}
    for text in given:
        name, equals, value = text.partition("=")
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not equals or not math.isfinite(number):
            raise ConfigError(f"{text!r:.80} is no weight; write NAME=NUMBER, as verifier=1.0")
        if name in found:
            raise ConfigError(f"{name} has two weights, {found[name]} and {number}")
        found[name] = number
    check(found)
    return found


def check(weights: Mapping[str, Any]) -> None:
    """ConfigError where a name is not a part, or a weight is not a number."""
    for name, value in weights.items():
        if name not in PARTS:
            guess = did_you_mean(name, PARTS) or f"; valid: {', '.join(PARTS)}"
            raise ConfigError(f"{name!r:.60} is no part of a reward{guess}")
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value):
            raise ConfigError(f"the weight of {name} is {value!r:.60}; valid: a number")
