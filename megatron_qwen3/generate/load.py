"""A model to generate with, from a checkpoint of ours or a folder of Hugging Face's format.

source = Source(Path("runs/stage_3"))
config = source.config(["parallel.tensor=2"], world_size=2)  # no torch until here
model = load(source, config, layout)  # after runtime.start(config)
"""

import os
import sys
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_qwen3 import config as settings
from megatron_qwen3.config import Config, ConfigError
from megatron_qwen3.convert.hf_config import read_config
from megatron_qwen3.convert.hf_files import end_ids, has_tokenizer
from megatron_qwen3.parallel.layout import Layout
from megatron_qwen3.shown import shown
from megatron_qwen3.storage.folder import checkpoints, find, is_hf
from megatron_qwen3.toml import emit

_ENDS = ("<|im_end|>", "<|endoftext|>")
_MODE_OF = {"vocabulary": "pretrain", "scalar": "reward"}
_USE_OF = {
    "vocabulary": "a language model, which writes text (mq3 generate); answers are scored by a "
    'reward model, of run.mode = "reward" or transformers\' Qwen3ForSequenceClassification',
    "scalar": "a reward model, which writes no text: mq3 score-answers scores answers with it",
}

if TYPE_CHECKING:
    from megatron_qwen3.training.model import Model


class Source:
    """Where weights and tokenizer come from.

    ConfigError where `path` is neither format, or the checkpoint, or a run's newest, is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.is_hf = path, is_hf(path)
        if self.is_hf:
            return
        is_one = (path / "config.toml").is_file() and (path / "metadata.json").is_file()
        if not is_one and not checkpoints(path):
            raise ConfigError(
                f"{path} is no checkpoint (config.toml), no run folder with one (checkpoints/) "
                "and no folder of Hugging Face's format (config.json)"
            )
        self.path = find(str(path))

    def config(self, overrides: list[str], world_size: int, head: str = "vocabulary") -> Config:
        """Settings to generate with: the model's own, one rank per part unless overrides say more.

        What the model was trained with, but its precision and tokenizer, has no part in it.
        head: "scalar" to score answers. ConfigError where the model has the other one.
        """
        model, precision, tokenizer = self._read()
        if model.head != head:
            raise ConfigError(f"{self.path} is {_USE_OF[model.head]}")
        values = {f"model.{field.name}": getattr(model, field.name) for field in fields(model)}
        values |= {
            "run.mode": _MODE_OF[head],
            "train.steps": 1,
            "train.global_batch": world_size,
            "train.precision": precision,
            "data.sequence_length": 1024 * world_size,  # any; tensor ranks must divide it
            "data.tokenizer": tokenizer,
        }
        lines = [f"{name}={emit(value)}" for name, value in values.items()]
        config = settings.load([], [*lines, *overrides])
        for name, size in vars(model).items():
            if type(size) in (int, bool) and getattr(config.model, name) != size:
                raise ConfigError(
                    f"model.{name} = {emit(getattr(config.model, name))}, but {self.path} "
                    f"has {emit(size)}, which cannot be changed"
                )
        return config

    def _read(self) -> tuple[Any, str, str]:
        """Settings of the model, precision, and where the tokenizer is."""
        if self.is_hf:
            fields_of_hf, model = read_config(self.path)
            dtype = fields_of_hf.get("dtype") or fields_of_hf.get("torch_dtype")
            if not isinstance(dtype, str):
                from megatron_qwen3.convert.hf import Source as Tensors

                dtype = str(Tensors(self.path).tensors["model.embed_tokens.weight"].dtype)
            is_bf16 = dtype.removeprefix("torch.") == "bfloat16"
            return model, "bf16" if is_bf16 else "fp32", str(self.path)
        saved = settings.load([self.path / "config.toml"])
        own = self.path / "tokenizer"
        return (
            saved.model,
            saved.train.precision,
            str(own if has_tokenizer(own) else saved.data.tokenizer),
        )


def tokenizer_of(config: Config) -> Any:
    """ConfigError where the settings name none, it is gone, or the model has too few embeddings."""
    from data_prep import tokenizer, tokenizer_file

    named = config.data.tokenizer
    if not named:
        raise ConfigError("the checkpoint names no tokenizer; set data.tokenizer=FOLDER")
    file = Path(named) / "tokenizer.json" if Path(named).is_dir() else Path(named)
    if not file.is_file():
        raise ConfigError(f"data.tokenizer = {named}: {file} does not exist; set data.tokenizer=")
    if (note := tokenizer_file.cut_note(file)) and os.environ.get("RANK", "0") == "0":
        print(shown(note), file=sys.stderr)
    loaded = tokenizer.load(file)
    size, vocabulary = 1 + max(loaded.get_vocab().values()), config.model.vocab_size
    if size > vocabulary:
        raise ConfigError(
            f"data.tokenizer = {named} has {size:,} tokens, more than model.vocab_size = "
            f"{vocabulary:,}; valid: the tokenizer that the model was trained with"
        )
    return loaded


def stop_ids(source: Source, config: Config, tokenizer: Any) -> list[int]:
    """Every id that ends a text: of Qwen3's format, and as config.json and its like say."""
    folders = [Path(config.data.tokenizer), source.path, source.path / "tokenizer"]
    return ends_of(folders, tokenizer)


def ends_of(folders: Iterable[Path], tokenizer: Any) -> list[int]:
    """Every id that ends a text: of Qwen3's format, and as these folders say."""
    ids = {number for folder in folders for number in end_ids(folder)}
    ids |= {tokenizer.token_to_id(token) for token in _ENDS}
    return sorted(number for number in ids if number is not None)


def load(source: Source, config: Config, layout: Layout) -> "Model":
    """The model of this rank with the source's weights, verified; all ranks call it."""
    from megatron_qwen3.convert.load import CHANGEABLE, fill
    from megatron_qwen3.training.model import Model

    model = Model(config, layout)
    fill(model, source.path, config.checkpoint.verify, free=CHANGEABLE)
    return model
