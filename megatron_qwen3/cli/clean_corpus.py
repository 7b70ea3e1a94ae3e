"""Clean a corpus: normalise, name languages, filter, drop duplicates and evaluation data, label.

    mq3 data clean run --out runs/clean web=dumps/2024 books=gutenberg.jsonl.gz
    mq3 data clean run --out runs/clean code:code=src web=a.parquet \\
        --decontaminate-against gsm8k_test.jsonl --languages eng_Latn deu_Latn --workers 8
    mq3 data clean run --out /scratch/clean web=/data --num-tasks 2000 \\
        --partition cpu
    mq3 data clean run --show > mine.toml; (edit it)
    mq3 data clean run --out runs/clean web=dumps/2024 --recipe mine.toml
    mq3 data clean run --out runs/clean-2025 web=dumps/2025 --against runs/clean
    mq3 data clean show runs/clean

An input is a path, NAME=PATH, or NAME:DOMAIN=PATH: a file or folder, here or by URL (s3://, hf://,
gs://), of JSONL (.gz, .zst), Parquet, plain text or source code. NAME, of a path alone its own
name, and DOMAIN label documents that do not say it themselves. OUT/documents holds the result, for
mq3 data tokenize; OUT/report.json, report.png and `show` count dropped documents by reason,
OUT/dropped and OUT/duplicates list them, OUT/problems.jsonl unreadable input. Killed or
stopped, the same command goes on where it was, also with other cores.

Documents that bring no `quality` and `education` get heuristics of characters and words, from 0 to
1, which do not judge their content; --quality-model and --education-model do.
"""

import argparse
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.lifetime import errors_for_people
from megatron_qwen3.cli import grammar
from megatron_qwen3.cli.ending import ending
from megatron_qwen3.cli.parser import Parser
from megatron_qwen3.config import ConfigError
from megatron_qwen3.cores import cores
from megatron_qwen3.shown import as_json, shown, shown_text
from megatron_qwen3.storage.lock import owned

if TYPE_CHECKING:
    from data_prep.clean.settings import CleaningInput, CleanSettings

_TASKS_PER_CORE = 4


@ending(goes_on=True)
def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """The exit status: 0 done, 130 or 143 stopped, 2 something is wrong with a file, name or disk,
    or nothing was kept."""
    given = _parser(prog).parse_args(arguments)
    return int(given.run(given))


def _parser(prog: str | None) -> Parser:
    parser = Parser("run", prog=prog, description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    text: dict[str, Any] = {"description": __doc__}
    run = commands.add_parser("run", help="clean, or go on with it", **text)
    run.set_defaults(run=_run)
    _add_what(run)
    _add_where(run)
    show = commands.add_parser("show", help="the tables of a cleaning that has ended", **text)
    show.set_defaults(run=_show)
    show.add_argument("out", type=Path)
    show.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return parser


def _add_what(run: argparse.ArgumentParser) -> None:
    add = run.add_argument
    add("inputs", nargs="*", metavar="[NAME[:DOMAIN]=]PATH")
    add("--out", metavar="FOLDER")
    add("--recipe", metavar="FILE", help="TOML of all that is done; options go before it")
    add("--set", nargs="+", default=[], metavar="KEY=VALUE", help="of a recipe; go before options")
    printed = run.add_mutually_exclusive_group().add_argument
    text = "print the recipe that these options make, no more"
    printed("--show", action="store_true", help=text)
    printed("--json", action="store_true", help="print the report as JSON instead of tables")
    text = "name of the text in the files: text=content"
    add("--field", dest="text_field", type=_text_field, metavar="OURS=THEIRS", help=text)
    add("--text-field", help=argparse.SUPPRESS)
    add(
        "--keep-fields",
        nargs="+",
        metavar="NAME",
        help="fields that stay with documents: names, none, or all single values; default: all",
    )
    text = "keep only these: en, eng or eng_Latn; default: all 119"
    add("--languages", nargs="+", type=grammar.language, metavar="LANGUAGE", help=text)
    kept = {"dest": "undetermined", "action": "store_true", "default": None}
    add("--keep-undetermined", help="and `und`", **kept)
    kept = {"dest": "filters", "action": "store_false", "default": None}
    add("--no-filters", help="label quality, drop nothing for it", **kept)
    add(
        "--similarity",
        type=float,
        metavar="SHARE",
        help="documents this much alike are duplicates; over 1: only equal ones; default: 0.75",
    )
    add(
        "--decontaminate-against",
        nargs="+",
        metavar="FILE",
        help="data to keep out",
    )
    grammar.add_renamed(add, "--resemblance", "--similarity")
    grammar.add_renamed(add, "--evaluation", "--decontaminate-against")
    add(
        "--against",
        nargs="+",
        default=[],
        metavar="FOLDER",
        help="earlier cleanings: documents like theirs are dropped",
    )
    add("--keep-index", action="store_true", help="keep the index of documents for --against")
    add("--contamination-run", type=int, metavar="N", help="default: 13")
    add("--tokenizer", metavar="FOLDER", help="compare evaluation data in its tokens, not in words")
    for name in ("language", "domain", "quality", "education", "safety"):
        words = ", or glotlid" if name == "language" else ""
        add(f"--{name}-model", metavar="MODEL", help=f"file of fastText or ONNX{words}")
    add("--min-safety", type=float, help="with a safety model; default: 0.5")
    add("--on-error", choices=("skip", "stop"), help="at a bad line; default: skip")
    add("--format", choices=("jsonl", "parquet"), help="of the result; default: jsonl, as .zst")
    add("--documents", metavar="PLACE", help="folder or URL of the result; default: OUT/documents")


def _add_where(run: argparse.ArgumentParser) -> None:
    text = "processes at a time; default: cores"
    run.add_argument("--workers", type=int, metavar="N", help=text)
    run.add_argument(
        *("--num-tasks", "--tasks"),
        dest="tasks",
        type=int,
        metavar="N",
        help=f"parts; default: those that it began with, at first {_TASKS_PER_CORE} for each core",
    )
    run.add_argument(
        *("--partition", "--slurm"),
        dest="slurm",
        metavar="PARTITION",
        help="queue job arrays of SLURM there, and return",
    )
    run.add_argument("--ray", action="store_true", help="run on the cluster of RAY_ADDRESS")
    for name, old, kind, metavar, default in (
        ("--time", "--hours", grammar.hours, "[STAGE=]TIME", "24:00:00"),
        ("--memory", "--memory-gb", grammar.size(1e9), "[STAGE=]SIZE", "4GB"),
    ):
        text = f"of a task on SLURM or Ray; default: {default}; of one stage: groups={default}"
        kept = {"dest": old.strip("-").replace("-", "_"), "nargs": "+", "action": "extend"}
        run.add_argument(
            name, type=grammar.of_one(kind), default=[], metavar=metavar, help=text, **kept
        )
        run.add_argument(old, help=argparse.SUPPRESS, **kept)
    run.add_argument(
        "--sbatch",
        nargs="+",
        action="extend",
        type=grammar.sbatch_option,
        default=[],
        metavar="OPTION=VALUE",
        help="any other option of sbatch's: account=lm",
    )


# datatrove is imported only where it is needed: a wrong command costs no seconds.
def _run(given: argparse.Namespace) -> int:
    from data_prep.clean import plan, read, recipe, stages
    from data_prep.clean.settings import LOCK, documents_of

    settings = _settings(given)
    if given.show:
        print(shown_text(recipe.text(settings)), end="")
        return 0
    if not given.out:
        raise ConfigError("--out FOLDER is missing")
    settings.validate()
    settings.check_folder()
    settings = settings.as_begun()
    if given.workers is not None and given.workers < 1:
        raise ConfigError(f"--workers = {given.workers}; valid: 1 or more")
    given.hours = _by_stage("--hours", given.hours, 24)
    given.memory_gb = _by_stage("--memory-gb", given.memory_gb, 4)
    files = plan.find_files(settings)
    size = plan.input_bytes(files)
    listed = stages.stages(settings, size)  # which raises errors before the folder is made
    for note in filter(None, (plan.not_read(settings), read.tokenizer_note(settings))):
        print(shown(note), file=sys.stderr)
    if given.slurm and not stages.is_done(settings):
        stages.check_queue(settings, listed)  # it tells of jobs better than their lock does
    out = Path(given.out)
    with errors_for_people(out), owned(out, LOCK):
        if note := plan.begin(settings, files):
            print(shown(note), file=sys.stderr)
        recipe.keep(settings)
        is_done = stages.is_done(settings) or _start(given, settings, size)
    if is_done:
        _tell(out, given.json)
        if not given.json:
            print(shown(f"{documents_of(Path(given.out))}: ready for mq3 data tokenize"))
    return 0


def _tell(out: Path, as_object: bool) -> None:
    """Print the report of a cleaning that has ended."""
    from data_prep.clean.report import check_kept, print_report, read_report
    from data_prep.clean.settings import documents_of
    from megatron_qwen3 import tables

    content = read_report(out)
    if as_object:
        print(as_json(content | {"documents": documents_of(out)}))
    else:
        print_report(content, tables.console())
    check_kept(out, content)


def _start(given: argparse.Namespace, settings: "CleanSettings", size: int) -> bool:
    """Whether the result is there; it is not where jobs were queued."""
    from data_prep.clean import stages

    if given.slurm:
        words = (option.lstrip("-").partition("=") for option in given.sbatch)
        options = {name: value for name, _, value in words}
        job = stages.run_slurm(
            settings, size, given.slurm, given.hours, given.memory_gb, given.workers or -1, options
        )
        print(shown(f"queued; job {job} is the last. Then: mq3 data clean show {given.out}"))
        return False
    if given.ray:
        stages.run_ray(settings, size, given.memory_gb, given.workers or -1)
    else:
        stages.run_local(settings, size, given.workers or cores())
    return True


def _by_stage(option: str, values: Sequence[str], default: float) -> dict[str, float]:
    """Numbers by their stages, "" for the others: of 4 and groups=64."""
    from data_prep.clean.stages import STAGES

    found = {"": default}
    for value in values:
        stage, _, number = value.rpartition("=")
        if stage and stage not in STAGES:
            raise ConfigError(f"{option} {value}: no such stage; valid: {', '.join(STAGES)}")
        try:
            found[stage] = float(number)
        except ValueError:
            raise ConfigError(f"{option} {value}: valid are a number, or STAGE=number") from None
        if not 0 < found[stage] < math.inf:
            raise ConfigError(f"{option} {value}: the number has to be over 0")
    return found


def _settings(given: argparse.Namespace) -> "CleanSettings":
    from data_prep.clean import recipe
    from data_prep.clean.settings import MODELS, CleanSettings, tasks_begun

    tasks = given.tasks
    if tasks is None:
        begun = tasks_begun(Path(given.out)) if given.out else None
        tasks = begun or _TASKS_PER_CORE * cores()
    options = {name: value for name, value in vars(given).items() if name in recipe.KEYS}
    options = {name: value for name, value in options.items() if value is not None}
    models = {name: getattr(given, f"{name}_model") for name in MODELS}
    options["models"] = {name: file for name, file in models.items() if file}
    inputs = tuple(map(_input, given.inputs))
    values = recipe.read(given.recipe, options, given.set)
    return CleanSettings(
        inputs,
        given.out or "",
        tasks,
        documents=given.documents or "",
        against=tuple(given.against),
        keep_index=given.keep_index,
        **values,
    )


def _text_field(text: str) -> str:
    """The type of --field, of which there is one: the others keep their names."""
    ours, _, theirs = text.partition("=")
    if ours != "text" or not theirs:
        raise argparse.ArgumentTypeError(f"{text!r}; valid: text=NAME, as text=content")
    return theirs


def _input(text: str) -> "CleaningInput":
    from data_prep.clean.settings import CleaningInput

    if os.path.exists(text):  # a path alone, whose name is the source's
        return CleaningInput(
            Path(os.path.abspath(text)).name.partition(".")[0] or "documents", text, None
        )
    name, equals, path = text.partition("=")
    if not (equals and name and path):
        raise ConfigError(f"input {text!r} is neither a path here nor NAME[:DOMAIN]=PATH")
    source, _, domain = name.partition(":")
    return CleaningInput(source, path, domain or None)


def _show(given: argparse.Namespace) -> int:
    _tell(given.out, given.json)
    return 0
