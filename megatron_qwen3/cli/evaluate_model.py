"""Measure how well a model does tasks whose answers are verified, with and without thinking.

    mq3 evaluate runs/post_3_fusion --tasks math.jsonl --out runs/eval/fusion
    mq3 evaluate runs/export --tasks gym:chain_sum,size=100 gym:gcd --samples 8 \\
        --modes thinking --budgets 128 512 2048 --out runs/eval/budgets
    mq3 evaluate http://localhost:8000/v1 --tasks math.jsonl ifeval.jsonl \\
        --obedience 200 --tokenizer Qwen3-0.6B --out runs/eval/served

A task is a line of JSON with "messages", the last a user's, and "verifier", as
{"kind": "math", "gold": "42"}; maybe "id" and "tools". gym:NAME is a generator of reasoning-gym,
with its settings after commas, own:KIND one of the project's (mq3 tasks lists them). Kinds of
verifiers: see megatron_qwen3/posttrain/verifiers.

OUT/report.html shows pass@k (Chen et al. 2021) with 95 % intervals over tasks, in each mode and by
thinking budget, lengths of thinking, how many answers were cut, and how often the last /think or
/no_think of a dialog decides (--obedience). OUT/results.json has all numbers, OUT/samples.jsonl
each answer with its score, the reason, its thinking and its text. Answers are kept as they come
(OUT/answers.jsonl): the same command goes on, also after a stop or with a dead endpoint.

--max-tokens is the same as `generate --max-new-tokens`: of thinking and answer together, and of the
text that is inserted where a budget cuts thinking. Lengths of thinking leave that text out.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from megatron_qwen3 import launcher
from megatron_qwen3.cli.ending import ending
from megatron_qwen3.cli.parser import Parser
from megatron_qwen3.config import ConfigError
from megatron_qwen3.posttrain import options
from megatron_qwen3.posttrain.building.answer_log import AnswerLog
from megatron_qwen3.posttrain.building.begun import begin, check_folder
from megatron_qwen3.posttrain.building.steps import Steps
from megatron_qwen3.posttrain.building.work import write_lines
from megatron_qwen3.posttrain.evaluation.evaluate import (
    Evaluation,
    EvaluationResult,
    EvaluationSettings,
    rows,
)
from megatron_qwen3.posttrain.evaluation.tasks import read
from megatron_qwen3.posttrain.generators.opened import open_generator
from megatron_qwen3.posttrain.generators.settings import EndpointLimits, Local
from megatron_qwen3.posttrain.verifiers.judging import VerifySettings
from megatron_qwen3.shown import shown
from megatron_qwen3.storage.lock import owned
from megatron_qwen3.storage.whole import write_whole

RESULTS, PAGE, SAMPLES, ANSWERS = "results.json", "report.html", "samples.jsonl", "answers.jsonl"


TABLES = {
    EvaluationSettings: "tasks and sampling",
    VerifySettings: "verifying",
    EndpointLimits: "endpoints",
    Local: "models of ours",
}


@ending(goes_on=True)
def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """The exit status: 0 done, 1 done, but more than 1 % of the answers could not be judged, 130 or
    143 stopped, 2 something is wrong, or there is no answer."""
    given = _parser(prog).parse_args(arguments)
    return run(given)


def run(given: argparse.Namespace) -> int:
    """Check all arguments, ask, verify, and write the results; the exit status."""
    check_folder("--out", given.out)
    settings = options.taken(EvaluationSettings, given)
    verify = options.taken(VerifySettings, given)
    tasks, problems = read(given.tasks, given.most, given.on_error == "stop")
    generator = open_generator(
        given.model, options.taken(EndpointLimits, given), options.taken(Local, given)
    )
    count, unit = _counter(given)
    with generator as opened:
        if not opened.leads:
            opened.follow()
            return 0
        with (
            _begun(given.out),
            AnswerLog(given.out / ANSWERS) as log,
            verify.verifiers() as verifiers,
        ):
            evaluation = Evaluation(opened, log, verifiers, Steps(), count, unit)
            found = evaluation.run(tasks, settings)
            found.content["settings"] = asdict(settings)
            found.content["problems"] = [problem._asdict() for problem in problems]
            return _write(given.out, found, log)


@contextmanager
def _begun(out: Path) -> Iterator[None]:
    """The folder is ours: no other run is at work in it, and no build has its results there."""
    with owned(out, "lock"):
        begin(out, "evaluate")
        yield


def _write(out: Path, found: EvaluationResult, log: AnswerLog) -> int:
    from megatron_qwen3.pages import evaluation as pages
    from megatron_qwen3.tables import console

    content = found.content
    write_lines(out / SAMPLES, rows(found.samples, log))
    text = json.dumps(content, ensure_ascii=False, indent=1)
    write_whole(out / RESULTS, [text.encode("utf-8", "replace"), b"\n"])
    pages.write(content, found.examples, out / PAGE)
    for table in pages.tables(content):
        console().print(table)
    for line in filter(None, (content["alarm"], *content["notes"])):
        print(shown(f"note: {line}"), file=sys.stderr)
    missing = sum(content["failures"].values())
    if missing:
        told = f"note: {missing:,} requests have no answer; the same command asks them again"
        print(shown(told), file=sys.stderr)
    obedience = content["obedience"]
    if not found.samples and not (obedience and obedience["answered"]):
        raise ConfigError(f"{out}: not one answer; {RESULTS} says why")
    count = len(found.samples) + (obedience["answered"] if obedience else 0)
    print(shown(f"{out / PAGE}: {count:,} answers"))
    return 1 if content["alarm"] else 0


def _counter(given: argparse.Namespace) -> tuple[Callable[[str], int], str]:
    """How long a text is: in tokens where the model is a folder, or --tokenizer names one."""
    from data_prep import tokenizer
    from data_prep.tokenizer_file import tokenizer_json
    from megatron_qwen3.hub import tokenizer_folder

    folder = given.tokenizer
    if not folder and "://" not in given.model and Path(given.model).is_dir():
        from megatron_qwen3.generate.load import ModelSource

        folder = ModelSource(Path(given.model)).config([], launcher.world_size()).data.tokenizer
    if not folder:
        return len, "characters"
    setting = "--tokenizer" if given.tokenizer else "data.tokenizer"
    tokenizer_folder(folder, setting)
    file = tokenizer_json(folder)
    if not file.is_file():
        raise ConfigError(f"{setting} = {folder}: {file} does not exist")
    loaded = tokenizer.load(file)
    return lambda text: len(loaded.encode(text, add_special_tokens=False).ids), "tokens"


def _parser(prog: str | None) -> Parser:
    parser = Parser(prog=prog, description=__doc__)
    add = parser.add_argument
    add("model", help="a run, a checkpoint, a folder of Hugging Face's format, or an address")
    add(
        "--tasks",
        nargs="+",
        required=True,
        metavar="TASKS",
        help="JSON lines, gym:NAME or own:KIND",
    )
    add("--out", type=Path, required=True, metavar="FOLDER", help="is made, or gone on with")
    add("--most", type=int, metavar="N", help="tasks of each set (all)")
    add("--tokenizer", default="", metavar="FOLDER", help="that counts lengths; default: its own")
    add("--on-error", choices=("skip", "stop"), default="skip", help="at a bad line (skip)")
    for table, title in TABLES.items():
        options.add(parser, table, title)
    return parser
