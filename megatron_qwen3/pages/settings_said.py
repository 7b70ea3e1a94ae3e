"""Looks up a setting of a run that is over, by its names: said(run, "rl", "entropy", "low")."""

import contextlib
from typing import Any

from megatron_qwen3.config import ConfigError
from megatron_qwen3.toml import parse
from megatron_qwen3.training.history import RunHistory


def said(run: RunHistory, *names: str) -> Any:
    """The value in the run's config.toml; "" where that is not known."""
    with contextlib.suppress(ConfigError, AttributeError):  # no TOML, or no table
        found: Any = parse(run.config_text, run.name, "a run's settings")
        for name in names:
            found = found.get(name, "")
        return found
    return ""
