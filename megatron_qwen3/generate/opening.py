"""From what was checked to a model that answers, on this rank.

    session = opened(source, config, tokenizer, encoder, options)
    session.prompts(requests)
    close()

torch and megatron-core are imported here, not before: something wrong costs no seconds.
"""

import argparse
import os
import warnings
from typing import TYPE_CHECKING

import tokenizers

from megatron_qwen3.config import Config
from megatron_qwen3.generate.load import Source, load, stop_ids
from megatron_qwen3.generate.requests import Encoder
from megatron_qwen3.generate.thinking import ThinkingBudget

if TYPE_CHECKING:
    from megatron_qwen3.generate.session import Session


def opened(
    source: Source,
    config: Config,
    tokenizer: tokenizers.Tokenizer,
    encoder: Encoder,
    options: argparse.Namespace,
) -> "Session":
    """Join the other ranks and load the model. ConfigError where a thinking budget has no tags."""
    ends, budget = stop_ids(source, config, tokenizer), None
    if options.thinking_budget is not None:
        budget = ThinkingBudget.of(tokenizer, options.thinking_budget)
    if config.run.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    warnings.filterwarnings("ignore", module=r"torch|megatron")
    from megatron_qwen3.generate.engine import Generator
    from megatron_qwen3.generate.session import Session
    from megatron_qwen3.parallel import runtime

    layout = runtime.start(config)
    generator = Generator(load(source, config, layout))
    reach = source.reach(config.rope)
    return Session(generator, tokenizer, encoder, budget, ends, options, reach)


def close() -> None:
    """Leave the other ranks."""
    from megatron_qwen3.parallel import runtime

    runtime.stop()
