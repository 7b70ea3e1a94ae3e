"""Near-duplicates: speed of signatures, and recall and precision on planted ones in many languages.

    python benchmarks/dedup.py texts/sib200_119.jsonl.gz        # sentences by language

FILE is JSONL(.gz) with `text` and `lang`. Of its sentences documents are made, 40 in each, in
every language of LANGUAGES, and of each document copies with a share of the words (characters where
words are not separated) replaced, dropped or moved. Copies that keep a similarity of 0.8 by
their 5-grams, counted exactly, are the near-duplicates to be found; pairs below 0.7 are not to be.
The stages of the dedup themselves run: signatures, bands, comparison. Speed is MB of UTF-8 per CPU
second of one core, from text to signature.
"""

import argparse
import gzip
import json
import random
import sys
import tempfile
import time
from collections import defaultdict, deque
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a plain checkout

import numpy as np
from datatrove.data import Document

from data_prep.clean import stages
from data_prep.clean.dedup.equal import copies_of
from data_prep.clean.dedup.pairs import similar_pairs
from data_prep.clean.dedup.sign import SignDocuments
from data_prep.clean.settings import CleanSettings
from data_prep.minhash import signature
from data_prep.units import shingles, split

# fmt: off
LANGUAGES = (
    "eng_Latn", "deu_Latn", "fin_Latn", "rus_Cyrl", "ell_Grek", "arb_Arab", "hin_Deva", "tam_Taml",
    "kor_Hang", "vie_Latn", "zho_Hans", "jpn_Jpan", "tha_Thai", "khm_Khmr", "mya_Mymr", "lao_Laoo",
)
# fmt: on
SENTENCES = 40
NEAR, FAR = 0.8, 0.7
RATES = (0.0, 0.005, 0.01, 0.02, 0.03, 0.06, 0.1, 0.2, 0.4)


def main() -> None:
    """Print a table of languages and a line of speed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--copies", type=int, default=20, help="of each document; default: 20")
    given = parser.parse_args()
    sentences = read(given.file)
    print("language   planted  recall  precision   MB/CPU s")
    every: list[tuple[int, int, int]] = []
    documents: list[str] = []
    for language in LANGUAGES:
        originals, copies = plant(sentences[language], given.copies, random.Random(language))
        found = pairs_found([*originals, *(text for _, text in copies)])
        every.append(judge(originals, copies, found))
        speed = throughput(sign, originals * 3)
        print(f"{language}  {every[-1][0]:8} {rates(*every[-1])} {speed:10.1f}", flush=True)
        documents += originals
    print(
        f"all       {sum(row[0] for row in every):8} {rates(*map(sum, zip(*every, strict=True)))}"
    )
    speeds = sorted(throughput(sign, documents) for _ in range(3))
    print(f"signatures: {speeds[1]:.1f} MB per CPU second, median of three")


def read(file: Path) -> dict[str, list[str]]:
    """Sentences by language."""
    sentences = defaultdict(list)
    with gzip.open(file, "rt") if file.suffix == ".gz" else file.open() as lines:
        for row in map(json.loads, lines):
            sentences[row["lang"]].append(row["text"])
    return sentences


def plant(
    sentences: list[str], copies: int, generator: random.Random
) -> tuple[list[str], list[tuple[int, str]]]:
    """Documents of different sentences, and (which of them, changed copy)."""
    generator.shuffle(sentences)
    count = len(sentences) // SENTENCES
    originals = [" ".join(sentences[k::count][:SENTENCES]) for k in range(count)]
    changed = [
        (k, change(text, generator.choice(RATES), generator, originals))
        for k, text in enumerate(originals)
        for _ in range(copies)
    ]
    return originals, changed


def change(text: str, rate: float, generator: random.Random, others: list[str]) -> str:
    """A copy in which about `rate` of the words or characters are others, gone or elsewhere."""
    joint = "" if split(text).without_spaces else " "
    parts = list(text) if not joint else text.split()
    pool = list(generator.choice(others)) if not joint else generator.choice(others).split()
    for _ in range(round(rate * len(parts))):
        at, kind = generator.randrange(len(parts)), generator.random()
        if kind < 0.6:
            parts[at] = generator.choice(pool)
        elif kind < 0.8:
            del parts[at]
        else:
            parts.insert(generator.randrange(len(parts)), parts.pop(at))
    return joint.join(parts)


def pairs_found(texts: list[str]) -> set[tuple[int, int]]:
    """Pairs that the stages of the dedup take for duplicates, in a folder of their own."""
    with tempfile.TemporaryDirectory() as folder:
        settings = CleanSettings(inputs=(), out=folder)
        documents = (Document(text=text, id="", metadata={}) for text in texts)
        deque(SignDocuments(settings).run(documents), maxlen=0)
        for stage in stages.stages(settings, 0):
            if stage.name in ("equal", "bands", "pairs", "lend"):
                for task in range(stage.tasks):
                    deque(stage.pipeline[0].run(None, task, stage.tasks), maxlen=0)
        kept = dict(copies_of(settings, 1, 0).tolist())
        alike = {tuple(pair) for pairs in similar_pairs(settings, 0) for pair in pairs.tolist()}
        firsts = defaultdict(set)
        for first, later in alike:
            firsts[later].add(first)
        # An exact copy is not compared itself: it is like the documents that its original is like.
        carried = {(first, copy) for copy, one in kept.items() for first in firsts[one]}
        return alike | carried | {(one, copy) for copy, one in kept.items()}


def judge(
    originals: list[str], copies: list[tuple[int, str]], found: set[tuple[int, int]]
) -> tuple[int, int, int]:
    """(planted near-duplicates, those of them found, pairs found that are none)."""
    planted = hits = 0
    sets = [np.unique(shingles(split(text).hashes, 5)) for text in originals]
    copied = [np.unique(shingles(split(text).hashes, 5)) for _, text in copies]
    for number, (of, _) in enumerate(copies):
        if jaccard(sets[of], copied[number]) >= NEAR:
            planted += 1
            hits += (of, len(originals) + number) in found
    everything = sets + copied
    wrong = sum(jaccard(everything[a], everything[b]) < FAR for a, b in found)
    return planted, hits, wrong


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """The similarity of two sets."""
    return len(np.intersect1d(a, b, assume_unique=True)) / len(np.union1d(a, b))


def rates(planted: int, hits: int, wrong: int) -> str:
    """Recall and precision."""
    return f"{hits / planted:7.3f} {hits / max(1, hits + wrong):10.3f}"


def sign(text: str) -> np.ndarray:
    return signature(split(text).hashes)


def throughput(of: Callable[[str], object], texts: list[str]) -> float:
    """MB of UTF-8 per CPU second."""
    of(texts[0])
    start = time.process_time()
    for text in texts:
        of(text)
    return sum(len(text.encode()) for text in texts) / 1e6 / (time.process_time() - start)


if __name__ == "__main__":
    main()
