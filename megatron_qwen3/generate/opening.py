"""Opens a model for a command on this rank: checks the arguments first, then loads.

    source, config = checked(Path("runs/sft"), ["parallel.tensor=2"])
    …                                     # check the rest of the command line
    layout = joined(config)               # torch and megatron-core are imported here, not before
    model = load(source, config, layout)
    close()

    session = opened(source, config, tokenizer, encoder, options)   # joined, with a generator

Wrong arguments are reported before the seconds of importing and loading.
"""

import argparse
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import tokenizers

from megatron_qwen3 import launcher
from megatron_qwen3.config import Config
from megatron_qwen3.generate.load import ModelSource, load, stop_ids
from megatron_qwen3.generate.requests import Encoder
from megatron_qwen3.generate.thinking import ThinkingBudget
from megatron_qwen3.parallel.layout import Layout, check_world_size

if TYPE_CHECKING:
    from megatron_qwen3.generate.session import Session


def checked(
    path: Path, settings: list[str], head: str = "vocabulary", generates: bool = True
) -> tuple[ModelSource, Config]:
    """The model at `path` and its settings for these ranks, as `ModelSource.config` has them.

    ConfigError where the environment, the model or its layout is wrong.
    """
    launcher.check()
    source, world_size = ModelSource(path), launcher.world_size()
    config = source.config(settings, world_size, head, generates)
    check_world_size(config, world_size)
    return source, config


def joined(config: Config) -> Layout:
    """Join the other ranks; `close` leaves them."""
    if config.run.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    warnings.filterwarnings("ignore", module=r"torch|megatron")
    from megatron_qwen3.parallel import runtime

    return runtime.start(config)


def opened(
    source: ModelSource,
    config: Config,
    tokenizer: tokenizers.Tokenizer,
    encoder: Encoder,
    options: argparse.Namespace,
) -> "Session":
    """Join the other ranks and load the model. ConfigError where a thinking budget has no tags."""
    ends, budget = stop_ids(source, config, tokenizer), None
    if options.thinking_budget is not None:
        budget = ThinkingBudget.of(tokenizer, options.thinking_budget)
    layout = joined(config)
    from megatron_qwen3.generate.engine import Generator
    from megatron_qwen3.generate.session import Session

    generator = Generator(load(source, config, layout))
    reach = source.reach(config.rope)
    return Session(generator, tokenizer, encoder, budget, ends, options, reach)


def close() -> None:
    """Leave the other ranks."""
    from megatron_qwen3.parallel import runtime

    runtime.stop()
