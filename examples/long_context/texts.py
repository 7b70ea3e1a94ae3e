"""Writes texts whose every symbol follows from earlier ones, far away or near.

    python examples/long_context/texts.py --out runs/long_context/data

Each document has a rule of its own, the order in which eight letters come again and again; one
letter in ten is drawn instead. Somewhere in it stands a key, [4821], and further on <4821> asks for
it: once, since where several ask a model copies the nearest answer, and more often near by, where
looking back is learned first. Lengths differ by factors, up to two rows, and rows begin anywhere: a
model that sees texts begin or end where its rows do learns the place.

FOLDER/documents has texts for short and for long rows; FOLDER/test.jsonl longer ones without a key,
in which `read-long` hides its own.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # also from a plain checkout
from megatron_qwen3.storage.whole import write_whole

LETTERS = "abcdefgh"
NOISE = 0.1
DIGITS = 4
BEGIN = "."  # where attention rests that looks for nothing
LEAST = 20  # letters of a document
TESTS, TEST = 64, 1_100  # texts and their letters


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--rows", type=int, nargs=2, default=(64, 256), help="their lengths")
    parser.add_argument("--letters", type=int, default=3_000_000, help="for each length of rows")
    given = parser.parse_args()
    for name, row in zip(("short", "long"), given.rows, strict=True):
        texts = documents(Random(name), given.letters, 2 * row)
        write(given.out / "documents" / f"{name}.jsonl", name, texts)
    tests = (BEGIN + "".join(letters(Random(f"filler {n}"), TEST)) for n in range(TESTS))
    write(given.out / "test.jsonl", "test", tests)


def write(path: Path, name: str, texts: Iterable[str]) -> None:
    labels = {"source": name, "domain": "synthetic", "language": "eng_Latn"}
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (
        json.dumps({"id": f"{name}/{number}", "text": text, **labels}) + "\n"
        for number, text in enumerate(texts)
    )
    write_whole(path, (line.encode() for line in lines))


def letters(random: Random, count: int) -> list[str]:
    """Each the one that follows the last by the document's rule, or a random one."""
    order = random.sample(LETTERS, len(LETTERS))
    follows = dict(zip(order, order[1:] + order[:1], strict=True))
    found = [random.choice(LETTERS)]
    while len(found) < count:
        is_noise = random.random() < NOISE
        found.append(random.choice(LETTERS) if is_noise else follows[found[-1]])
    return found


def documents(random: Random, count: int, most: int) -> Iterator[str]:
    """Such texts of at most `most` letters, of `count` in all."""
    while count > 0:
        length = between(random, LEAST, most)
        count -= length
        yield with_key(random, length)


def with_key(random: Random, length: int) -> str:
    """As many letters, in which a key is said, and asked for once."""
    text, key = "".join(letters(random, length)), "".join(random.choices("0123456789", k=DIGITS))
    said = random.randrange(length - 3)
    asked = min(length, said + between(random, 3, length))
    return f"{BEGIN}{text[:said]}[{key}]{text[said:asked]}<{key}>{text[asked:]}"


def between(random: Random, least: int, most: int) -> int:
    """Of all factors alike: as often from 10 to 20 as from 100 to 200."""
    return round(math.exp(random.uniform(math.log(least), math.log(most))))


if __name__ == "__main__":
    main()
