"""Checks settings, alone and together: one line per fault, with both sides and the way out.

`config.validate` raises the faults that it finds; `parallel/layout.py` knows valid world sizes.
Nothing here raises, so that a person sees everything that is wrong at once. The rules are those of
Qwen3's shapes and of megatron-core, which checks some of them late and some not at all: layers that
a pipeline split leaves over are silently dropped there.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from operator import attrgetter
from typing import Any

from megatron_qwen3 import (
    modes,
    validate_context,
    validate_fp8,
    validate_graphs,
    validate_overlap,
    validate_posttrain,
    validate_rl,
    validate_rollouts,
    validate_rope,
)
from megatron_qwen3.fields import settings_of
from megatron_qwen3.parallel.layout import near, row_unit
from megatron_qwen3.presets import PRESETS
from megatron_qwen3.settings import SETTINGS, Config, ModelConfig, ParallelConfig

_SOURCES = ("data.sources", "sft.sources", "reward.sources", "rollouts.tasks")
_MOST_EXPERTS = 1 << 20  # of all layers; only a broken file has more, which would take all memory


def faults(config: Config, given: Iterable[str] = ()) -> list[str]:
    """Every fault that can be seen without the world size.

    given: names of settings that were set; those of other modes are faults. Rules about pairs of
    settings are looked at only where each setting is sound by itself.
    """
    if not config.model.preset and not config.model.num_layers:
        return [f"no model: set model.preset to one of {', '.join(PRESETS)}, or every model.* size"]
    alone = list(_single_setting_faults(config))
    if alone:
        return alone
    return [
        *_model_faults(config.model),
        *_tensor_faults(config),
        *_expert_faults(config),
        *validate_context.faults(config),
        *_dispatch_faults(config),
        *_pipeline_faults(config),
        *_train_faults(config),
        *_optim_faults(config),
        *_source_faults(config),
        *_data_faults(config),
        *(gpu_faults(config) if config.run.device == "cuda" else ()),
        *_time_faults(config),
        *_mode_faults(config, given),
        *_balance_faults(config),
        *validate_posttrain.faults(config),
        *validate_rl.faults(config),
        *validate_rollouts.faults(config),
        *validate_rope.faults(config),
        *validate_fp8.faults(config),
        *validate_overlap.faults(config),
        *validate_graphs.faults(config),
    ]


def _dispatch_faults(config: Config) -> Iterator[str]:
    """Other dispatchers are of Transformer Engine's layers, and for experts alone."""
    p, dispatch = config.parallel, config.parallel.dispatch
    if dispatch == "alltoall":
        return
    given = f'parallel.dispatch = "{dispatch}"'
    if not config.model.num_experts:
        yield f'{given}, but the model is dense{_of(config.model)}; valid: "alltoall"'
    elif config.model.kind != "te":
        yield f'{given} needs model.kind = "te", not "{config.model.kind}"'
    elif p.expert * p.expert_tensor == 1:
        yield f'{given}, but parallel.expert * expert_tensor = 1: no token is sent; use "alltoall"'
    elif dispatch == "hybridep" and p.context_exchange != "own":
        yield (
            f'{given} takes as many tokens from every rank, and parallel.context_exchange = "'
            f'{p.context_exchange}" pads documents, of each rank others; set parallel.dispatch = '
            '"deepep" or "alltoall", or parallel.context_exchange = "own"'
        )


def _balance_faults(config: Config) -> Iterator[str]:
    """A rank knows the choices of its own tokens until the step ends."""
    p = config.parallel
    if config.model.router_balance == "micro_batch" and p.tensor * p.context > 1:
        yield (
            'model.router_balance = "micro_batch", but parallel.tensor * context = '
            f"{p.tensor} * {p.context} ranks share the tokens of a micro-batch; "
            'valid: "last_step", "this_batch"'
        )


def gpu_faults(config: Config) -> list[str]:
    """Faults of these settings on a GPU, which a CPU does not have."""
    return list(_grouped_product_faults(config))


def _grouped_product_faults(config: Config) -> Iterator[str]:
    """torch's grouped_mm, used in bf16, wants rows of matrices to begin every 16 bytes."""
    model, p, unit = config.model, config.parallel, 8
    if not model.num_experts or config.train.precision != "bf16":
        return
    rule = f"on a GPU that must be a multiple of {unit} (16 bytes in bf16)"
    if model.hidden_size % unit:
        yield (
            f"model.hidden_size = {model.hidden_size}{_of(model)}: {rule}; "
            f"valid near it: {near(model.hidden_size, unit)}"
        )
    width, rest = divmod(model.expert_ffn_hidden_size, p.expert_tensor)
    if not rest and width % unit:
        size = model.expert_ffn_hidden_size
        yield (
            f"model.expert_ffn_hidden_size / parallel.expert_tensor = {size} / "
            f"{p.expert_tensor} = {width}{_of(model)}: {rule}; valid widths near it: "
            f"{near(size, unit * p.expert_tensor)}"
        )


def _single_setting_faults(config: Config) -> Iterator[str]:
    for row in SETTINGS.values():
        yield from _rule_faults(row.name, attrgetter(row.name)(config), row.rule)
    for name in _SOURCES:
        for source in attrgetter(name)(config):
            for row in settings_of(type(source)).values():
                value = getattr(source, row.name)
                yield from _rule_faults(f"{name}: {row.name} of {source.name!r}", value, row.rule)
    for name in ("run.name", "run.dir"):
        if not getattr(config.run, name.removeprefix("run.")):
            yield f"{name} must not be empty"


def _rule_faults(name: str, value: Any, rule: Any) -> Iterator[str]:
    if "choices" in rule and value not in rule["choices"]:
        valid = ", ".join(choice for choice in rule["choices"] if choice)  # "" is to leave it out
        yield f'{name} = "{value}" is not one of {valid}'
    # one cause each: nan, which is no number, violates every bound
    if "at_least" in rule and not value >= rule["at_least"]:
        yield f"{name} = {value} must be at least {rule['at_least']}"
    elif "at_most" in rule and not value <= rule["at_most"]:
        yield f"{name} = {value} must be at most {rule['at_most']}"
    elif "above" in rule and not value > rule["above"]:
        yield f"{name} = {value} must be above {rule['above']}"
    elif "below" in rule and not value < rule["below"]:
        yield f"{name} = {value} must be below {rule['below']}"
    elif value == math.inf:
        yield f"{name} = {value} must be finite"


def _of(model: ModelConfig) -> str:
    return f" (preset {model.preset})" if model.preset else ""


def _model_faults(model: ModelConfig) -> Iterator[str]:
    heads, groups = model.num_attention_heads, model.num_query_groups
    if heads % groups:
        yield (
            f"model.num_query_groups = {groups} does not divide model.num_attention_heads = {heads}"
            f"{_of(model)}; valid: {_divisors(heads)}"
        )
    if model.head_dim % 2:
        yield f"model.head_dim = {model.head_dim} must be even: rotary embedding turns pairs"
    sparse_only = ("experts_per_token", "expert_ffn_hidden_size")
    if not model.num_experts:
        if not model.ffn_hidden_size:
            yield f"model.ffn_hidden_size = 0, but the model is dense{_of(model)}"
        for name in sparse_only:
            if getattr(model, name):
                yield (
                    f"model.{name} = {getattr(model, name)} needs model.num_experts above 0"
                    f"{_of(model)}"
                )
        return
    if model.num_layers * model.num_experts > _MOST_EXPERTS:
        yield (
            f"model.num_layers * model.num_experts = {model.num_layers} * {model.num_experts} "
            f"exceeds {_MOST_EXPERTS:,} experts, more than any model has"
        )
    for name in sparse_only:
        if not getattr(model, name):
            yield f"model.{name} = 0, but model.num_experts = {model.num_experts}{_of(model)}"
    if model.experts_per_token > model.num_experts:
        yield (
            f"model.experts_per_token = {model.experts_per_token} exceeds "
            f"model.num_experts = {model.num_experts}"
        )


def _tensor_faults(config: Config) -> Iterator[str]:
    """megatron-core could copy key-value heads where tensor exceeds them; that is refused here."""
    model, p = config.model, config.parallel
    sizes = ["num_query_groups", "num_attention_heads", "vocab_size"]
    if not model.num_experts:
        sizes.append("ffn_hidden_size")
    undivided = [name for name in sizes if getattr(model, name) % p.tensor]
    lengths = [getattr(model, name) for name in sizes]
    if undivided:
        yield (
            f"parallel.tensor = {p.tensor} does not divide model.{undivided[0]} = "
            f"{getattr(model, undivided[0])}{_of(model)}; valid: {_divisors(*lengths)}"
        )
    unit, settings = row_unit(p)
    if config.data.sequence_length % unit and not undivided:
        yield (
            f"data.sequence_length = {config.data.sequence_length} is no multiple of {unit}, which "
            f"{settings} needs; valid near it: {near(config.data.sequence_length, unit)}"
        )


def _expert_faults(config: Config) -> Iterator[str]:
    model, p = config.model, config.parallel
    if not model.num_experts:
        for name in ("expert", "expert_tensor"):
            if getattr(p, name) > 1:
                yield (
                    f"parallel.{name} = {getattr(p, name)}, but the model is dense{_of(model)}; "
                    f"valid: 1"
                )
        return
    yield from _split(p, "expert", model, "num_experts")
    yield from _split(p, "expert_tensor", model, "expert_ffn_hidden_size")
    if p.tensor > 1 and not p.sequence:
        yield (
            f"parallel.sequence = false with parallel.tensor = {p.tensor}: sparse layers "
            f"train only with parallel.sequence = true{_of(model)}"
        )


def _split(p: ParallelConfig, ranks: str, model: ModelConfig, size: str) -> Iterator[str]:
    if getattr(model, size) % getattr(p, ranks):
        yield (
            f"parallel.{ranks} = {getattr(p, ranks)} does not divide model.{size} = "
            f"{getattr(model, size)}{_of(model)}; valid: {_divisors(getattr(model, size))}"
        )


def _pipeline_faults(config: Config) -> Iterator[str]:
    p, layers = config.parallel, config.model.num_layers
    stages = p.pipeline * p.virtual_pipeline
    product = (
        f"parallel.pipeline * virtual_pipeline = {p.pipeline} * {p.virtual_pipeline} = {stages}"
    )
    if p.virtual_pipeline > 1 and p.pipeline == 1:
        yield f"parallel.virtual_pipeline = {p.virtual_pipeline} needs parallel.pipeline above 1"
    if stages > layers:
        yield f"{product} exceeds model.num_layers = {layers}{_of(config.model)}"
    split = p.pipeline_layers
    if not split:
        return
    if len(split) != stages:
        yield f"parallel.pipeline_layers has {len(split)} stages, but {product}"
    if min(split) < 1:
        yield f"parallel.pipeline_layers = {list(split)}: every stage needs at least 1 layer"
    if sum(split) != layers:
        yield (
            f"parallel.pipeline_layers adds up to {sum(split)} layers, but model.num_layers = "
            f"{layers}{_of(config.model)}"
        )


def _train_faults(config: Config) -> Iterator[str]:
    train = config.train
    if not modes.belongs("train.tokens", config.run.mode):
        if not train.steps:
            yield "how long is the run? set train.steps"
        return
    if train.tokens and train.steps:
        yield (
            f"train.tokens = {train.tokens} and train.steps = {train.steps} both say how long; "
            f"set one of them to 0"
        )
    elif not train.tokens and not train.steps:
        yield "how long is the run? set train.tokens or train.steps"
    elif not config.steps:
        yield (
            f"train.tokens = {train.tokens} is less than one step: train.global_batch * "
            f"data.sequence_length = {config.step_tokens}"
        )
    if train.global_batch % train.micro_batch:
        yield (
            f"train.micro_batch = {train.micro_batch} does not divide train.global_batch = "
            f"{train.global_batch}"
        )


def _optim_faults(config: Config) -> Iterator[str]:
    optim, steps = config.optim, config.steps
    if optim.min_lr > optim.lr:
        yield f"optim.min_lr = {optim.min_lr} exceeds optim.lr = {optim.lr}"
    if optim.decay_steps and optim.schedule != "wsd":
        yield (
            f"optim.decay_steps = {optim.decay_steps} goes with optim.schedule = "
            f'"wsd", not "{optim.schedule}"'
        )
    if steps and optim.warmup_steps + optim.decay_steps > steps:
        yield (
            f"optim.warmup_steps + decay_steps = {optim.warmup_steps} + {optim.decay_steps} "
            f"exceeds the {steps} steps of the run"
        )


def _source_faults(config: Config) -> Iterator[str]:
    for table in _SOURCES:
        sources = attrgetter(table)(config)
        for name, count in Counter(source.name for source in sources).items():
            if count > 1:
                yield f"{table}: {count} sources are named {name!r}; each name must be its own"
            if not name:
                yield f"{table}: a source has an empty name"
        for source in sources:
            if not source.path:
                yield f"{table}: {source.name!r} has an empty path"


def _mode_faults(config: Config, given: Iterable[str]) -> Iterator[str]:
    changed = (n for n, row in SETTINGS.items() if attrgetter(n)(config) != row.default)
    yield from modes.faults(config.run.mode, (*given, *changed))


def _data_faults(config: Config) -> Iterator[str]:
    data = config.data
    if data.curriculum and data.sources:
        yield (
            f'data.curriculum = "{data.curriculum}" and {len(data.sources)} [[data.sources]] both '
            "name the training data; leave one out (data.sources=[] or data.curriculum=)"
        )
    if data.curriculum and not data.stage:
        yield f'data.curriculum = "{data.curriculum}" needs data.stage, one of the stages it names'
    if data.stage and not data.curriculum:
        yield f'data.stage = "{data.stage}" needs data.curriculum, the file that has this stage'


def _time_faults(config: Config) -> Iterator[str]:
    minutes, margin = config.run.time_limit_minutes, config.run.stop_early_seconds
    if 0 < 60 * minutes <= margin:
        yield (
            f"run.time_limit_minutes = {minutes:g} is {60 * minutes:g} s, and "
            f"run.stop_early_seconds = {margin:g} before its end the run saves and stops: each "
            "start would train one step"
        )


def _divisors(*sizes: int) -> str:
    """The common divisors of `sizes`, as text."""
    common = math.gcd(*sizes)
    return ", ".join(str(n) for n in range(1, common + 1) if common % n == 0)
