"""Score answers with a reward model: a checkpoint, a run folder, or a folder of HF's format.

    mq3 score runs/reward_model answers.jsonl --out scored.jsonl
    mq3 score export/reward pairs.jsonl > scored.jsonl
    torchrun --nproc-per-node 8 -m megatron_qwen3 score runs/reward_model answers.jsonl \\
        --out scored.jsonl parallel.tensor=2

A line is {"messages": […, assistant]}, or {"messages", "answer"}, {"messages", "answers": […]} or
{"messages", "chosen", "rejected"}; an answer is a text, a message or a list of messages. Each line
comes back with its "score", or "scores" in the answers' order. Of pairs the share that is ranked as
given is printed at the end, too. All lines are checked before the first is scored.
"""

import argparse
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from megatron_qwen3 import entry, launcher
from megatron_qwen3.bar import Bar
from megatron_qwen3.chat import ChatTokenizer
from megatron_qwen3.cli.ending import ending
from megatron_qwen3.cli.parser import Parser, positive
from megatron_qwen3.config import ConfigError
from megatron_qwen3.generate.load import load, tokenizer_of
from megatron_qwen3.generate.opening import checked, close, joined
from megatron_qwen3.json_lines import lines_to
from megatron_qwen3.posttrain.rewards.answer_lines import AskedLine, read_answers
from megatron_qwen3.storage.folder import check_file

_ROWS_AT_ONCE = 8  # of each data rank: between them the bar moves, and nothing else is kept


@ending()
def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """The exit status: 0 done, 2 an argument is wrong."""
    given = entry.parse(_parser(prog), arguments)
    _run(given)
    return 0


def _parser(prog: str | None) -> Parser:
    parser = Parser(prog=prog, description=__doc__)
    parser.add_argument("model", type=Path, metavar="MODEL")
    parser.add_argument("answers", type=Path, metavar="ANSWERS.jsonl")
    parser.add_argument(
        "settings", nargs="*", metavar="key=value", help="such as parallel.tensor=2"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="of JSON lines, written when it is whole; default: standard output",
    )
    parser.add_argument(
        "--row-tokens",
        type=positive,
        default=8192,
        metavar="N",
        help="that are scored at once, of one data rank; a longer answer takes more",
    )
    return parser


def _run(given: argparse.Namespace) -> None:
    """Check all arguments, load the model, and score, on this rank."""
    source, config = checked(given.model, given.settings, head="scalar")
    is_first = launcher.rank() == 0
    if given.out and is_first:
        check_file("--out", given.out)
    chat = ChatTokenizer(tokenizer_of(config))
    total = sum(len(asked.answers) for asked in read_answers(given.answers, chat))
    if not total:
        raise ConfigError(f"{given.answers}: there is no answer in it to score")
    model = load(source, config, joined(config))
    from megatron_qwen3.posttrain.rewards.scoring import scores

    at_once = given.row_tokens * _ROWS_AT_ONCE * model.layout.data
    ranked: list[bool] = []
    with lines_to(given.out, is_first) as write, Bar("answers", total, is_shown=is_first) as bar:
        for batch in _batches(read_answers(given.answers, chat), at_once):
            answers = [ids for asked in batch for ids in asked.answers]
            made = scores(model, answers, given.row_tokens)
            _check_finite(made, source.path)
            for record, is_right in _scored(batch, made):
                ranked += [] if is_right is None else [is_right]
                write(record)
            bar.advance(len(answers))
    if ranked and is_first:
        share = sum(ranked) / len(ranked)
        print(f"{len(ranked):,} pairs, {share:.2%} ranked as given", file=sys.stderr)
    close()


def _scored(batch: Iterable[AskedLine], made: Iterable[float]) -> Iterator[tuple[Any, bool | None]]:
    """Each line with its scores, and of a pair whether they rank it as given; a tie is wrong."""
    left = iter(made)
    for asked in batch:
        mine = [next(left) for _ in asked.answers]
        is_right = mine[0] > mine[1] if asked.is_pair else None
        yield asked.scored([round(score, 6) for score in mine]), is_right


def _check_finite(made: Sequence[float], model: Path) -> None:
    if broken := [score for score in made if not math.isfinite(score)]:
        raise ConfigError(
            f"{model}: {len(broken)} of {len(made)} scores are not finite, the first is "
            f"{broken[0]}: its weights are broken, or its precision does not hold its activations"
        )


def _batches(lines: Iterable[AskedLine], tokens: int) -> Iterator[list[AskedLine]]:
    """Neighbours that have so many tokens together, one line at least."""
    batch: list[AskedLine] = []
    count = 0
    for asked in lines:
        size = sum(map(len, asked.answers))
        if batch and count + size > tokens:
            yield batch
            batch, count = [], 0
        batch.append(asked)
        count += size
    if batch:
        yield batch
