"""Every setting of a run: one frozen dataclass per TOML table, read in layers.

    config = load(["examples/stages/pretrain_1_general.toml", "examples/models/qwen3_8b.toml"], ["optim.lr=2e-4"])

Defaults < the model preset < files from left to right < key=value. A later file replaces a list (`data.sources`)
as a whole. Everything wrong is a `ConfigError` that says where it stands and what would be right.
`python -m megatron_qwen3.config` prints every setting with its default. Nothing here imports torch.
"""

import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, get_type_hints

from megatron_qwen3 import validate as rules
from megatron_qwen3.presets import PRESETS


class ConfigError(ValueError):
    """A setting, or several that do not go together; the text is meant for the person who wrote it."""


def setting(default: object, help: str, **rule: object) -> Any:
    """A dataclass field with its one-line help and the `choices`, `at_least`, `above`, `below` it must keep."""
    return field(default=default, metadata={"help": help, **rule})


@dataclass(frozen=True)
class RunConfig:
    """What is run, and where its folder is."""

    mode: str = setting("pretrain", "which training loop runs", choices=("pretrain",))
    name: str = setting("run", "name of the run; its folder is {run.dir}/{run.name}")
    dir: str = setting("runs", "folder of all runs")
    seed: int = setting(1234, "seed of the weights and of the data order", at_least=0)
    device: str = setting(
        "auto", "auto takes cuda where there is a GPU", choices=("auto", "cpu", "cuda")
    )


@dataclass(frozen=True)
class ModelConfig:
    """The transformer. A preset fills every field; other keys of this table replace the preset's values."""

    preset: str = setting("", "a row of megatron_qwen3/presets.py")
    num_layers: int = setting(0, "transformer layers", at_least=1)
    hidden_size: int = setting(0, "width of the residual stream", at_least=1)
    ffn_hidden_size: int = setting(0, "width of the SwiGLU of a dense layer", at_least=0)
    num_attention_heads: int = setting(0, "query heads", at_least=1)
    num_query_groups: int = setting(0, "key-value heads", at_least=1)
    head_dim: int = setting(128, "size of one head", at_least=1)
    vocab_size: int = setting(151936, "rows of the embedding", at_least=1)
    tie_embeddings: bool = setting(False, "the output layer is the embedding")
    num_experts: int = setting(0, "experts of every layer; 0 is a dense model", at_least=0)
    experts_per_token: int = setting(0, "experts that each token is sent to", at_least=0)
    expert_ffn_hidden_size: int = setting(0, "width of the SwiGLU of one expert", at_least=0)
    rope_theta: float = setting(1e6, "base of the rotary embedding", above=0)
    norm_eps: float = setting(1e-6, "epsilon of RMSNorm", above=0)
    init_std: float = setting(0.02, "standard deviation of fresh weights", above=0)
    router_aux_loss: float = setting(
        1e-3, "coefficient of the global-batch load-balancing loss", at_least=0
    )


@dataclass(frozen=True)
class ParallelConfig:
    """How ranks share the model; what is left of the world size is data parallel."""

    tensor: int = setting(1, "ranks that split each matrix", at_least=1)
    pipeline: int = setting(1, "ranks that split the layers", at_least=1)
    virtual_pipeline: int = setting(1, "model chunks on each pipeline rank", at_least=1)
    pipeline_layers: tuple[int, ...] = setting(
        (), "layers of each of pipeline * virtual_pipeline stages, in model order; [] is even"
    )
    expert: int = setting(1, "ranks that split the experts of a layer", at_least=1)
    expert_tensor: int = setting(1, "ranks that split the matrices of one expert", at_least=1)
    context: int = setting(1, "ranks that split the sequence; only 1 for now", at_least=1)
    sequence: bool = setting(True, "sequence parallelism where tensor > 1")
    recompute: str = setting(
        "none", "activations computed again in backward", choices=("none", "selective", "full")
    )
    overlap: bool = setting(True, "reduce gradients while backward runs (GPUs only)")


@dataclass(frozen=True)
class SourceConfig:
    """One tokenized corpus, PATH.bin and PATH.idx, and its share of the mixture."""

    name: str = setting(MISSING, "name of the source in logs")
    path: str = setting(MISSING, "prefix of PATH.bin and PATH.idx")
    weight: float = setting(1.0, "share of the mixture, relative to the other sources", above=0)


@dataclass(frozen=True)
class DataConfig:
    """The mixture that is trained on."""

    sequence_length: int = setting(4096, "tokens of one sequence", at_least=1)
    tokenizer: str = setting("", "tokenizer folder or tokenizer.json; needed for bits per byte")
    held_out: float = setting(
        0.001, "fraction of each source, at its end, that is never trained on", at_least=0, below=1
    )
    sources: tuple[SourceConfig, ...] = setting((), "tables [[data.sources]]: name, path, weight")


@dataclass(frozen=True)
class TrainConfig:
    """How long, and in what portions. Exactly one of tokens and steps is set."""

    tokens: int = setting(0, "tokens of the stage", at_least=0)
    steps: int = setting(0, "optimizer steps of the stage", at_least=0)
    global_batch: int = setting(8, "sequences of one optimizer step, all ranks", at_least=1)
    micro_batch: int = setting(1, "sequences of one forward pass on one rank", at_least=1)
    precision: str = setting("bf16", "arithmetic of the model", choices=("bf16", "fp32"))


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its learning rate."""

    lr: float = setting(3e-4, "highest learning rate", above=0)
    min_lr: float = setting(3e-5, "learning rate at the end of the decay", at_least=0)
    schedule: str = setting(
        "cosine", "shape of the learning rate", choices=("cosine", "constant", "wsd")
    )
    warmup_steps: int = setting(0, "steps of the linear rise from 0 to lr", at_least=0)
    decay_steps: int = setting(
        0, "wsd: steps of the final decay; 0 is a tenth of the run", at_least=0
    )
    beta1: float = setting(0.9, "Adam's first moment", at_least=0, below=1)
    beta2: float = setting(0.95, "Adam's second moment", at_least=0, below=1)
    eps: float = setting(1e-8, "Adam's epsilon", above=0)
    weight_decay: float = setting(0.1, "decoupled weight decay", at_least=0)
    clip_grad: float = setting(1.0, "largest gradient norm; 0 is no clipping", at_least=0)
    z_loss: float = setting(0.0, "coefficient of the z-loss on the logits", at_least=0)
    distributed: bool = setting(True, "shard the optimizer state over data parallel ranks")


@dataclass(frozen=True)
class EvalConfig:
    """Loss on the held-out end of each source."""

    every_steps: int = setting(0, "steps between evaluations; 0 is only at the end", at_least=0)
    tokens: int = setting(262144, "tokens of each source, at most", at_least=1)


@dataclass(frozen=True)
class CheckpointConfig:
    """What is saved, and what a run starts from."""

    every_steps: int = setting(0, "steps between checkpoints; 0 is only at the end", at_least=0)
    init_from: str = setting(
        "", "run folder of the stage before: its weights, not its optimizer; {dir} is run.dir"
    )
    keep: int = setting(2, "newest checkpoints that are kept", at_least=1)
    resume: bool = setting(True, "go on from the newest checkpoint of the run folder")


@dataclass(frozen=True)
class LogConfig:
    """What is reported, and where."""

    every_steps: int = setting(1, "steps between lines", at_least=1)
    tensorboard: bool = setting(True, "write TensorBoard events to the run folder")
    wandb_project: str = setting("", "Weights & Biases project; empty is off")
    peak_tflops: float = setting(
        0.0, "dense peak of one rank, for MFU (H100 bf16: 989); 0 prints none", at_least=0
    )


@dataclass(frozen=True)
class Config:
    """One run. Frozen: a changed copy comes from `dataclasses.replace`, and is not validated until asked."""

    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)

    @property
    def run_dir(self) -> Path:
        """Folder of checkpoints, metrics and the resolved configuration."""
        return Path(self.run.dir) / self.run.name

    @property
    def steps(self) -> int:
        """Optimizer steps of the stage; a token budget is rounded down to whole steps."""
        return self.train.steps or self.train.tokens // self.step_tokens

    @property
    def step_tokens(self) -> int:
        """Tokens of one optimizer step, over all ranks."""
        return self.train.global_batch * self.data.sequence_length


@dataclass(frozen=True)
class Setting:
    """One row of the table of settings: the dotted name, its type, default and rules."""

    name: str
    kind: Any
    default: Any
    rule: Mapping[str, Any]


def settings_of(table: type, prefix: str = "") -> dict[str, Setting]:
    """The settings of one dataclass by dotted name."""
    kinds = get_type_hints(table)
    rows = (Setting(prefix + f.name, kinds[f.name], f.default, f.metadata) for f in fields(table))
    return {row.name: row for row in rows}


TABLES: Final[dict[str, type]] = get_type_hints(Config)
SETTINGS: Final = MappingProxyType(
    {name: row for t in TABLES for name, row in settings_of(TABLES[t], f"{t}.").items()}
)


def load(paths: Iterable[str | Path], overrides: Sequence[str] = ()) -> Config:
    """The validated configuration of TOML files and key=value pairs; `ConfigError` for anything wrong."""
    values: dict[str, Any] = {}
    for path in paths:
        values |= _read_file(Path(path))
    for override in overrides:
        values |= _read_override(override)
    values = _preset_values(values.get("model.preset", "")) | values
    config = Config(**{table: kind(**_table(table, values)) for table, kind in TABLES.items()})
    init_from = config.checkpoint.init_from.replace("{dir}", config.run.dir)
    config = replace(config, checkpoint=replace(config.checkpoint, init_from=init_from))
    validate(config)
    return config


def validate(config: Config) -> None:
    """`ConfigError` with every fault of the configuration that can be seen without the world size."""
    _raise_if(rules.faults(config, SETTINGS.values()))


def check_world_size(config: Config, world_size: int) -> None:
    """`ConfigError` when `world_size` ranks cannot be laid out as the configuration asks."""
    _raise_if(rules.world_size_faults(config, world_size))


def _raise_if(faults: Iterable[str]) -> None:
    text = "\n".join(faults)
    if text:
        raise ConfigError(text)


def _preset_values(preset: str) -> dict[str, Any]:
    if not preset:
        return {}
    if preset not in PRESETS:
        guess = _did_you_mean(preset, PRESETS)
        raise ConfigError(
            f'model.preset = "{preset}" is no preset{guess}; valid: {", ".join(PRESETS)}'
        )
    return {f"model.{name}": value for name, value in PRESETS[preset].items()}


def _table(table: str, values: Mapping[str, Any]) -> dict[str, Any]:
    prefix = table + "."
    return {k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)}


def _read_file(path: Path) -> dict[str, Any]:
    """The settings of one TOML file by dotted name, converted to their types."""
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ConfigError(f"{path}: cannot be read ({reason})") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    values: dict[str, Any] = {}
    for table, content in tree.items():
        if table not in TABLES:
            raise ConfigError(f"{path}: {_not_a_setting(table)}")
        if not isinstance(content, dict):
            raise ConfigError(f"{path}: {table} is a table; write [{table}] and its settings below")
        for key, value in content.items():
            name = f"{table}.{key}"
            values[name] = _convert(value, _setting(name, str(path)), f"{path}: {name}")
    return values


def _read_override(override: str) -> dict[str, Any]:
    """One key=value of the command line; the value is TOML, a bare word is a string."""
    name, equals, text = (part.strip() for part in override.partition("="))
    if not equals:
        raise ConfigError(f"command line: {override!r} is neither a TOML file nor key=value")
    row = _setting(name, "command line")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError as error:
        if text.startswith(("[", "{", '"', "'")):
            raise ConfigError(f"command line: {name} is not valid TOML: {error}") from None
        value = text
    if row.kind is str and not isinstance(value, str):
        value = text  # run.name=8 names a run, although TOML reads a number
    return {name: _convert(value, row, f"command line: {name}")}


def _setting(name: str, origin: str) -> Setting:
    if name not in SETTINGS:
        raise ConfigError(f"{origin}: {_not_a_setting(name)}")
    return SETTINGS[name]


def _not_a_setting(name: str) -> str:
    if name in TABLES:
        return f"{name} is a table of settings, not a setting"
    leaf = name.rpartition(".")[2]
    same_leaf = [known for known in SETTINGS if known.endswith("." + leaf)]
    if same_leaf:
        return f"{name} is not a setting; did you mean {' or '.join(same_leaf)}?"
    guess = _did_you_mean(name, [*SETTINGS, *TABLES])
    return f"{name} is not a setting{guess or '; python -m megatron_qwen3.config lists them'}"


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.7)
    return f"; did you mean {close[0]}?" if close else ""


def _convert(value: Any, row: Setting, where: str) -> Any:
    """`value`, as TOML gives it, in the type of the setting; integral floats are fine for whole numbers."""
    if row.kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if row.kind is float and type(value) is int:
        return float(value)
    if row.kind == tuple[int, ...] and isinstance(value, list):
        if all(type(item) is int for item in value):
            return tuple(value)
    elif row.kind == tuple[SourceConfig, ...] and isinstance(value, list):
        return tuple(_source(item, f"{where}[{i}]") for i, item in enumerate(value))
    elif type(value) is row.kind:
        return value
    raise ConfigError(f"{where} = {emit(value)} is not {_KIND_NAMES[row.kind]}")


def _source(item: Any, where: str) -> SourceConfig:
    known = settings_of(SourceConfig)
    if not isinstance(item, dict):
        raise ConfigError(f"{where} = {emit(item)} is not a table of {', '.join(known)}")
    for key in item:
        if key not in known:
            guess = _did_you_mean(key, known)
            raise ConfigError(f"{where}.{key} is not a setting{guess}; valid: {', '.join(known)}")
    for name, row in known.items():
        if row.default is MISSING and name not in item:
            raise ConfigError(f"{where}.{name} is missing")
    return SourceConfig(**{k: _convert(v, known[k], f"{where}.{k}") for k, v in item.items()})


_KIND_NAMES: Final[dict[Any, str]] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a string",
    tuple[int, ...]: "a list of whole numbers",
    tuple[SourceConfig, ...]: "a list of tables",
}


def to_toml(config: Config) -> str:
    """The whole configuration as TOML; `load` of it gives an equal one."""
    blocks = []
    for table in TABLES:
        content = vars(getattr(config, table))
        sources = content.get("sources", ())
        rows = {name: value for name, value in content.items() if name != "sources"}
        blocks.append(_emit_rows(f"[{table}]", rows))
        blocks += [_emit_rows(f"[[{table}.sources]]", vars(source)) for source in sources]
    return "\n".join(blocks)


def _emit_rows(header: str, rows: Mapping[str, Any]) -> str:
    return "".join([f"{header}\n", *(f"{name} = {emit(value)}\n" for name, value in rows.items())])


def emit(value: object) -> str:
    """`value` as TOML text."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        # JSON's escapes are TOML's, but for DEL, which JSON leaves as it is.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(emit, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key} = {emit(item)}' for key, item in value.items())}}}"
    return str(value)


def describe() -> str:
    """Every setting, its default and its help, one line each under the line of its table."""
    lines = []
    for table, kind in TABLES.items():
        lines.append(f"\n[{table}]  {(kind.__doc__ or '').strip()}")
        for row in settings_of(kind).values():
            choices = " | ".join(row.rule.get("choices", ()))
            help_text = row.rule["help"] + (f" ({choices})" if choices else "")
            lines.append(f"  {row.name:<24} {emit(row.default):<12} {help_text}")
    return "\n".join(lines).lstrip()


if __name__ == "__main__":
    print(describe())
