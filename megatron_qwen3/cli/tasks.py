"""Look at the tasks of a file or a generator before a run or an evaluation uses them.

    mq3 tasks                                    # the kinds there are
    mq3 tasks own:functions --count 2            # two tasks, to be read
    mq3 tasks gym:chain_sum,max_terms=3 math.jsonl --first 100
    mq3 tasks own:json,seed=7 --count 500 --json > queries.jsonl

own:KIND and gym:NAME have no end: task n is always the same one, by its seed and its number. Lines
of --json are the input of rollouts.tasks, mq3 evaluate and mq3 data build.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from megatron_qwen3.cli.ending import ending
from megatron_qwen3.cli.parser import Parser, whole
from megatron_qwen3.posttrain.evaluation.task import Task
from megatron_qwen3.posttrain.evaluation.tasks import open_source
from megatron_qwen3.posttrain.rewards.tasks import kinds
from megatron_qwen3.shown import shown_text
from megatron_qwen3.tables import console, table


@ending()
def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """The exit status: 0 done, 2 an argument is wrong."""
    given = _parser(prog).parse_args(arguments)
    if not given.sources:
        console().print(table(_kinds(), words=("kind", "made by")))
    for name in given.sources:
        for task in _asked(name, given.first, given.count):
            print(json.dumps(line(task)) if given.jsonl else shown_text(_read(task)))
    return 0


def line(task: Task) -> dict[str, Any]:
    """The task as a line of JSON that `open_source` and `queries.read` read."""
    row = {
        "id": task.id,
        "messages": list(task.messages),
        "verifier": dict(task.verifier) or None,
        "gold": task.gold,
        "tools": list(task.tools),
        "checklist": list(task.checklist),
        "domain": task.domain,
        "source": task.source,
        "language": task.language,
        "rewards": dict(task.rewards),
    }
    return {name: value for name, value in row.items() if value}


def _asked(name: str, first: int, count: int) -> Iterator[Task]:
    source = open_source(name)
    end = first + count if source.size is None else min(source.size, first + count)
    for number in range(first, end):
        yield source.task(number)


def _kinds() -> Iterator[list[str]]:
    yield ["kind", "made by"]
    for kind, makers in kinds.KINDS.items():
        names = [
            _with_settings(maker.dataset, maker.settings)
            if isinstance(maker, kinds.Gym)
            else f"the project: {maker.__name__}"
            for maker in makers
        ]
        yield [f"own:{kind}", "  ".join(names)]


def _with_settings(dataset: str, settings: Mapping[str, Any]) -> str:
    return ",".join([f"gym:{dataset}", *(f"{name}={value}" for name, value in settings.items())])


def _read(task: Task) -> str:
    """The task for people."""
    parts = [f"── {task.id} · {task.language or 'any language'}"]
    parts += [f"{message['role']}: {message.get('content') or ''}" for message in task.messages]
    parts += [f"tool: {json.dumps(tool, ensure_ascii=False)}" for tool in task.tools]
    parts += [f"verifier: {json.dumps(dict(task.verifier), ensure_ascii=False)}"]
    parts += [f"checklist: {one}" for one in task.checklist]
    return "\n".join([*parts, f"gold: {_gold(task)}", ""])


def _gold(task: Task) -> str:
    """The right answer for people, which lines of files mostly leave to the verifier."""
    known = task.gold or task.verifier.get("gold", "")
    if known:
        return known if isinstance(known, str) else json.dumps(known, ensure_ascii=False)
    return "its verifier alone knows" if task.verifier else "none"


def _parser(prog: str | None) -> Parser:
    parser = Parser(prog=prog, description=__doc__)
    add = parser.add_argument
    add("sources", nargs="*", metavar="TASKS", help="JSON lines, gym:NAME or own:KIND")
    add("--first", type=_number, default=0, metavar="N", help="number of the first task (0)")
    add("--count", type=_number, default=1, metavar="N", help="tasks of each source (1)")
    text = "lines of JSON instead of text for people"
    add("--json", "--jsonl", dest="jsonl", action="store_true", help=text)
    return parser


def _number(text: str) -> int:
    if (number := whole(text)) < 0:
        raise argparse.ArgumentTypeError(f"{text}; valid: at least 0")
    return number
