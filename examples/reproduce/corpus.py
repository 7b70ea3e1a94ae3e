"""Writes the documents that the base models are pretrained on: facts, and worked problems.

    python -m examples.reproduce.corpus --out runs/reproduce/documents

Two files of JSON lines, whose labels name their source:

    facts    single steps, independent of each other: " a4+3=7 d2*7=4 …", and moves of letters
    worked   a problem, its steps, and its answer, with remarks of common words between them. Some
             steps are merged, and then often beyond a small model: what reinforcement learning can
             later leave off. The first file has short problems alone, with which models learn to
             copy, the second all lengths

No document has a chat's form or a budget, and /think and /no_think are words without a meaning: all
of that comes with post-training.
"""

import argparse
import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from random import Random

from examples.reproduce import problems
from megatron_qwen3.storage.whole import write_whole

MERGED = (0.7, 0.2, 0.1)  # lines of one, two and three steps in worked documents
SECOND = 0.3  # of the long documents have a second problem, as dialogs of several turns will
MOST_REMARKS = 8  # words: a chat has as many tokens between question and steps
# Common words of the four languages, for remarks that say nothing.
_TEXT = """
the a time by I have to give on now so we can you it is this that then next first last as
with for be of and right user assistant think no answer result steps limited considering
solution based thinking directly /think /no_think und der die das ich so ist mit dann y el la
que es con 我 们 是 的 就 那 这 . , : - / _ < >
"""
WORDS = _TEXT.split()


def facts(random: Random, count: int = 16) -> str:
    """Single steps of one kind."""
    if random.random() < 0.25:
        return "".join(_move(random) for _ in range(count // 2))
    return "".join(_sum(random) for _ in range(count))


def _sum(random: Random) -> str:
    value, what = str(random.randrange(10)), problems.operation(random)
    return f" {random.choice(problems.LABELS)}{value}{what}={problems.applied(value, what)}"


def _move(random: Random) -> str:
    value, where = "".join(random.sample("abcd", 4)), random.choice("123")
    return f" {random.choice(problems.LABELS)} {value}{where}= {problems.applied(value, where)}"


def worked(random: Random, most: int) -> str:
    """A problem with its steps and its answer."""
    problem = problems.draw(random.choice(problems.KINDS), random, most=most)
    question = problem.question if random.random() < 0.7 else problem.body
    return (
        f"{remark(random)}{question}{remark(random)}\n{problem.lines(random, MERGED)}"
        f"{remark(random)}\n{problem.answer}"
    )


def several(random: Random) -> str:
    """One problem of any length, or two."""
    return "\n".join(worked(random, 8) for _ in range(2 if random.random() < SECOND else 1))


def remark(random: Random) -> str:
    """Up to MOST_REMARKS words, on half of the occasions none; sometimes a line ends among them."""
    if random.random() < 0.3:
        return ""
    words = random.choices(WORDS, k=random.randint(1, MOST_REMARKS))
    return "".join(random.choice((" ", " ", " ", "\n", "\n\n")) + word for word in words)


def documents(seed: int, scale: float) -> Iterator[tuple[str, dict[str, str]]]:
    """File and line of each document; scale: of their number, 1 is what the recipe asks for."""
    random = Random(seed)
    for source, count, make in (
        ("facts", 40_000, lambda: facts(random)),
        ("short", 24_000, lambda: worked(random, 4)),
        ("long", 40_000, lambda: several(random)),
    ):
        for _ in range(int(count * scale)):
            yield source, {"text": make(), "source": source, "domain": "maths", "language": "en"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of documents (1)")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    made = documents(given.seed, given.scale)
    for source, lines in groupby(made, lambda document: document[0]):
        content = (json.dumps(line, ensure_ascii=False).encode() + b"\n" for _, line in lines)
        write_whole(given.out / f"{source}.jsonl", content)


if __name__ == "__main__":
    main()
