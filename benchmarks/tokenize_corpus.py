"""Speed of tokenization from JSONL to .bin/.idx, next to Megatron's way with Hugging Face.

    python benchmarks/tokenize_corpus.py --tokenizer QWEN3    # a folder: data_prep/published.py

Ours is `mq3 data tokenize` with one worker: read, parse, encode, shuffle, write, checksums;
`packed` is its speed with --pack 32768 as a share of that without, `filler` the share of filler in
its rows. Megatron's is the loop of its preprocess_data.py, document by document: json.loads, encode
(that of tokenizers, faster than through transformers), IndexedDatasetBuilder; on the first
`--theirs` MB.

In turns, each a process of its own, `--rounds` times. `MB/s` is text in UTF-8 per second of CPU
time, of one core; the seconds of `start` (imports, tokenizer), which do not grow with the corpus,
are not in it. Figures are medians, `ratio` is the median of each round's. `GB` is the most memory
that ours had.

English is real prose (texts: a book and speeches), again and again with one word in twenty
made of the halves of two others, so that later rounds have new words as real text has. Code is the
files of Python's library and of the packages installed. The 119 languages are SIB-200's sentences,
again and again in the same manner: those of one language joined to documents of that length, and
as `sentences` each a document of its own, of 200 bytes, which shows the cost of a document.
"""

import argparse
import gzip
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
ROW = 32_768
DOCUMENT_CHARACTERS = 3000  # of a document, as of web pages
_OURS = """
import resource, shutil, sys, time
from pathlib import Path
from data_prep.tokenization.corpus import CorpusOptions, tokenize
from data_prep.tokenization.plan import Settings
one, source, out, tokenizer, pack = sys.argv[1:]
seconds = [time.process_time()]
for part in (one, one, source):
    shutil.rmtree(out, ignore_errors=True)
    report = tokenize([part], Path(out), Settings(tokenizer, pack=int(pack)), CorpusOptions())
    seconds.append(time.process_time())
start = seconds[2] - seconds[1]
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
cells = report.inventory.cells
filler = sum(cell.packed.filler for cell in cells if cell.packed)
filler /= sum(cell.tokens for cell in cells)
print(seconds[1], seconds[3] - seconds[2] - start, peak, filler)
"""
_THEIRS = """
import json, sys, time
import numpy, torch, tokenizers
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
one, source, out, tokenizer = sys.argv[1:]
encoder = tokenizers.Tokenizer.from_file(tokenizer + "/tokenizer.json")
end = encoder.token_to_id("<|endoftext|>")
builder = IndexedDatasetBuilder(out + ".bin", dtype=numpy.int32)
start = time.process_time()
with open(source, encoding="utf-8") as file:
    for line in file:
        ids = encoder.encode(json.loads(line)["text"]).ids
        ids.append(end)
        builder.add_document(torch.IntTensor(ids), [len(ids)])
builder.finalize(out + ".idx")
print(start, time.process_time() - start, 0)
"""


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokenizer", type=Path, required=True, help="a folder")
    parser.add_argument("--megabytes", type=float, default=200, help="of each corpus (200)")
    parser.add_argument("--theirs", type=float, default=6, help="MB that Megatron's way gets (6)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark_tokenize"))
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    print(
        "corpus            MB  documents   ours MB/s    start     GB   Megatron's MB/s    start"
        "   ratio   packed   filler"
    )
    for name, texts in (
        ("English", english),
        ("code", code),
        ("119 languages", languages),
        ("  sentences", sentences),
    ):
        measure(name, texts, given)
    shutil.rmtree(given.folder)


def measure(name: str, texts: Callable[[], Iterator[str]], given: argparse.Namespace) -> None:
    """All rounds of one corpus; one line."""
    one, whole, part = (given.folder / f"{kind}.jsonl" for kind in ("one", "whole", "part"))
    write(one, texts(), 0)
    size, documents = write(whole, texts(), given.megabytes)
    part_size, _ = write(part, texts(), given.theirs)
    rounds = []
    for _ in range(given.rounds):
        our_start, ours, peak, _ = run(_OURS, one, whole, given, "0")
        _, packed, _, filler = run(_OURS, one, whole, given, str(ROW))
        their_start, theirs, _ = run(_THEIRS, one, part, given)
        rates = size / ours, part_size / theirs
        speeds = rates[0], our_start, peak, rates[1], their_start, rates[0] / rates[1]
        rounds.append((*speeds, ours / packed, 100 * filler))
    ours, our_start, peak, theirs, their_start, ratio, packed, filler = map(
        statistics.median, zip(*rounds, strict=True)
    )
    print(
        f"{name:13} {size:6.1f} {documents:10,} {ours:11.1f} {our_start:8.1f} {peak:6.2f} "
        f"{theirs:17.2f} {their_start:8.1f} {ratio:7.1f} "
        f"{packed:8.2f} {filler:6.2f} %",
        flush=True,
    )


def run(
    script: str, one: Path, source: Path, given: argparse.Namespace, *more: str
) -> tuple[float, ...]:
    """(CPU seconds until it could begin, of the work, GB of memory, …) of a process."""
    threads = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, one, source, given.folder / "out", given.tokenizer]
    command += more
    done = subprocess.run(
        command,
        check=True,
        env=os.environ | threads | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    return tuple(map(float, done.stdout.split()))


def write(path: Path, texts: Iterator[str], megabytes: float) -> tuple[float, int]:
    """(MB of text, documents), as JSONL of the first texts of at least that many MB."""
    size = documents = 0
    with path.open("w", encoding="utf-8") as file:
        for text in texts:
            row = {"id": f"doc-{documents}", "text": text, "source": "benchmark"}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            size += len(text.encode())
            documents += 1
            if size >= megabytes * 1e6:
                break
    return size / 1e6, documents


def english() -> Iterator[str]:
    books = [row["text"] for name in ("books_pepys", "state_union") for row in rows(name)]
    pages = [
        text[at : at + DOCUMENT_CHARACTERS]
        for text in books
        for at in range(0, len(text), DOCUMENT_CHARACTERS)
    ]
    return again_and_again(pages)


def languages() -> Iterator[str]:
    pages: list[str] = []
    for sentences in _by_language().values():
        page: list[str] = []
        for text in sentences:
            page.append(text)
            if sum(map(len, page)) >= DOCUMENT_CHARACTERS:
                pages.append("\n".join(page))
                page = []
    random.Random(0).shuffle(pages)
    return again_and_again(pages)


def sentences() -> Iterator[str]:
    texts = [text for some in _by_language().values() for text in some]
    random.Random(0).shuffle(texts)
    return again_and_again(texts)


def code() -> Iterator[str]:
    files = sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py"))
    files += sorted(Path(sysconfig.get_path("purelib")).rglob("*.py"))
    for file in files:
        text = file.read_text(encoding="utf-8", errors="ignore")
        if text:
            yield text


def _by_language() -> dict[str, list[str]]:
    texts: dict[str, list[str]] = {}
    for row in rows("sib200_119"):
        texts.setdefault(row["lang"], []).append(row["text"])
    return texts


def rows(name: str) -> list[dict[str, str]]:
    """The rows of a file of texts."""
    with gzip.open(SHARED / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def again_and_again(texts: list[str]) -> Iterator[str]:
    """The texts as they are, then with new words among theirs."""
    yield from texts
    chance = random.Random(0)
    while True:
        for text in texts:
            words = text.split(" ")
            for k in range(0, len(words), 20):
                a, b = chance.choice(words), chance.choice(words)
                words[k] = a[: len(a) // 2] + b[len(b) // 2 :]
            yield " ".join(words)


if __name__ == "__main__":
    main()
