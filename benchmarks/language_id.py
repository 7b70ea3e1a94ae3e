"""Language identification on sentences it never saw: recall of each language, and speed.

    python benchmarks/language_id.py texts/sib200_119.jsonl.gz      # SIB-200's test split
    python benchmarks/language_id.py FILE --split "" --model lid.bin         # or: --model glotlid

FILE is JSONL(.gz) with `text` and `lang`. Prints languages below a recall of 0.8 and those that are
taken for it, and MB of text per CPU second: of the sentences, each of which is read to its end, and
of documents of 4 KB made of them, of which three places are read.
"""

import argparse
import gzip
import json
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a plain checkout

from data_prep.language_id import Identifier, IdentifyLanguage, ModelIdentifier
from data_prep.languages import LANGUAGES, code_of
from megatron_qwen3 import tables

ENOUGH = 0.8
DOCUMENT_CHARACTERS = 4000


def main() -> None:
    """Print one table and three lines."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--split", default="test", help="rows whose `split` is this; '' for all")
    parser.add_argument("--model", help="a file, or glotlid, in place of the combination")
    parser.add_argument("--all", action="store_true", help="show languages above 0.8 too")
    given = parser.parse_args()
    identify = ModelIdentifier(given.model) if given.model else Identifier()
    texts = read(given.file, given.split)
    identify("Models are loaded before the clock starts.")
    seconds, found = run(identify, [text for group in texts.values() for text in group])
    size = sum(len(text.encode()) for group in texts.values() for text in group)
    recalls = report(texts, found, given.all)
    print(f"{sum(r >= ENOUGH for r in recalls)} of {len(recalls)} languages reach {ENOUGH}")
    print(f"mean recall {sum(recalls) / len(recalls):.3f}")
    documents = ["\n".join(group)[:DOCUMENT_CHARACTERS] for group in texts.values()] * 5
    document_seconds, _ = run(identify, documents)
    document_size = sum(len(text.encode()) for text in documents)
    print(
        f"{size / seconds / 1e6:.1f} MB per CPU second of sentences, "
        f"{document_size / document_seconds / 1e6:.1f} of documents"
    )


def read(file: Path, split: str) -> dict[str, list[str]]:
    """Texts by the code of their language."""
    texts = defaultdict(list)
    with gzip.open(file, "rt") if file.suffix == ".gz" else file.open() as lines:
        for row in map(json.loads, lines):
            if not split or row["split"] == split:
                texts[code_of(row["lang"])].append(row["text"])
    return texts


def run(identify: IdentifyLanguage, texts: list[str]) -> tuple[float, list[str]]:
    """CPU seconds, and the languages named."""
    start = time.process_time()
    found = [identify(text) for text in texts]
    return time.process_time() - start, found


def report(texts: dict[str, list[str]], found: list[str], show_all: bool) -> list[float]:
    """Print the table; the recall of each language."""
    lines = [["language", "name", "recall", "taken for"]]
    recalls, answers = [], iter(found)
    for code, group in texts.items():
        counts = Counter(next(answers) for _ in group)
        recalls.append(counts[code] / len(group))
        if recalls[-1] < ENOUGH or show_all:
            others = [f"{name} {n / len(group):.2f}" for name, n in counts.most_common(4)]
            others = [text for text in others if not text.startswith(code)]
            lines.append([code, LANGUAGES[code].name, f"{recalls[-1]:.2f}", ", ".join(others)])
    tables.console().print(tables.table(lines, words=("language", "name", "taken for")))
    return recalls


if __name__ == "__main__":
    main()
