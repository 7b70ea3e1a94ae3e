"""What samples a run's rollouts: `with open_engine(config, model, tokenizer, beat) as engine`.

rollouts.engine says which; all ranks open and ask it alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from megatron_qwen3.generate.load import ends_of
from megatron_qwen3.generate.thinking import ThinkingBudget
from megatron_qwen3.posttrain.rollouts.own import OwnEngine
from megatron_qwen3.posttrain.rollouts.rollout import RolloutEngine
from megatron_qwen3.settings import Config
from megatron_qwen3.training.model import Model


@contextmanager
def open_engine(
    config: Config, model: Model, tokenizer: Any, beat: Callable[[], None]
) -> Iterator[RolloutEngine]:
    """The engine of the settings, closed at the end. beat: is called while it samples."""
    rollouts = config.rollouts
    yield OwnEngine(
        model,
        ends_of([Path(config.data.tokenizer)], tokenizer),
        rollouts.temperature,
        rollouts.rows,
        partial(ThinkingBudget.of, tokenizer),
        beat,
    )
