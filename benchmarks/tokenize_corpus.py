"""Speed of tokenization from JSONL to .bin/.idx, next to Megatron's way with Hugging Face.

    python benchmarks/tokenize_corpus.py --tokenizer QWEN3    # a folder: data_prep/published.py
    python benchmarks/tokenize_corpus.py --tokenizer QWEN3 --megabytes 200 --rounds 3

Ours is `tools/tokenize_corpus.py` with one worker: read, parse, encode, shuffle, write, checksums.
Megatron's is the loop of its preprocess_data.py, document by document: json.loads, encode (that of
tokenizers, faster than through transformers), IndexedDatasetBuilder; on the first `--theirs` MB.
Each is a process of its own. `MB/s` is text in UTF-8 per second of CPU time, of one core, without
the start (imports and tokenizer), which is the time of a run over one document; `ratio` is of both.

English is real prose (../shared/data; a book and speeches), again and again with one word in twenty
made of the halves of two others, so that later rounds have new words as real text has; code is
Python's library; the 119 languages are SIB-200's sentences, once and again in the same manner.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
DOCUMENT_CHARACTERS = 3000  # of English prose
_OURS = """
import sys
from pathlib import Path
from data_prep.tokenization.corpus import Options, tokenize
from data_prep.tokenization.plan import Settings
source, out, tokenizer = sys.argv[1:]
tokenize([source], Path(out), Settings(tokenizer), Options())
"""
_THEIRS = """
import json, sys
import numpy, torch, tokenizers
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
source, out, tokenizer = sys.argv[1:]
encoder = tokenizers.Tokenizer.from_file(tokenizer + "/tokenizer.json")
end = encoder.token_to_id("<|endoftext|>")
builder = IndexedDatasetBuilder(out + ".bin", dtype=numpy.int32)
with open(source, encoding="utf-8") as file:
    for line in file:
        ids = encoder.encode(json.loads(line)["text"]).ids
        ids.append(end)
        builder.add_document(torch.IntTensor(ids), [len(ids)])
builder.finalize(out + ".idx")
"""


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokenizer", type=Path, required=True, help="a folder")
    parser.add_argument("--megabytes", type=float, default=60, help="of each corpus (60)")
    parser.add_argument("--theirs", type=float, default=4, help="MB that Megatron's way gets (4)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark_tokenize"))
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    print("corpus           MB  documents   ours MB/s  start s   Megatron's MB/s  start s   ratio")
    for name, texts in (("English", english), ("code", code), ("119 languages", languages)):
        measure(name, texts, given)
    shutil.rmtree(given.folder)


def measure(name: str, texts: Iterator[str], given: argparse.Namespace) -> None:
    """All rounds of one corpus; one line."""
    whole, start, part = (given.folder / f"{kind}.jsonl" for kind in ("whole", "one", "part"))
    size, documents = write(whole, texts(), given.megabytes)
    write(start, texts(), 0)
    part_size, _ = write(part, texts(), given.theirs)
    runs = []
    for _ in range(given.rounds):
        seconds = [
            cpu_seconds(script, source, given.folder / "out", given.tokenizer)
            for script, source in (
                (_OURS, start),
                (_OURS, whole),
                (_THEIRS, start),
                (_THEIRS, part),
            )
        ]
        runs.append(
            (
                seconds[0],
                size / (seconds[1] - seconds[0]),
                seconds[2],
                part_size / (seconds[3] - seconds[2]),
            )
        )
    our_start, ours, their_start, theirs = (
        statistics.median(column) for column in zip(*runs, strict=True)
    )
    ratio = statistics.median(row[1] / row[3] for row in runs)
    print(
        f"{name:13} {size:6.1f} {documents:10,} {ours:11.1f} {our_start:8.1f} {theirs:17.2f} "
        f"{their_start:8.1f} {ratio:7.1f}",
        flush=True,
    )


def cpu_seconds(script: str, source: Path, out: Path, tokenizer: Path) -> float:
    """User and system time of a process that tokenizes."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
    }
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-c", script, source, out / "tokens", tokenizer]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


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
    books = [text for name in ("books_pepys", "state_union") for text in _texts(name)]
    pages = [
        text[at : at + DOCUMENT_CHARACTERS]
        for text in books
        for at in range(0, len(text), DOCUMENT_CHARACTERS)
    ]
    return _again_and_again(pages)


def languages() -> Iterator[str]:
    texts = _texts("sib200_119")
    random.Random(0).shuffle(texts)
    return _again_and_again(texts)


def code() -> Iterator[str]:
    files = sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py"))
    files += sorted(Path(sysconfig.get_path("purelib")).rglob("*.py"))
    for file in files:
        text = file.read_text(encoding="utf-8", errors="ignore")
        if text:
            yield text


def _texts(name: str) -> list[str]:
    with gzip.open(SHARED / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line)["text"] for line in file]


def _again_and_again(texts: list[str]) -> Iterator[str]:
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
