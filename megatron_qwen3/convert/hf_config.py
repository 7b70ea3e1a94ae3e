"""Translates between config.json of Hugging Face's Qwen3 and our model settings.

    read = read_config(folder)          # .fields as they are, .model and .rope as our settings
    write_config(folder, model, rope, …)

A field of config.json that changes the model in a way that ours cannot is refused by name: a
converted model must compute the same. We write the field names of transformers 4 and 5 side by
side, because each silently falls back to its defaults where it finds only the other's. `hf_rope.py`
translates positions.
"""

import json
from pathlib import Path
from typing import Any, Final, NamedTuple

from megatron_qwen3 import config as settings
from megatron_qwen3.config import Config, ConfigError
from megatron_qwen3.convert.foreign import read_json
from megatron_qwen3.convert.hf_rope import (
    DCA_FIELD,
    LONG_FILE,
    dca_fields,
    dca_values,
    rope_fields,
    rope_values,
)
from megatron_qwen3.presets import PRESETS
from megatron_qwen3.settings import DataConfig, ModelConfig, RunConfig, TrainConfig
from megatron_qwen3.settings_rope import MOST_POSITIONS, RopeConfig
from megatron_qwen3.storage.inside import check_links
from megatron_qwen3.toml import emit

# Our setting, the names of its field in config.json. A required field has no default.
_FIELDS: Final = (
    ("num_layers", ("num_hidden_layers",)),
    ("hidden_size", ("hidden_size",)),
    ("ffn_hidden_size", ("intermediate_size",)),
    ("num_attention_heads", ("num_attention_heads",)),
    ("num_query_groups", ("num_key_value_heads",)),
    ("head_dim", ("head_dim",)),
    ("vocab_size", ("vocab_size",)),
    ("norm_eps", ("rms_norm_eps",)),
)
_SPARSE_FIELDS: Final = (
    ("num_experts", ("num_experts", "num_local_experts")),
    ("experts_per_token", ("num_experts_per_tok",)),
    ("expert_ffn_hidden_size", ("moe_intermediate_size",)),
)
_OPTIONAL: Final = (
    ("tie_embeddings", ("tie_word_embeddings",), False),
    ("init_std", ("initializer_range",), 0.02),
)
# Fields with the only values that our model computes; an absent one has the first.
_FIXED: Final[dict[str, tuple[Any, ...]]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "attention_dropout": (0.0, None),
    "use_sliding_window": (False, None),
    "quantization_config": (None,),
    "partial_rotary_factor": (1.0, None),
    "mlp_bias": (False, None),
    "shared_expert_intermediate_size": (None, 0),
    "num_shared_experts": (None, 0),
    "n_shared_experts": (None, 0),
}
_FIXED_SPARSE: Final[dict[str, tuple[Any, ...]]] = {
    "norm_topk_prob": (True,),
    "decoder_sparse_step": (1,),
    "mlp_only_layers": ([], None),
}
Ids = dict[str, int | list[int]]  # of the roles "bos", "eos" and "pad"
_KINDS: Final = {"qwen3": "Qwen3", "qwen3_moe": "Qwen3Moe"}
_HEADS: Final = {"ForCausalLM": "vocabulary", "ForSequenceClassification": "scalar"}
# transformers counts labels by these names only, and assumes two without them.
_ONE_LABEL: Final = {"num_labels": 1, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}


class HfConfig(NamedTuple):
    """config.json: its fields as they are, and our settings for them."""

    fields: dict[str, Any]
    model: ModelConfig
    rope: RopeConfig


def read_config(folder: Path) -> HfConfig:
    """A model without Dual Chunk Attention. ConfigError names the field that does not fit."""
    return _read(folder / "config.json")


def read_long_config(folder: Path) -> HfConfig:
    """The same model with Dual Chunk Attention, from config_1m.json, or from config.json if that
    has it.

    ConfigError where neither has it, or the two files describe different models.
    """
    plain = read_config(folder)
    name = LONG_FILE if (folder / LONG_FILE).is_file() else "config.json"
    long = _read(folder / name, with_dca=True)
    if long.model != plain.model:
        raise ConfigError(f"{folder / name} is of another model than config.json beside it")
    return long


def has_dca(folder: Path) -> list[str]:
    """The files of a folder that have Dual Chunk Attention."""
    files = [folder / name for name in ("config.json", LONG_FILE)]
    return [str(f) for f in files if f.is_file() and DCA_FIELD in read_json(f, "no model")]


def chunks_left_out(folder: Path, rope: RopeConfig) -> str:
    """A note where config.json itself has Dual Chunk Attention, as in Qwen's files for servers, but
    `rope`, of the model that takes its weights, has not; else ""."""
    path = folder / "config.json"
    given = read_json(path, "no model").get(DCA_FIELD)
    if given is None or rope.has_dca:
        return ""
    return (
        f"note: {path}: {DCA_FIELD} = {given!r:.80} is left out and attention is plain; "
        "rope.dca_chunk_size and rope.dca_local_size say otherwise"
    )


def _read(path: Path, with_dca: bool = False) -> HfConfig:
    folder = path.parent
    if folder.is_dir():
        check_links(folder)
    config = read_json(path, "no model of Hugging Face's format")
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ConfigError(f"{path}: model_type = {kind!r} is not Qwen3; valid: {', '.join(_KINDS)}")
    head = _head(path, config, _KINDS[kind])
    sparse = kind == "qwen3_moe"
    _check_fixed(path, config, _FIXED | (_FIXED_SPARSE if sparse else {}))
    fields = _FIELDS + (_SPARSE_FIELDS if sparse else ())
    values = {f"model.{ours}": _field(path, config, names) for ours, names in fields}
    values |= {f"model.{ours}": config.get(names[0], usual) for ours, names, usual in _OPTIONAL}
    values |= rope_values(path, config)
    values["model.head"] = head
    if sparse:
        values["model.router_aux_loss"] = config.get("router_aux_loss_coef", 0.001)
    if with_dca and DCA_FIELD not in config:
        raise ConfigError(f"{path}: {DCA_FIELD} is missing, and {LONG_FILE} beside it has none")
    if with_dca:
        values |= dca_values(path, config)
    return HfConfig(config, *_settings(path, values))


def _head(path: Path, config: dict[str, Any], kind: str) -> str:
    """model.head of an architecture. ConfigError where a reward model has not one label."""
    heads = {kind + task: head for task, head in _HEADS.items()}
    architectures = config.get("architectures") or [next(iter(heads))]
    if architectures not in [[name] for name in heads]:
        valid = " or ".join(str([name]) for name in heads)
        raise ConfigError(f"{path}: architectures = {architectures}; valid: {valid}")
    (name,) = architectures
    labels = config.get("id2label") or {}
    count = len(labels) if labels and isinstance(labels, dict) else config.get("num_labels", 2)
    if heads[name] == "scalar" and count != 1:
        raise ConfigError(
            f"{path}: architectures = {architectures} with {count} labels (id2label, num_labels); "
            "a reward model has 1"
        )
    return heads[name]


def settings_of(read: HfConfig, precision: str, tokenizer: str) -> Config:
    """The settings of a converted checkpoint, which no run of ours trained."""
    length = read.fields.get("max_position_embeddings") or 32768
    mode = "reward" if read.model.head == "scalar" else "pretrain"
    return Config(
        run=RunConfig(mode=mode),
        model=read.model,
        rope=read.rope,
        data=DataConfig(sequence_length=length, tokenizer=tokenizer),
        train=TrainConfig(steps=1, precision=precision),
    )


def write_config(
    folder: Path, model: ModelConfig, rope: RopeConfig, positions: int, dtype: str, ids: Ids
) -> None:
    """config.json for transformers 4 and 5. `dtype`: "bfloat16"; `ids`: see `hf_files.py`.

    positions: its length without YaRN. It has no fields of Dual Chunk Attention. ConfigError for
    a reward model without "pad": transformers finds the last token by it.
    """
    kind = "qwen3_moe" if model.num_experts else "qwen3"
    fields = _FIELDS + (_SPARSE_FIELDS if model.num_experts else ())
    task = next(task for task, head in _HEADS.items() if head == model.head)
    config: dict[str, Any] = {"architectures": [_KINDS[kind] + task], "model_type": kind}
    config |= {name: getattr(model, ours) for ours, names in fields for name in names}
    config |= {names[0]: getattr(model, ours) for ours, names, _ in _OPTIONAL}
    config |= {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "max_window_layers": model.num_layers,
        "sliding_window": None,
        "use_sliding_window": False,
        "use_cache": True,
        "torch_dtype": dtype,
        "dtype": dtype,
        "bos_token_id": ids.get("bos"),
        "eos_token_id": ids.get("eos"),
    }
    config |= rope_fields(model.rope_theta, rope, positions)
    if "pad" in ids:
        config["pad_token_id"] = ids["pad"]
    if model.head == "scalar":
        config |= _ONE_LABEL
        if "pad" not in ids:
            raise ConfigError(
                f"{folder}: the id of the padding token is not known, by which transformers finds "
                "the last token of an answer; --tokenizer FOLDER names a tokenizer that has one"
            )
    if model.num_experts:
        config |= {
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "norm_topk_prob": True,
            "output_router_logits": False,
            "router_aux_loss_coef": model.router_aux_loss,
        }
    write_json(folder / "config.json", dict(sorted(config.items())))


def write_long_config(folder: Path, rope: RopeConfig, length: int) -> None:
    """config_1m.json: the config.json of the folder, with Dual Chunk Attention.

    length: most tokens for servers. ConfigError where they cannot run it as set.
    """
    path = folder / "config.json"
    config = read_json(path, "no model of Hugging Face's format")
    write_json(folder / LONG_FILE, dict(sorted((config | dca_fields(rope, length)).items())))


def _check_fixed(path: Path, config: dict[str, Any], fixed: dict[str, tuple[Any, ...]]) -> None:
    for name, valid in fixed.items():
        default = False if name == "norm_topk_prob" else valid[0]  # transformers' default
        value = config.get(name, default)
        if value not in valid:
            raise ConfigError(f"{path}: {name} = {value!r}, but Qwen3 has {valid[0]!r}")
    kinds = config.get("layer_types") or []
    if not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds):
        raise ConfigError(f"{path}: layer_types = {kinds!r:.80}, but Qwen3 has 'full_attention'")
    length = config.get("max_position_embeddings")
    if length is not None and (type(length) is not int or not 0 < length < MOST_POSITIONS):
        raise ConfigError(
            f"{path}: max_position_embeddings = {length!r:.80} is not a number above 0, "
            f"and below {MOST_POSITIONS}"
        )


def _field(path: Path, config: dict[str, Any], names: tuple[str, ...]) -> Any:
    values = [config[name] for name in names if name in config]
    if not values:
        raise ConfigError(f"{path}: {' or '.join(names)} is missing")
    if any(value != values[0] for value in values):
        raise ConfigError(f"{path}: {' and '.join(names)} are not equal: {values}")
    return values[0]


def _settings(path: Path, values: dict[str, Any]) -> tuple[ModelConfig, RopeConfig]:
    """Settings, checked like those of a run, types included."""
    mode = "reward" if values["model.head"] == "scalar" else "pretrain"
    lines = [f"{name}={emit(value)}" for name, value in values.items()]
    lines += [f"run.mode={mode}", "train.steps=1"]
    defaults = [] if values.get("model.num_experts") else ["model.num_experts=0"]
    try:
        config = settings.load([], [*lines, *defaults])
    except ConfigError as error:
        text = str(error).replace("command line: ", "")
        raise ConfigError(f"{path}: {text}") from None
    for name, preset in PRESETS.items():
        if all(getattr(config.model, key) == value for key, value in preset.items()):
            lines = [f"model.preset={name}", f"model.head={config.model.head}"]
            lines += [f"run.mode={mode}", "train.steps=1"]
            return settings.load([], lines).model, config.rope
    return config.model, config.rope


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
