"""Store a teacher's probabilities at each trained token of tokenized dialogs, beside these.

    mq3 data build teacher data/post/chat --teacher Qwen3-32B --top-k 64
    torchrun --nproc-per-node 8 -m megatron_qwen3 data build teacher data/post/chat \\
        --teacher Qwen3-235B-A22B --top-k 64 --local parallel.tensor=4 parallel.expert=8
    mq3 data build teacher data/post/chat --teacher http://teacher:8000/v1 \\
        --teacher-tokenizer Qwen3-32B --top-k 20

SET.teacher/ holds, of each trained token, the teacher's most probable ids, their log-probabilities
and that of all others together: 8 K + 4 bytes. A run of mode sft reads it where sft.objective has
soft targets and sft.teacher.path is empty. The teacher is a folder of ours (run, checkpoint,
Hugging Face's format) or vLLM, whose --max-logprobs must allow --top-k; it must have the tokenizer
that the dialogs were tokenized with. Killed, or with a dead endpoint, the same command goes on.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

from megatron_qwen3.bar import Bar
from megatron_qwen3.config import ConfigError
from megatron_qwen3.fields import setting
from megatron_qwen3.posttrain import options
from megatron_qwen3.posttrain.dialogs.dialog_set import DialogSet
from megatron_qwen3.posttrain.generators.settings import EndpointLimits
from megatron_qwen3.posttrain.teachers.endpoint_teacher import EndpointTeacher
from megatron_qwen3.posttrain.teachers.own_teacher import OwnTeacher, Scoring
from megatron_qwen3.posttrain.teachers.teacher_set import check_absent, write
from megatron_qwen3.posttrain.teachers.teacher_settings import check_tokenizer
from megatron_qwen3.shown import shown


@dataclass(frozen=True)
class TargetSettings:
    """Values that are stored of each trained token."""

    top_k: int = setting(64, "the teacher's most probable ids", at_least=1)
    temperature: float = setting(
        1.0, "divisor of its logits, which a model of ours alone gives", above=0
    )

    def __post_init__(self) -> None:
        options.check(self)


@dataclass(frozen=True)
class ScoringLimits(EndpointLimits):
    """32,768 tokens with 64 log-probabilities each are 200 MB of JSON, ten times that when read."""

    concurrency: int = setting(4, "samples that are scored at a time", at_least=1)
    most_bytes: int = setting(1 << 30, "of a reply; a longer one is refused", at_least=1)


TABLES = {TargetSettings: "targets", ScoringLimits: "endpoints", Scoring: "models of ours"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the subcommand."""
    parser.add_argument("set", metavar="SET", help="prefix that mq3 data dialogs wrote")
    parser.add_argument("--teacher", required=True, metavar="MODEL", help="a folder or address")
    parser.add_argument(
        "--teacher-tokenizer",
        default="",
        metavar="FOLDER",
        help="of the model that an address serves",
    )
    for table, title in TABLES.items():
        options.add(parser, table, title)
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Let the teacher score the set; the exit status. ConfigError where that cannot be."""
    targets = options.taken(TargetSettings, given)
    dialogs = DialogSet(given.set)
    if dialogs.kind != "dialogs":
        raise ConfigError(f"{given.set} holds {dialogs.kind}; a teacher scores dialogs")
    check_absent(dialogs)
    with _opened(given, dialogs, targets) as teacher:
        if not teacher.leads:
            teacher.follow()
            return 0
        with Bar("samples", len(dialogs)) as bar:
            labels = teacher.part_labels
            folder = write(
                dialogs, teacher.about, targets.top_k, teacher.score, bar.advance, labels
            )
    print(shown(f"{folder}: {targets.top_k} ids of each trained token of {len(dialogs):,} samples"))
    return 0


def _opened(
    given: argparse.Namespace, dialogs: DialogSet, targets: TargetSettings
) -> OwnTeacher | EndpointTeacher:
    """The teacher, whose vocabulary is that of the set. ConfigError."""
    teacher: OwnTeacher | EndpointTeacher
    if "://" in given.teacher:
        if targets.temperature != 1:
            raise ConfigError(
                f"--temperature {targets.temperature:g}: an endpoint tells log-probabilities at "
                "temperature 1 alone; leave it out, or give the teacher's folder"
            )
        if not given.teacher_tokenizer:
            raise ConfigError(
                f"{given.teacher} says nothing of its tokenizer: name the folder that has it, "
                "--teacher-tokenizer FOLDER"
            )
        limits = options.taken(ScoringLimits, given)
        teacher = EndpointTeacher(
            given.teacher, given.teacher_tokenizer, dialogs.vocab_size, targets.top_k, limits
        )
    else:
        scoring = options.taken(Scoring, given)
        teacher = OwnTeacher(Path(given.teacher), targets.top_k, targets.temperature, scoring)
    check_tokenizer(given.teacher, teacher.tokenizer, given.set, dialogs.tokenizer)
    return teacher
