"""Settings of a teacher in memory, and the check that it can share the student's vocabulary.

    theirs = settings_of(config, world_size)  # a Config of the teacher, in its own layout
    check(config, world_size, {"web": dialogs.tokenizer})

Runs before any rank starts, and in the estimate of memory. No torch.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from data_prep.fingerprint import file_sha256
from data_prep.tokenizer_file import tokenizer_json
from megatron_qwen3 import config as settings
from megatron_qwen3.generate.load import ModelSource
from megatron_qwen3.parallel.layout import Layout
from megatron_qwen3.settings import Config, ConfigError, ModelConfig, ParallelConfig
from megatron_qwen3.settings_fp8 import Fp8Config
from megatron_qwen3.settings_overlap import OverlapConfig
from megatron_qwen3.settings_posttrain import TeacherConfig
from megatron_qwen3.settings_rl import ScoringTeacherConfig
from megatron_qwen3.settings_rollouts import VllmConfig

_NODE_RANKS = 8  # ranks with links fast enough for tensor parallelism
_LAYOUT = re.compile(r"\bparallel\.(tensor|pipeline|expert)\b")


def table_of(config: Config) -> tuple[str, TeacherConfig | ScoringTeacherConfig]:
    """Name and content of the table that names this mode's teacher."""
    if config.run.mode == "distill":
        return "distill.teacher", config.distill.teacher
    return "sft.teacher", config.sft.teacher


def settings_of(config: Config, world_size: int) -> Config:
    """The teacher's Config. ConfigError where its path has no model, or its layout does not fit."""
    table, asked = table_of(config)
    try:
        own = ModelSource(Path(asked.path)).config([], 1)
        model = own.model
        layout = layout_of(asked, model, config.data.sequence_length, world_size)
        theirs = replace(config, model=model, rope=own.rope, parallel=layout, fp8=Fp8Config())
        theirs = replace(theirs, overlap=OverlapConfig())  # of the model that is trained
        sampler = replace(config.rollouts, engine="own", vllm=VllmConfig())
        settings.validate(replace(theirs, rollouts=sampler))  # servers have the student alone
    except ConfigError as error:
        raise ConfigError(named(table, error)) from None
    picks_ids = config.run.mode == "sft" or config.distill.top_k > 0
    if model.vocab_size > config.model.vocab_size and picks_ids:
        raise ConfigError(
            f"{table}.path = {asked.path} has {model.vocab_size:,} tokens, more than "
            f"model.vocab_size = {config.model.vocab_size:,}, so that the student cannot follow it"
        )
    return theirs


def layout_of(
    asked: TeacherConfig | ScoringTeacherConfig, model: ModelConfig, length: int, world_size: int
) -> ParallelConfig:
    """The teacher's layout. A size of 0 follows from the ranks, so that each rank holds as few
    weights as possible: matrices over as many ranks as a node has, experts over all.

    length: of rows, which tensor ranks share.
    """
    ranks = max(1, world_size // asked.pipeline)
    sizes = [model.num_query_groups, model.num_attention_heads, model.vocab_size, length]
    sizes += [] if model.num_experts else [model.ffn_hidden_size]
    tensor = asked.tensor or _largest(_NODE_RANKS, ranks, *sizes)
    expert = asked.expert or (_largest(ranks, ranks, model.num_experts) if model.num_experts else 1)
    return ParallelConfig(tensor, asked.pipeline, expert=expert)


def _largest(most: int, *sizes: int) -> int:
    """The largest number up to `most` that divides all sizes."""
    common = math.gcd(*sizes)
    return next(n for n in range(min(most, common), 0, -1) if common % n == 0)


def named(table: str, error: ConfigError, place: str = "") -> str:
    """A ConfigError of the teacher's settings, with the names that they have in the student's.

    place: the setting at fault, where the error's text does not begin with it; default: the table.
    """
    told = _LAYOUT.sub(rf"{table}.\1", str(error))
    return told if told.startswith(f"{table}.") else f"{place or table}: {told}"


def known_ids(config: Config) -> int:
    """How many of the student's ids, from 0 on, the teacher of a distillation knows."""
    asked = config.distill.teacher
    if asked.url:
        return config.model.vocab_size
    return min(
        ModelSource(Path(asked.path)).config([], 1).model.vocab_size, config.model.vocab_size
    )


def check(config: Config, world_size: int, tokenizers: Mapping[str, str]) -> None:
    """ConfigError where the teacher does not fit the run's ranks, or has another vocabulary.

    tokenizers: the sha256 of the tokenizer.json of each dialog set, or of the student, by name.
    """
    table, asked = table_of(config)
    theirs = settings_of(config, world_size)
    try:
        Layout.of(theirs, world_size)
    except ConfigError as error:
        raise ConfigError(named(table, error)) from None
    own = tokenizer_sha256(ModelSource(Path(asked.path)).config([], 1).data.tokenizer)
    for name, of_set in tokenizers.items():
        check_tokenizer(f"{table}.path = {asked.path}", own, name, of_set)


def tokenizer_sha256(path: str) -> str:
    """sha256 of a tokenizer.json, or of a folder's; "" where there is none."""
    file = tokenizer_json(path) if path else None
    return file_sha256(str(file)) if file is not None and file.is_file() else ""


def check_tokenizer(teacher: str, own: str, name: str, of_set: str) -> None:
    """ConfigError where the teacher and a set of dialogs have different tokenizers.

    teacher, name: for the message; own, of_set: the sha256 of each one's tokenizer.json.
    """
    if not own:
        raise ConfigError(
            f"{teacher}: its tokenizer is unknown; put the tokenizer.json that it was "
            "trained with into its folder"
        )
    if own != of_set:
        raise ConfigError(
            f"{teacher} has another tokenizer (sha256 {own[:12]}…) than {name} was tokenized with "
            f"({of_set[:12]}…); valid: a teacher with the student's vocabulary, or its answers as "
            "plain dialogs"
        )
