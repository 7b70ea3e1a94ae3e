"""Loads weights from our checkpoints, verified, or from folders of Hugging Face's format.

    source = find("runs/stage_1")           # or a checkpoint, or a folder with config.json
    model_of(source)                        # ConfigError where it is not a whole Qwen3
    check_model(config, source)             # compares all settings that change the computation
    fill(model, source, verify="full")      # all ranks of a Model, whatever its layout

Hugging Face's folder is not converted first. Tensors of ours consist of whole rows of its tensors
(`mapping.py`), so it is read as a checkpoint whose chunks lie in safetensors files, and every rank
reads its own rows. Numbers of another type than the model's are rounded while they are read, to the
nearest, ties to even.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from megatron_qwen3 import config as settings
from megatron_qwen3 import launcher
from megatron_qwen3.convert import hf, hf_config
from megatron_qwen3.convert.mapping import EXPERT_SHARE, SCALAR_HEAD, Weight, weights
from megatron_qwen3.settings import Config, ConfigError, ModelConfig
from megatron_qwen3.settings_rope import RopeConfig
from megatron_qwen3.shown import shown
from megatron_qwen3.storage import folder as folders
from megatron_qwen3.storage.load import faults, load
from megatron_qwen3.storage.table import CheckpointTable, StoredChunk, StoredTensor, read_table
from megatron_qwen3.toml import emit

if TYPE_CHECKING:
    from megatron_qwen3.training.model import Model


# Settings on how a model is made and trained, which do not change its computation.
_OF_TRAINING = ("preset", "kind", "init_std", "router_aux_loss", "router_balance")
CHANGEABLE = ("rope_theta", "norm_eps", "rope")
"""Settings that a stage, or a generation, may change on purpose; shapes do not depend on them.
"rope" is the table: with another base or YaRN a model learns longer texts."""


def find(path: str) -> Path:
    """A folder of Hugging Face's format, a checkpoint, or the newest of a run. ConfigError."""
    folder = Path(path)
    return folder if folders.is_hf(folder) else folders.find(path)


def model_of(source: Path) -> ModelConfig:
    """The settings of a source's model; in Hugging Face's format all tables are checked."""
    return _of(source)[0]


def _of(source: Path) -> tuple[ModelConfig, RopeConfig]:
    if folders.is_hf(source):
        theirs = hf.HFFolder(source)
        return theirs.model, theirs.rope
    saved = settings.load([source / folders.SETTINGS_FILE])
    return saved.model, saved.rope


def check_there(name: str, path: str) -> None:
    """ConfigError, which begins with a setting's name, where its folder has no readable weights;
    whether a checkpoint is whole is checked when it is loaded."""
    try:
        model_of(find(path))
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None


def begins_head(model: ModelConfig, source: Path) -> bool:
    """Whether a reward model begins with a language model's weights, and so with a fresh head."""
    return model.head == "scalar" and model_of(source).head == "vocabulary"


def check_model(wanted: Config, source: Path, free: Sequence[str] = ()) -> None:
    """ConfigError where a source's model computes differently.

    free: settings that may differ, or "rope", the table. A reward model has no output layer to be
    tied.
    """
    model, rope = _of(source)
    is_scalar = wanted.model.head == "scalar"
    free = (*free, *_OF_TRAINING, *(("tie_embeddings",) if is_scalar else ()))
    tables = {"model": (wanted.model, model)} | (
        {} if "rope" in free else {"rope": (wanted.rope, rope)}
    )
    for table, (now, saved) in tables.items():
        for name, value in vars(now).items():
            if name not in free and value != getattr(saved, name):
                before, (mine, its) = emit(getattr(saved, name)), _presets(wanted.model, model)
                raise ConfigError(
                    f"{table}.{name} = {emit(value)}{mine}, but {source} was saved with "
                    f"{before}{its}; weights stay in the model that they were trained in"
                )


def _presets(*models: ModelConfig) -> list[str]:
    """The preset of each model, if all have one and they differ."""
    names = [model.preset for model in models]
    differ = all(names) and len({*names}) > 1
    return [f" (preset {name})" if differ else "" for name in names]


def changed(wanted: Config, source: Path) -> list[str]:
    """A line for each setting of CHANGEABLE whose value differs from the source's."""
    model, rope = _of(source)
    before = {name: getattr(model, name) for name in CHANGEABLE if name != "rope"}
    saved = replace(wanted, model=replace(wanted.model, **before), rope=rope)
    return settings.changes(saved, wanted)


def fill(
    model: Model,
    source: Path,
    verify: str,
    preferred: str = "",
    fresh_head: bool = False,
    free: Sequence[str] = (),
) -> None:
    """Read a source's weights into a model; all ranks call it.

    verify: checkpoint.verify: a checkpoint's files must have their sizes, with "full" also their
    checksums; "" needs no manifest. Hugging Face's files have no checksums: their tables and sizes
    are checked.
    preferred: see `storage/load.py`; fresh_head: see `begins_head`: the head stays as it is;
    free: settings of the model that may differ from the source's, such as CHANGEABLE.
    ConfigError, on all ranks, where one of them finds the source damaged or of another model.
    """
    check_model(model.config, source, (*free, "head") if fresh_head else free)
    is_hf = folders.is_hf(source)
    note = hf_config.chunks_left_out(source, model.config.rope) if is_hf else ""
    if note and launcher.rank() == 0:
        print(shown(note), file=sys.stderr)
    if verify and not is_hf:
        check_intact(source, verify == "full")
    lacking = {EXPERT_SHARE} if is_hf else set()
    lacking |= {SCALAR_HEAD} if fresh_head else set()
    template, others = _without(model.template(), lacking)
    loaded = load(template, source, preferred, read=read_weights)
    model.take_weights({name: part | others[name] for name, part in loaded.items()})


def check_intact(checkpoint: Path, in_full: bool) -> None:
    """ConfigError on all ranks, which all call it, where one finds it damaged."""
    if found := faults(checkpoint, in_full):
        raise ConfigError(f"{checkpoint} is damaged: {'; '.join(found[:3])}")


def read_weights(source: Path) -> CheckpointTable:
    """The place of each tensor of ours in a checkpoint, or in a folder of Hugging Face's format."""
    if not folders.is_hf(source):
        return read_table(source)
    theirs = hf.HFFolder(source)
    stored: dict[str, StoredTensor] = {}
    for weight in weights(theirs.model):
        chunks = tuple(_chunks(theirs, weight))
        tensor = StoredTensor(weight.stacked_shape, chunks[0].dtype, chunks)
        stored |= dict.fromkeys(weight.names, tensor)
    return CheckpointTable(stored, {})


class _Rows(StoredChunk):
    """A chunk without an archive around it: its elements begin at its start."""

    @property
    def data_start(self) -> int:
        return self.start


def _chunks(source: hf.HFFolder, weight: Weight) -> Iterator[_Rows]:
    """Rows of Hugging Face's tensors as parts of the tensor of ours that consists of them."""
    for index in weight.indices():
        for piece in weight.pieces():
            tensor = source.tensors[weight.part_name(piece.part, index)]
            shape = (weight.columns,) if weight.vector else (piece.rows, weight.columns)
            offsets = (0,) if weight.vector else (piece.row, 0)
            row_bytes = weight.columns * tensor.dtype.itemsize
            yield _Rows(
                path=tensor.path,
                start=tensor.start + piece.part_row * row_bytes,
                length=piece.rows * row_bytes,
                offsets=(*index, *offsets),
                shape=(1,) * len(index) + shape,
                dtype=str(tensor.dtype).removeprefix("torch."),
            )


def _without(described: dict[str, Any], lacking: set[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The chunks to read from a source, and those that it lacks, at their initial values.

    The latter are each expert's share of the last step's tokens, which is even before the first
    step, and the head of a reward model, which stays as it is.
    """
    template: dict[str, Any] = {}
    others: dict[str, Any] = {}
    for name, chunk in described.items():
        own = {key: entry for key, entry in chunk.items() if entry.key in lacking}
        template[name] = {key: entry for key, entry in chunk.items() if key not in own}
        others[name] = {key: _at_the_start(entry) for key, entry in own.items()}
    return template, others


def _at_the_start(entry: Any) -> Tensor:
    tensor: Tensor = entry.data.detach()
    if entry.key == EXPERT_SHARE:
        return torch.full_like(tensor, 1 / tensor.shape[-1])
    return tensor
