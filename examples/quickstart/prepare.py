"""Prepares the quickstart's data: collects the corpora, trains a tokenizer, writes token files.

    python examples/quickstart/prepare.py --out runs/quickstart/data

The folder then holds tokenizer/ and NAME.bin/NAME.idx for each corpus of corpora.py. A manifest,
written last, names what they were made from; a second call that would make the same does nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # also from a checkout that is not installed

from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from data_prep.indexed import IndexedWriter, token_dtype
from data_prep.tokenizer import DocumentTokenizer, train
from examples.quickstart.corpora import CORPORA
from megatron_qwen3.config import ConfigError

SAMPLE_BYTES = 400_000  # of each corpus, for the tokenizer
BATCH_DOCUMENTS = 64
console = Console()


def main() -> None:
    parser = argparse.ArgumentParser(description="Prepare the quickstart's data; no download.")
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart/data"))
    parser.add_argument("--vocab-size", type=int, default=2048, help="control tokens included")
    arguments = parser.parse_args()
    try:
        prepare(arguments.out, arguments.vocab_size)
    except ConfigError as error:
        sys.exit(f"error: {error}")


def prepare(out: Path, vocab_size: int) -> dict[str, Any]:
    """Make what is missing or out of date in `out`; returns the manifest."""
    made_from = _fingerprint(vocab_size)
    manifest = _read_manifest(out)
    if manifest.get("made_from") != made_from or not _complete(out, manifest):
        begin = time.monotonic()
        (out / "manifest.json").unlink(missing_ok=True)
        sources = _make(out, vocab_size)
        manifest = {"made_from": made_from, "sources": sources}
        (out / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
        console.print(f"{out}: made in {time.monotonic() - begin:.1f} s")
    else:
        console.print(f"{out}: up to date")
    _print_table(manifest["sources"])
    return manifest


def _make(out: Path, vocab_size: int) -> dict[str, dict[str, int]]:
    corpora = {}
    for name, collect in CORPORA.items():
        corpora[name] = collect()
        Random(0).shuffle(corpora[name])
    with console.status("Training the tokenizer"):
        train(_sample(corpora), vocab_size, out / "tokenizer")
    tokenizer = DocumentTokenizer(out / "tokenizer")
    columns = (*Progress.get_default_columns()[:-1], TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("left"), console=console, transient=True) as progress:
        task = progress.add_task("Tokenizing", total=sum(map(_size, corpora.values())))
        sources = {}
        for name, documents in corpora.items():
            sources[name] = _write(out / name, documents, tokenizer, progress, task)
    return sources


def _sample(corpora: dict[str, list[str]]) -> list[str]:
    """The same number of bytes of each corpus, small ones repeated: rare scripts get tokens too."""
    sample = []
    for documents in corpora.values():
        size = 0
        while size < SAMPLE_BYTES:
            for document in documents:
                sample.append(document[:20_000])
                size += len(sample[-1].encode())
                if size >= SAMPLE_BYTES:
                    break
    return sample


def _write(
    prefix: Path, documents: list[str], tokenizer: DocumentTokenizer, progress: Progress, task: Any
) -> dict[str, int]:
    tokens = 0
    with IndexedWriter(prefix, token_dtype(tokenizer.vocab_size)) as writer:
        for first in range(0, len(documents), BATCH_DOCUMENTS):
            batch = documents[first : first + BATCH_DOCUMENTS]
            for ids in tokenizer.encode_documents(batch):
                writer.add_document(ids)
                tokens += len(ids)
            progress.advance(task, _size(batch))
    return {"documents": len(documents), "bytes": _size(documents), "tokens": tokens}


def _size(documents: list[str]) -> int:
    return sum(len(document.encode()) for document in documents)


def _print_table(sources: dict[str, dict[str, int]]) -> None:
    table = Table("source", "documents", "MB", "tokens", "bytes/token")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, row in sources.items():
        ratio = row["bytes"] / row["tokens"]
        megabytes = row["bytes"] / 1e6
        table.add_row(
            name, f"{row['documents']:,}", f"{megabytes:.2f}", f"{row['tokens']:,}", f"{ratio:.2f}"
        )
    console.print(table)


def _fingerprint(vocab_size: int) -> str:
    """What the data depend on: this code, the texts, Python's own library, the settings."""
    digest = hashlib.sha256(f"{sys.version} {vocab_size} {SAMPLE_BYTES}".encode())
    here = Path(__file__).parent
    files = [*here.glob("*.py"), *here.glob("texts/*.txt"), *(ROOT / "data_prep").glob("*.py")]
    for file in sorted(files):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def _read_manifest(out: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((out / "manifest.json").read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return manifest


def _complete(out: Path, manifest: dict[str, Any]) -> bool:
    names = [f"{name}{suffix}" for name in manifest["sources"] for suffix in (".bin", ".idx")]
    return all((out / name).exists() for name in [*names, "tokenizer/tokenizer.json"])


if __name__ == "__main__":
    main()
