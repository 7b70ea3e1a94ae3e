"""Writes texts whose every symbol follows from what came before, far away or near.

    python examples/long_context/texts.py --out runs/long_context/data

Each document has a rule of its own, which of eight letters follows which; one letter in ten is
drawn instead. Who reads on learns the rule, so loss falls along a text for as long as attention
reaches. [4821] says a key, <4821> asks for it again: places at which a model must look far back.

FOLDER/documents has short and long ones for training, of one row each; FOLDER/test.jsonl longer
ones, and FOLDER/filler.jsonl such ones without a key, in which `read-long` hides its own.
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
KEYS_BEFORE = 40  # characters
BETWEEN = (2, 20)  # characters from one question to the next


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--rows", type=int, nargs=2, default=(64, 256), help="their lengths")
    parser.add_argument("--documents", type=int, nargs=2, default=(38_400, 9_600))
    parser.add_argument(
        "--test", type=int, nargs=2, default=(64, 1_100), help="texts, their length"
    )
    given = parser.parse_args()
    for name, row, count in zip(("short", "long"), given.rows, given.documents, strict=True):
        # The end-of-text token is the last one of a row.
        texts = (with_keys(Random(f"{name} {n}"), row - 1) for n in range(count))
        write(given.out / "documents" / f"{name}.jsonl", name, texts)
    count, length = given.test
    for name, make in (("test", with_keys), ("filler", plain)):
        texts = (make(Random(f"{name} {n}"), length) for n in range(count))
        write(given.out / f"{name}.jsonl", name, texts)


def write(path: Path, name: str, texts: Iterable[str]) -> None:
    labels = {"source": name, "domain": "synthetic", "language": "eng_Latn"}
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (
        json.dumps({"id": f"{name}/{number}", "text": text, **labels}) + "\n"
        for number, text in enumerate(texts)
    )
    write_whole(path, (line.encode() for line in lines))


def plain(random: Random, length: int) -> str:
    """Letters, each the one that follows the last by the document's rule, or a random one."""
    follows = dict(zip(LETTERS, random.sample(LETTERS, len(LETTERS)), strict=True))
    letters = [random.choice(LETTERS)]
    while len(letters) < length:
        is_noise = random.random() < NOISE
        letters.append(random.choice(LETTERS) if is_noise else follows[letters[-1]])
    return "".join(letters)


def with_keys(random: Random, length: int) -> str:
    """Such a text with a key near its beginning, and questions for it at random places."""
    key = "".join(random.choice("0123456789") for _ in range(DIGITS))
    text = plain(random, length)
    place = random.randrange(1, min(length // 3, KEYS_BEFORE))
    pieces, said = [text[:place], f"[{key}]"], place
    while True:
        gap = random.randint(*BETWEEN)
        size = sum(map(len, pieces))
        if size + gap + DIGITS + 2 > length:
            break
        pieces += [text[said : said + gap], f"<{key}>"]
        said += gap
    size = sum(map(len, pieces))
    return "".join([*pieces, text[said : said + length - size]])


if __name__ == "__main__":
    main()
