"""Describes a model folder in a page of text, for `convert_checkpoint.py inspect`."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from megatron_qwen3.config import ConfigError
from megatron_qwen3.convert import hf, hf_rope
from megatron_qwen3.convert.dcp import Checkpoint
from megatron_qwen3.convert.hf_config import read_long_config
from megatron_qwen3.convert.mapping import weights
from megatron_qwen3.model.flops import active_parameter_count, parameter_count
from megatron_qwen3.settings import ModelConfig
from megatron_qwen3.settings_rope import RopeConfig
from megatron_qwen3.shown import shown


def describe(path: Path) -> str:
    """Model, sizes and tensors. ConfigError where something is missing or of another shape."""
    if (path / "config.toml").is_file():
        return _checkpoint(path)
    source = hf.HFFolder(path)
    kinds = Counter(str(stored.dtype) for stored in source.tensors.values())
    files = {stored.path for stored in source.tensors.values()}
    rows = [
        (weight.parts[part], weight.part_shape(part), weight.leading)
        for weight in weights(source.model)
        for part in range(len(weight.parts))
    ]
    title = f"{shown(path)}: Hugging Face, {len(files)} safetensors file(s), {_counted(kinds)}"
    model = _model(source.model, source.rope, _beside(path))
    return "\n".join([title, *model, *_table(rows)])


def _beside(folder: Path) -> list[str]:
    """Lines on Dual Chunk Attention in config_1m.json, which only from-hf --dca reads."""
    name = hf_rope.LONG_FILE
    if not (folder / name).is_file():
        return []
    try:
        rope = read_long_config(folder).rope
    except ConfigError as error:
        return [f"{name} cannot be read: {error}"]
    return [f"{name}, for servers and from-hf --dca: {line}" for line in _long(rope)]


def _checkpoint(path: Path) -> str:
    checkpoint = Checkpoint(path)
    config, parallel = checkpoint.config, checkpoint.config.parallel
    kinds = Counter(str(dtype) for dtype in checkpoint.dtypes.values())
    moments = any("exp_avg" in key for key in checkpoint.tensors)
    sizes = [row.name for row in fields(parallel) if type(row.default) is int]
    layout = ", ".join(f"{n} {getattr(parallel, n)}" for n in sizes)
    rows = [
        (checkpoint.sources[weight.names[0]], weight.shape, weight.leading)
        for weight in weights(config.model)
    ]
    title = f"{shown(path)}: checkpoint of megatron_qwen3, {_counted(kinds)}"
    state = f"with{'' if moments else 'out'} optimizer state; written as {layout}"
    return "\n".join([title, state, *_model(config.model, config.rope), *_table(rows)])


def _counted(kinds: Counter[str]) -> str:
    return ", ".join(f"{count} × {kind.removeprefix('torch.')}" for kind, count in kinds.items())


def _model(model: ModelConfig, rope: RopeConfig, beside: Sequence[str] = ()) -> list[str]:
    total, active = parameter_count(model), active_parameter_count(model)
    sizes = ", ".join(f"{name} {value}" for name, value in vars(model).items() if value != "")
    return [f"{total:,} parameters, {active:,} active", sizes, *_long(rope), *beside, ""]


def _long(rope: RopeConfig) -> list[str]:
    """Lines on how the model reads texts beyond its trained length; none where it does not."""
    lines = []
    if rope.has_yarn:
        lines.append(
            f"YaRN: {rope.yarn_factor:g} × {rope.yarn_original_length:,} = {rope.yarn_length:,} "
            f"positions, attention factor {rope.attention_factor:.6g}"
        )
    if rope.has_dca:
        lines.append(
            f"Dual Chunk Attention: chunk_size {rope.dca_chunk_size}, local_size "
            f'{rope.dca_local_size}, rule "{rope.dca_rule}", length factor {rope.dca_scale:.6g}'
        )
    return lines


def _table(rows: list[tuple[str, tuple[int, ...], tuple[int, ...]]]) -> list[str]:
    width = max(len(name) for name, _, _ in rows)
    return [
        f"{name:<{width}}  {' × '.join(map(str, shape)):>16}"
        + "".join(f"  {n} {axis}" for n, axis in zip(leading, ("layers", "experts"), strict=False))
        for name, shape, leading in rows
    ]
