"""Translates positions between config.json and our settings: base, YaRN, Dual Chunk Attention.

    values = rope_values(path, config)          # of model.rope_theta and [rope], by dotted name
    config |= rope_fields(theta, rope, positions)

transformers 4 reads `rope_theta` and `rope_scaling`, 5 reads `rope_parameters`, and each silently
takes a default where it finds only the other's: both are written, and must be equal where both are
read. Missing values are never guessed: transformers 5 would take max_position_embeddings for the
original length, and 10,000 for the base, which differ from training.

Dual Chunk Attention is never written to config.json: transformers ignores it there, vLLM from 0.11
on does not start with it. Qwen has it in `config_1m.json` beside, and so do we.
"""

import math
from pathlib import Path
from typing import Any, Final

from megatron_qwen3.config import ConfigError
from megatron_qwen3.settings_rope import RopeConfig

LONG_FILE: Final = "config_1m.json"
DCA_FIELD: Final = "dual_chunk_attention_config"
_SOURCES: Final = ("rope_scaling", "rope_parameters")  # transformers prefers the first
_OF_ANY: Final = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
_OF_YARN: Final = {
    *("factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "truncate"),
    *("attention_factor", "attn_factor", "mscale", "mscale_all_dim", "finetuned"),
}
_DCA_DEFAULTS: Final = {  # vLLM's
    "chunk_size": 8192,
    "local_size": 1024,
    "original_max_position_embeddings": 0,
}
_SAME_SCALE: Final = 1e-3  # tolerance: an original length is a whole number
_SPARSE: Final = {"sparse_attention_enabled", "sparse_attention_config"}  # an approximation


def rope_values(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """model.rope_theta and settings of YaRN, those that are not plain, by dotted name.

    config: the content of `path`. ConfigError for kinds of positions other than Qwen3's and YaRN's,
    for missing fields, and where two fields disagree.
    """
    thetas: dict[str, Any] = {"rope_theta": config.get("rope_theta")}
    found: dict[str, dict[str, Any]] = {}
    for source in _SOURCES:
        rope = config.get(source)
        if rope is None or rope == {}:
            continue
        if not isinstance(rope, dict):
            raise ConfigError(f"{path}: {source} = {rope!r:.80} is no table")
        found[source] = _yarn_of(path, source, rope, config)
        thetas[f"{source}.rope_theta"] = rope.get("rope_theta")
    if len(found) == 2 and found["rope_scaling"] != found["rope_parameters"]:
        raise ConfigError(
            f"{path}: rope_scaling = {config['rope_scaling']} and rope_parameters = "
            f"{config['rope_parameters']} do not agree; transformers 4 takes the first; keep one"
        )
    yarn = next(iter(found.values()), {})
    return {"model.rope_theta": _theta(path, thetas), **yarn}


def rope_fields(theta: float, rope: RopeConfig, positions: int) -> dict[str, Any]:
    """Fields of config.json for transformers 4 and 5. positions: length of a model without YaRN.

    With YaRN max_position_embeddings is factor · original: older releases of transformers 4 take
    the factor from that alone, and 5 warns where it is another.
    """
    if not rope.has_yarn:
        return {
            "max_position_embeddings": positions,
            "rope_parameters": {"rope_type": "default", "rope_theta": theta},
            "rope_scaling": None,
            "rope_theta": theta,
        }
    scaling: dict[str, Any] = {
        "rope_type": "yarn",
        "factor": rope.yarn_factor,
        "original_max_position_embeddings": rope.yarn_original_length,
    }
    usual = RopeConfig()
    scaling |= {
        name: getattr(rope, f"yarn_{name}")
        for name in ("beta_fast", "beta_slow", "truncate", "attention_factor")
        if getattr(rope, f"yarn_{name}") != getattr(usual, f"yarn_{name}")
    }
    return {
        "max_position_embeddings": rope.yarn_length,
        "rope_parameters": {**scaling, "rope_theta": theta},
        "rope_scaling": scaling,
        "rope_theta": theta,
    }


def dca_values(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Settings of Dual Chunk Attention, by dotted name, of a file that has them.

    In Qwen's inference the length factor grows with a text, so that earlier parts were read with
    another one; ours is fixed at that of max_position_embeddings. ConfigError for unknown fields,
    and for YaRN beside it, which servers with this field ignore.
    """
    given = config[DCA_FIELD]
    if not isinstance(given, dict) or not given.keys() <= {*_DCA_DEFAULTS, *_SPARSE}:
        known = ", ".join([*_DCA_DEFAULTS, *sorted(_SPARSE)])
        raise ConfigError(f"{path}: {DCA_FIELD} = {given!r:.80}; valid: a table of {known}")
    size, local, original = (
        _whole(path, f"{DCA_FIELD}.{name}", given.get(name, usual))
        for name, usual in _DCA_DEFAULTS.items()
    )
    if len(rope_values(path, config)) > 1:
        raise ConfigError(
            f"{path}: rope_scaling with {DCA_FIELD}: readers of the second ignore the first; "
            "remove one of them, and set [rope] yourself where both are meant"
        )
    values = {"rope.dca_chunk_size": size, "rope.dca_local_size": local}
    if not original:
        return values
    length = config.get("max_position_embeddings")
    if length is None:
        raise ConfigError(
            f"{path}: {DCA_FIELD}.original_max_position_embeddings = {original} scales scores by "
            "the length, and max_position_embeddings is missing"
        )
    return values | {"rope.dca_scale": length_factor(length, original)}


def dca_fields(rope: RopeConfig, length: int) -> dict[str, Any]:
    """Fields of config_1m.json that differ from config.json. length: most tokens for servers.

    ConfigError where servers could not run these settings (`dca_fault`).
    """
    if fault := dca_fault(rope, length):
        raise ConfigError(fault)
    return {
        "max_position_embeddings": length,
        DCA_FIELD: {
            "chunk_size": rope.dca_chunk_size,
            "local_size": rope.dca_local_size,
            "original_max_position_embeddings": original_of(rope.dca_scale, length),
            "sparse_attention_enabled": False,
        },
    }


def dca_fault(rope: RopeConfig, length: int) -> str:
    """Why servers that know Dual Chunk Attention could not run it as set; "" where they can."""
    if not rope.has_dca:
        return "rope.dca_chunk_size = 0 is plain attention"
    if rope.has_yarn:
        return (
            f"rope.yarn_factor = {rope.yarn_factor:g} with rope.dca_chunk_size = "
            f"{rope.dca_chunk_size}: servers ignore YaRN with Dual Chunk Attention"
        )
    if rope.dca_rule != "code":
        return f'rope.dca_rule = "{rope.dca_rule}": servers have the rule "code" alone'
    if rope.dca_scale < 1:
        return f"rope.dca_scale = {rope.dca_scale:g}: the factor of servers is at least 1"
    if length <= rope.dca_chunk_size:
        return f"a length of {length} does not exceed rope.dca_chunk_size = {rope.dca_chunk_size}"
    original = original_of(rope.dca_scale, length)
    factor = length_factor(length, original) if original else 1.0
    if abs(factor - rope.dca_scale) > _SAME_SCALE:
        return (
            f"rope.dca_scale = {rope.dca_scale:g}: servers are told an original length, which for "
            f"texts of {length} would be {original}, and make a factor of {factor:g} of it"
        )
    return ""


def original_of(scale: float, length: int) -> int:
    """The original length from which servers compute this factor for texts of `length`; 0: none."""
    return 0 if scale == 1 else round(length * math.exp(-10 * (scale - 1)))


def length_factor(length: int, original: int) -> float:
    """Qwen's factor on queries and on keys of a text of this length: max(1, 0.1 ln(length/original)
    + 1).

    From Qwen2.5-1M's report (arXiv 2501.15383), as vLLM 0.10 computes it.
    """
    return max(1.0, 0.1 * math.log(length / original) + 1.0)


def _yarn_of(
    path: Path, source: str, rope: dict[str, Any], config: dict[str, Any]
) -> dict[str, Any]:
    """Settings of YaRN in one of the two tables; {} without YaRN."""
    kind = _kind(path, source, rope)
    for name in rope:
        if name not in _OF_ANY | _OF_YARN:
            raise ConfigError(
                f"{path}: {source}.{name} = {rope[name]!r:.80} is not known for rope_type = "
                f"{kind!r}"
            )
    if rope.get("partial_rotary_factor") not in (None, 1.0):
        raise ConfigError(f"{path}: {source}.partial_rotary_factor must be 1.0")
    if kind == "default":
        return {}
    factor = _number(path, f"{source}.factor", rope.get("factor"))
    values = {
        "rope.yarn_factor": factor,
        "rope.yarn_original_length": _original(path, source, rope, config),
        **_attention_factor(path, source, rope, factor),
    }
    for name in ("beta_fast", "beta_slow"):
        if rope.get(name):  # 0 is the default to transformers, too
            values[f"rope.yarn_{name}"] = _number(path, f"{source}.{name}", rope[name])
    truncate = rope.get("truncate", True)
    if not isinstance(truncate, bool):
        raise ConfigError(f"{path}: {source}.truncate = {truncate!r:.80}; valid: true or false")
    values["rope.yarn_truncate"] = truncate
    if factor == 1 and "rope.yarn_attention_factor" not in values:
        return {}  # the frequencies are the base's
    return values


def _kind(path: Path, source: str, rope: dict[str, Any]) -> str:
    kinds = [rope[name] for name in ("rope_type", "type") if rope.get(name) is not None]
    if not kinds:
        if not rope.keys() <= _OF_ANY:
            raise ConfigError(f"{path}: {source} = {rope} has no rope_type; valid: default, yarn")
        return "default"
    if any(kind != kinds[0] for kind in kinds):
        raise ConfigError(f"{path}: {source}.rope_type and type are not equal: {kinds}")
    if kinds[0] not in ("default", "yarn"):
        raise ConfigError(
            f"{path}: {source}.rope_type = {kinds[0]!r:.80} is not Qwen3's; valid: default, yarn"
        )
    return str(kinds[0])


def _original(path: Path, source: str, rope: dict[str, Any], config: dict[str, Any]) -> int:
    """The original length, in the table or beside it, as in transformers."""
    name = "original_max_position_embeddings"
    values = [table[name] for table in (rope, config) if table.get(name) is not None]
    if not values:
        raise ConfigError(
            f"{path}: {source}.{name} is missing: YaRN needs the length that the model was "
            "trained with before (Qwen3: 32768)"
        )
    if values[0] != values[-1]:
        raise ConfigError(f"{path}: {name} and {source}.{name} are not equal: {values}")
    return _whole(path, f"{source}.{name}", values[0])


def _attention_factor(
    path: Path, source: str, rope: dict[str, Any], factor: float
) -> dict[str, Any]:
    """rope.yarn_attention_factor, where it differs from 0.1 ln(factor) + 1.

    attention_factor replaces that, attn_factor (the YaRN authors' and vLLM's) multiplies it, and
    mscale counts only with mscale_all_dim, as in transformers.
    """
    usual = found = _scale(factor, 1.0)
    given = {
        name: _number(path, f"{source}.{name}", rope[name])
        for name in ("attention_factor", "attn_factor", "mscale", "mscale_all_dim")
        if rope.get(name) is not None
    }
    times = given.get("attn_factor", 1.0)
    if given.get("mscale") and given.get("mscale_all_dim"):
        found = _scale(factor, given["mscale"]) / _scale(factor, given["mscale_all_dim"])
    found *= times
    if "attention_factor" in given:
        if times != 1:
            raise ConfigError(
                f"{path}: {source}.attention_factor and attn_factor both set the factor of queries "
                "and keys; keep one"
            )
        found = given["attention_factor"]
    if not found > 0:
        raise ConfigError(f"{path}: {source}: the attention factor {found} must be above 0")
    return {} if found == usual else {"rope.yarn_attention_factor": found}


def _scale(factor: float, mscale: float) -> float:
    """transformers' get_mscale."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _theta(path: Path, given: dict[str, Any]) -> Any:
    """The base: transformers 4 has it beside, 5 within rope_parameters; all found must be equal."""
    values = {name: value for name, value in given.items() if value is not None}
    if not values:
        raise ConfigError(f"{path}: rope_theta or rope_parameters.rope_theta is missing")
    first, *others = values.values()
    if any(other != first for other in others):
        raise ConfigError(f"{path}: {' and '.join(values)} are not equal: {[first, *others]}")
    return first


def _number(path: Path, name: str, value: Any) -> float:
    if value is None:
        raise ConfigError(f"{path}: {name} is missing")
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
        raise ConfigError(f"{path}: {name} = {value!r:.80} is not a number")
    return float(value)


def _whole(path: Path, name: str, value: Any) -> int:
    number = _number(path, name, value)
    if number != int(number) or number < 0:
        raise ConfigError(f"{path}: {name} = {value!r:.80} is not a whole number")
    return int(number)
