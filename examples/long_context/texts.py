"""Writes texts whose every symbol follows from what came before, far away or near.

    python examples/long_context/texts.py --out runs/long_context/data

Each document has a rule of its own, the order in which eight letters come again and again; one
letter in ten is drawn instead. [4821] says a key, <4821> asks for it once again: places at which a
model must look back. Documents are much longer than rows, which begin anywhere in them: a model
that sees texts begin or end where its rows do learns the place.

FOLDER/documents has texts for short and for long rows, in which keys are asked for sooner or later;
FOLDER/test.jsonl texts as the long ones, and FOLDER/filler.jsonl texts without a key, in which
`read-long` hides its own.
"""

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from random import Random

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # also from a plain checkout
from megatron_qwen3.storage.whole import write_whole

LETTERS = "abcdefgh"
NOISE = 0.1
DIGITS = 4
BEFORE = 20  # letters before the next key, at most
DOCUMENT = 4_000  # characters
TESTS, TEST = 64, 1_100  # texts and their characters


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--rows", type=int, nargs=2, default=(64, 256), help="their lengths")
    parser.add_argument("--documents", type=int, default=800, help="for each length of rows")
    given = parser.parse_args()
    for name, row in zip(("short", "long"), given.rows, strict=True):
        texts = (with_keys(Random(f"{name} {n}"), DOCUMENT, row) for n in range(given.documents))
        write(given.out / "documents" / f"{name}.jsonl", name, texts)
    tests = (with_keys(Random(f"test {n}"), TEST, given.rows[1]) for n in range(TESTS))
    write(given.out / "test.jsonl", "test", tests)
    fillers = ("".join(letters(Random(f"filler {n}"), TEST)) for n in range(TESTS))
    write(given.out / "filler.jsonl", "filler", fillers)


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


def with_keys(random: Random, length: int, row: int) -> str:
    """Such letters, in which one key after the other is said, and asked for once within a row."""
    plain, text = letters(random, length), ""
    while len(text) < length:
        key = "".join(random.choice("0123456789") for _ in range(DIGITS))
        for piece, most in ((f"[{key}]", BEFORE), (f"<{key}>", row * 3 // 4)):
            gap = random.randint(4, most)
            text += "".join(plain[:gap]) + piece
            plain = plain[gap:]
    return text[:length]


if __name__ == "__main__":
    main()
