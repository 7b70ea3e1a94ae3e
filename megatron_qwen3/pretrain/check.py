"""Checks before any rank starts that a run's data fit its model."""

import os

from data_prep import curriculum
from megatron_qwen3.config import Config, ConfigError
from megatron_qwen3.pretrain.data import Mixture
from megatron_qwen3.pretrain.evaluated import evaluated
from megatron_qwen3.pretrain.files import SourceFiles
from megatron_qwen3.pretrain.files import check as check_files
from megatron_qwen3.training import tokenizer_check


def check_inputs(config: Config, mixture: Mixture) -> None:
    """ConfigError where files are missing or cut short, or ids do not fit model or tokenizer."""
    _check_labels(config, mixture)
    vocab_size, size = config.model.vocab_size, tokenizer_check.check_size(config)
    if not config.data.curriculum:
        mixture.check_vocabulary(vocab_size)
        if size:
            _check_held_out(config, mixture, size)
        return
    mixture.check_vocabulary(vocab_size, scan_bytes=0)  # a curriculum's content is known
    _check_curriculum(config)
    if os.environ.get("RANK", "0") == "0":  # tens of thousands of files, checked once
        check_files([*mixture.files, *_idle(config, mixture)])


def _idle(config: Config, mixture: Mixture) -> list[SourceFiles]:
    """Files of sources that the stage reads nothing of, but eval.by has results of."""
    trained = set(mixture.names)
    of_results = evaluated(mixture, config).files
    return [files for files in of_results if files.source.name not in trained]


def _check_labels(config: Config, mixture: Mixture) -> None:
    """ConfigError unless every source has the labels of eval.by."""
    known = set.intersection(*(set(source.labels) for source in mixture.sources))
    for label in config.eval.by:
        if label not in known:
            names = f"valid: {', '.join(sorted(known))}" if known else "only a curriculum has any"
            raise ConfigError(f'eval.by = "{label}" is no label of the training data; {names}')


def _check_held_out(config: Config, mixture: Mixture, size: int) -> None:
    """Check the held-out ids now: bits per byte may be computed only at the end of the run."""
    for index, name in enumerate(mixture.names):
        rows = mixture.read(mixture.held_out(index, config.eval.tokens))
        highest = max(int(ids_BS.max(initial=0)) for ids_BS in (rows.tokens_BS, rows.labels_BS))
        if highest >= size:
            raise ConfigError(
                f"data.tokenizer: {config.data.tokenizer} has {size:,} tokens, but the held-out "
                f"text of data.sources.{name} has token {highest:,}; valid: the tokenizer that it "
                "was tokenized with"
            )


def _check_curriculum(config: Config) -> None:
    path = config.data.curriculum
    plan = curriculum.read(path)
    if plan.vocab_size > config.model.vocab_size:
        raise ConfigError(
            f"data.curriculum: {path} was tokenized with {plan.vocab_size:,} tokens, more than "
            f"model.vocab_size = {config.model.vocab_size:,}; valid: at least {plan.vocab_size:,}"
        )
    of = plan.tokenizer
    known, where = str(of.get("sha256") or ""), str(of.get("path"))
    tokenizer_check.check_is_of(config, f"data.curriculum = {path}", known, where)
