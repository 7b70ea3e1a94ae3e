"""Make dialogs to train on, from queries and a model's answers, and report the dropped ones.

    mq3 data build cold-start --queries tasks.jsonl \\
        --generator http://localhost:8000/v1 --out data/cold_start \\
        --validation aime24.jsonl --tokenizer Qwen3-0.6B
    mq3 data build fusion --queries tasks.jsonl --plain-queries talks.jsonl \\
        --generator runs/post_2_reasoning --judge https://api.example.com/v1#qwen3-32b \\
        --out data/fusion --thinking-share 0.5
    mq3 data build distill --queries tasks.jsonl \\
        --generator http://teacher:8000/v1 --out data/distill --modes both
    mq3 data build teacher data/post/chat --teacher Qwen3-32B --top-k 64

A query is a line of JSON with "messages", the last a user's, and maybe "id", "domain", "source",
"verifier" (cold-start needs it: {"kind": "math", "gold": "42"}), "tools" and "checklist". Who
answers is a folder of ours (run, checkpoint, Hugging Face's format) or any endpoint of OpenAI's
protocol; its key stands in the environment variable OPENAI_API_KEY.

OUT/dialogs.jsonl is for mq3 data dialogs; OUT/report.html and report.json count dropped
queries and answers by reason, with examples, and OUT/dropped.jsonl lists them. Answers are kept as
they come (OUT/answers.jsonl): killed, stopped or with a dead endpoint, the same command goes on,
and other filters work on the answers that are there.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from data_prep.passages import Passages
from megatron_qwen3.cli import teacher_targets
from megatron_qwen3.cli.ending import ending
from megatron_qwen3.cli.parser import Parser
from megatron_qwen3.config import ConfigError
from megatron_qwen3.posttrain import options
from megatron_qwen3.posttrain.building import cold_start, distill, fusion
from megatron_qwen3.posttrain.building.answer_rules import AnswerRules, AnswerSettings
from megatron_qwen3.posttrain.building.begun import begin, check_folder
from megatron_qwen3.posttrain.building.candidates import (
    NOT_ANSWERED,
    VERIFIER_FAILED,
    DrawSettings,
)
from megatron_qwen3.posttrain.building.choosing import ChoiceSettings
from megatron_qwen3.posttrain.building.flags import FlagSettings
from megatron_qwen3.posttrain.building.judges import Judge
from megatron_qwen3.posttrain.building.outcomes import LEVELS
from megatron_qwen3.posttrain.building.queries import Query, QueryProblem, read
from megatron_qwen3.posttrain.building.work import DIALOGS, LOCK, PAGE, BuildWork, write_result
from megatron_qwen3.posttrain.generators.opened import AnyGenerator, open_generator
from megatron_qwen3.posttrain.generators.settings import EndpointLimits, Local
from megatron_qwen3.posttrain.verifiers.judging import VerifySettings
from megatron_qwen3.shown import shown
from megatron_qwen3.storage.lock import owned

_T = TypeVar("_T")
Made = tuple[Iterator[dict[str, Any]], dict[str, Any]]
_PASSAGE_TOKENS = 13


COMMON = {
    DrawSettings: "how answers are drawn",
    AnswerSettings: "bounds of an answer",
    VerifySettings: "verifying",
    EndpointLimits: "endpoints",
    Local: "models of ours",
}


class BuildJob(NamedTuple):
    """All parts of a build."""

    work: BuildWork
    tables: Mapping[type, Any]
    queries: Sequence[Query]
    plain: Sequence[Query]
    opened: Mapping[str, AnyGenerator]
    passages: Passages | None

    def of(self, table: type[_T]) -> _T:
        """The settings of a table."""
        found: _T = self.tables[table]
        return found

    def judge(self) -> Judge | None:
        judge = self.opened.get("judge")
        return Judge(judge, self.work.log, self.work.steps) if judge else None


class Build(NamedTuple):
    """A subcommand. tables: of settings, each with a heading; roles: models besides --generator,
    and the task of each."""

    purpose: str
    tables: Mapping[type, str]
    roles: Mapping[str, str]
    make: Callable[[BuildJob], Made]


@ending(goes_on=True)
def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """The exit status: 0 done, 130 or 143 stopped, 2 something is wrong, or nothing was kept."""
    given = _parser(prog).parse_args(arguments)
    return int(given.run(given))


def run(given: argparse.Namespace) -> int:
    """Check all arguments, open the models, and build; the exit status."""
    build = BUILDS[given.build]
    kinds = (*build.tables, *COMMON)
    tables: dict[type, Any] = {kind: options.taken(kind, given) for kind in kinds}
    check_folder("--out", given.out)
    passages = _passages(given)
    queries, problems = _read("--queries", given.queries, given)
    rules = AnswerRules(tables[AnswerSettings], passages)
    rules.prepare()
    plain = getattr(given, "plain_queries", None)
    more, more_problems = _read("--plain-queries", plain, given) if plain else ([], [])
    with ExitStack() as stack:
        opened = _opened(stack, _names(given, build), tables[EndpointLimits], tables[Local])
        if followers := [generator for generator in opened.values() if not generator.leads]:
            followers[0].follow()
            return 0
        stack.enter_context(owned(given.out, LOCK))
        begin(given.out, given.build)
        verifiers = tables[VerifySettings].verifiers()
        work = BuildWork(given.out, stack.enter_context(verifiers), rules)
        stack.enter_context(work)
        job = BuildJob(work, tables, queries, more, opened, passages)
        return _build(job, given, [*problems, *more_problems])


def _build(job: BuildJob, given: argparse.Namespace, problems: Sequence[QueryProblem]) -> int:
    from megatron_qwen3.pages import dialogs as pages
    from megatron_qwen3.tables import console

    rows, about = BUILDS[given.build].make(job)
    content = write_result(job.work, rows, problems, _about(job, given) | about)
    pages.write(content, given.out / PAGE)
    for table in pages.tables(content):
        console().print(table)
    if not content["dialogs"]["count"]:
        why = job.work.outcomes.commonest()
        left = f"; {DIALOGS} is that of the run before" if (given.out / DIALOGS).exists() else ""
        raise ConfigError(f"{given.out}: not one dialog was made; {why}; {PAGE} says more{left}")
    if failed := job.work.outcomes.reasons("answer")[VERIFIER_FAILED]:
        print(f"note: {failed:,} answers could not be verified", file=sys.stderr)
    if unanswered := sum(job.work.outcomes.reasons(level)[NOT_ANSWERED] for level in LEVELS):
        told = f"note: {unanswered:,} queries lack answers; the same command asks them again"
        print(shown(told), file=sys.stderr)
    print(shown(f"{given.out / PAGE}: {content['dialogs']['count']:,} dialogs, and why not more"))
    return 0


def _about(job: BuildJob, given: argparse.Namespace) -> dict[str, Any]:
    """The job's settings, without those that concern the machine alone."""
    machine = (VerifySettings, EndpointLimits, Local)
    settings: dict[str, Any] = {}
    for table, values in job.tables.items():
        settings |= {} if table in machine else asdict(values)
    models = dict.fromkeys(generator.label for generator in job.opened.values())
    return {
        "command": given.build,
        "models": list(models),
        "queries": [str(path) for path in given.queries],
        "validation": list(given.validation),
        "settings": settings,
    }


def _read(
    option: str, paths: Sequence[Path], given: argparse.Namespace
) -> tuple[list[Query], list[QueryProblem]]:
    """The queries of an option's files. ConfigError, which names the option, as of `read`."""
    try:
        return read(paths, given.on_error == "stop")
    except ConfigError as error:
        raise ConfigError(f"{option} {error}") from None


def _passages(given: argparse.Namespace) -> Passages | None:
    """Of the validation items: ConfigError where they cannot be read, before any query is sent."""
    if not given.validation:
        return None
    if not given.tokenizer:
        raise ConfigError("--validation needs --tokenizer: passages are runs of 13 of its tokens")
    for file in given.validation:
        if not os.access(file, os.R_OK):
            raise ConfigError(f"--validation {file}: no file that can be read is there")
    made = Passages(
        given.validation, _PASSAGE_TOKENS, given.tokenizer, most_in_common=given.most_in_common
    )
    if not made.indices:
        raise ConfigError(
            f"{', '.join(given.validation)}: no item has {_PASSAGE_TOKENS} tokens of its own"
        )
    return made


def _names(given: argparse.Namespace, build: Build) -> dict[str, str]:
    """The models by role. ConfigError where two models of ours would be open at a time."""
    names = {"generator": given.generator}
    for role in build.roles:
        if name := getattr(given, role):
            names[role] = name
    folders = {name for name in names.values() if "://" not in name}
    if len(folders) > 1:
        raise ConfigError(
            f"{' and '.join(sorted(folders))} are models of ours, of which one is open at a time; "
            "serve the others, and give their addresses"
        )
    return names


def _opened(
    stack: ExitStack, names: Mapping[str, str], limits: EndpointLimits, local: Local
) -> dict[str, AnyGenerator]:
    """Each name once, whatever roles it has."""
    by_name = {
        name: stack.enter_context(open_generator(name, limits, local))
        for name in dict.fromkeys(names.values())
    }
    return {role: by_name[name] for role, name in names.items()}


def _cold_start(job: BuildJob) -> Made:
    generator = job.opened["generator"]
    asked = cold_start.ColdStartModels(generator, job.opened.get("direct", generator), job.judge())
    settings = (
        job.of(cold_start.QuerySettings),
        job.of(DrawSettings),
        job.of(ChoiceSettings),
    )
    return cold_start.build(job.work, job.queries, asked, settings, job.passages)


def _fusion(job: BuildJob) -> Made:
    generator = job.opened["generator"]
    asked = fusion.FusionModels(
        generator, job.opened.get("plain_generator", generator), job.judge()
    )
    settings = (job.of(fusion.FusionSettings), job.of(DrawSettings), job.of(FlagSettings))
    return fusion.build(job.work, job.queries, job.plain, asked, settings, job.passages)


def _distill(job: BuildJob) -> Made:
    settings = (job.of(distill.DistillSettings), job.of(DrawSettings), job.of(FlagSettings))
    return distill.build(job.work, job.queries, job.opened["generator"], settings, job.passages)


BUILDS = {
    "cold-start": Build(
        "few queries that need thinking, with verified answers",
        {cold_start.QuerySettings: "queries", ChoiceSettings: "how many are taken"},
        {"direct": "answers without thinking", "judge": "says whether queries can be verified"},
        _cold_start,
    ),
    "fusion": Build(
        "answers in both modes, with flags",
        {fusion.FusionSettings: "shares and counts", FlagSettings: "flags"},
        {"plain_generator": "answers without thinking", "judge": "grades by checklists"},
        _fusion,
    ),
    "distill": Build(
        "a teacher's answers in both modes, with flags",
        {distill.DistillSettings: "the teacher", FlagSettings: "flags"},
        {},
        _distill,
    ),
}


_QUERIES = {
    "cold-start": "questions, as described above; each line with a verifier",
    "fusion": "that are answered with thinking; each line with a verifier",
    "distill": "questions to the teacher, as described above; a verifier is optional",
}


def _parser(prog: str | None) -> Parser:
    parser = Parser(prog=prog, description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="build")
    for name, build in BUILDS.items():
        command = commands.add_parser(name, help=build.purpose, description=__doc__)
        command.set_defaults(run=run)
        add = command.add_argument
        add("--queries", nargs="+", type=Path, required=True, metavar="JSONL",
            help=_QUERIES[name])  # fmt: skip
        if name == "fusion":
            add("--plain-queries", nargs="+", type=Path, required=True, metavar="JSONL",
                help="that are answered without thinking")  # fmt: skip
        add("--generator", required=True, metavar="MODEL", help="who answers: a folder or address")
        for role, what in build.roles.items():
            option, text = f"--{role.replace('_', '-')}", what
            text += "" if role == "judge" else "; default: the generator"
            add(option, default="", metavar="MODEL", help=text)
        add("--out", type=Path, required=True, metavar="FOLDER", help="for dialogs.jsonl and the "
            "reports; made, or gone on with where the same command began it")  # fmt: skip
        add("--validation", nargs="+", default=[], metavar="FILE",
            help="items that no query and no answer may resemble")  # fmt: skip
        add("--tokenizer", default="", metavar="FOLDER", help="whose tokens --validation counts")
        add("--most-in-common", type=int, default=8, metavar="N",
            help="items that may share a passage before it counts as nobody's (8)")  # fmt: skip
        add("--on-error", choices=("skip", "stop"), default="skip", help="at a bad line (skip)")
        for table, title in {**build.tables, **COMMON}.items():
            options.add(command, table, title)
    teacher = commands.add_parser(
        "teacher",
        help="a teacher's probabilities at each trained token of tokenized dialogs",
        description=teacher_targets.__doc__,
    )
    teacher_targets.add_arguments(teacher)
    teacher.set_defaults(run=teacher_targets.run)
    return parser
