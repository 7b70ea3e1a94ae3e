"""Checks, before any rank starts, that data.tokenizer fits the model and the data."""

import hashlib

from data_prep.tokenizer_file import token_bytes, tokenizer_json
from megatron_qwen3.config import Config, ConfigError
from megatron_qwen3.hub import tokenizer_folder


def check_size(config: Config) -> int:
    """The number of tokens of data.tokenizer, 0 where none is set.

    ConfigError where it is not on this machine, or the model has fewer.
    """
    if not config.data.tokenizer:
        return 0
    tokenizer_folder(config.data.tokenizer)  # where it is not there, the error has the setting
    vocab_size, size = config.model.vocab_size, len(token_bytes(config.data.tokenizer))
    if size > vocab_size:
        raise ConfigError(
            f"data.tokenizer: {config.data.tokenizer} has {size:,} tokens, more than "
            f"model.vocab_size = {vocab_size:,}; valid: at least {size:,}"
        )
    return size


def check_is_of(config: Config, data: str, sha256: str, path: str = "") -> None:
    """ConfigError where data.tokenizer is not the tokenizer that `data` was made with.

    data: such as "data.curriculum = x.json"; sha256: of its tokenizer.json, "" if unknown; path: of
    that file.
    """
    if not config.data.tokenizer or not sha256:
        return
    file = tokenizer_json(config.data.tokenizer)
    if hashlib.sha256(file.read_bytes()).hexdigest() != sha256:
        raise ConfigError(
            f"data.tokenizer = {config.data.tokenizer} is not the tokenizer of {data}"
            f"{path and f', {path}'} (sha256 {sha256[:12]}…): token ids would mean other text"
        )
