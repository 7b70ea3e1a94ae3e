"""Writes documents of three domains whose quality differs within each, for a mixture of cells.

    python examples/reproduce/mixture/texts.py --out runs/reproduce/mixture/documents

A domain has its own words and its own facts: a thing, its action, another thing. Good documents
state facts, middling ones have every third word by chance, bad ones all of them. Most of the
web is bad, most of stem is not. Whoever weighs domains alone takes the bad with the good.
"""

import argparse
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))  # also from a checkout that is not installed

from megatron_qwen3.shown import shown
from megatron_qwen3.storage.whole import write_whole

# Documents by domain and quality; a document has about a hundred tokens.
SIZES = {
    "web": {"low": 5000, "medium": 1200, "high": 800},
    "code": {"low": 1200, "medium": 900, "high": 600},
    "stem": {"low": 400, "medium": 600, "high": 400},
}
NOISE = {"low": 1.0, "medium": 0.35, "high": 0.0}  # words by chance
SCORE = {"low": 0.1, "medium": 0.5, "high": 0.9}  # as a classifier would have it
THINGS, DEEDS = 24, 12  # of a domain
SENTENCES = 20


class Domain:
    """Words, and facts: of each thing two deeds, and of each deed of it two things."""

    def __init__(self, name: str) -> None:
        rng = random.Random(f"domain {name}")
        words = _words(rng, THINGS + DEEDS, name[0])
        self.things, self.deeds = words[:THINGS], words[THINGS:]
        self.facts = {
            thing: [(deed, rng.choices(self.things, k=2)) for deed in rng.choices(self.deeds, k=2)]
            for thing in self.things
        }

    def document(self, rng: random.Random, noise: float) -> str:
        """Sentences of three words; each begins with the last thing of the one before."""
        thing, sentences = rng.choice(self.things), []
        for _ in range(SENTENCES):
            deed, others = rng.choice(self.facts[thing])
            other = rng.choice(others)
            words = [
                rng.choice(self.things + self.deeds) if rng.random() < noise else word
                for word in (thing, deed, other)
            ]
            sentences.append(" ".join(words))
            thing = other
        return ". ".join(sentences) + "."


def _words(rng: random.Random, count: int, first: str) -> list[str]:
    """Different words of three syllables, which begin with the same letter."""
    found: dict[str, None] = {}
    while len(found) < count:
        syllables = (rng.choice("bdfgklmnprst") + rng.choice("aeiou") for _ in range(2))
        found[first + rng.choice("aeiou") + "".join(syllables)] = None
    return list(found)


def documents(seed: int = 0) -> Iterator[dict[str, object]]:
    """All of them, cell by cell."""
    for name, sizes in SIZES.items():
        domain = Domain(name)
        for quality, count in sizes.items():
            rng = random.Random(f"{seed} {name} {quality}")
            for _ in range(count):
                text = domain.document(rng, NOISE[quality])
                yield {"text": text, "domain": name, "quality": SCORE[quality]} | _REST


_REST = {"source": "made", "language": "eng_Latn"}


def main() -> None:
    parser = argparse.ArgumentParser(description="Make documents of three domains; no download.")
    parser.add_argument("--out", type=Path, default=Path("runs/reproduce/mixture/documents"))
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row).encode() + b"\n" for row in documents()]
    write_whole(out / "made.jsonl", lines)
    print(shown(f"wrote {len(lines):,} documents to {out}"))


if __name__ == "__main__":
    main()
