"""Collects the quickstart's documents, with their labels, out of what is here anyway.

    python examples/quickstart/prepare.py --out runs/quickstart/data/documents

The folder then holds one NAME.jsonl for each corpus of corpora.py, as tools/tokenize_corpus.py
reads it; data.sh goes on from there. A manifest, written last, names what the documents were made
from; a second call that would make the same does nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # also from a checkout that is not installed

from rich.console import Console
from rich.table import Table

from examples.quickstart import corpora
from megatron_qwen3.shown import plain

console = Console()


def main() -> None:
    parser = argparse.ArgumentParser(description="Collect the quickstart's documents; no download.")
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart/data/documents"))
    prepare(parser.parse_args().out)


def prepare(out: Path) -> dict[str, Any]:
    """Make the documents where they are missing or out of date; returns the manifest."""
    made_from = _fingerprint()
    manifest = _read_manifest(out)
    if manifest.get("made_from") != made_from or not _complete(out, manifest):
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        manifest = {"made_from": made_from, "sources": _write(out, corpora.documents())}
        (out / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
        _print_table(manifest["sources"])
    else:
        console.print(plain(f"{out}: up to date"))
    return manifest


def _write(out: Path, documents: Iterable[dict[str, str]]) -> dict[str, dict[str, int]]:
    """One file for each source; how many documents and bytes of text it holds."""
    sources: dict[str, dict[str, int]] = {}
    for document in documents:
        name = document["source"]
        row = sources.setdefault(name, {"documents": 0, "bytes": 0})
        row["documents"] += 1
        row["bytes"] += len(document["text"].encode())
        with (out / f"{name}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(document, ensure_ascii=False) + "\n")
    return sources


def _print_table(sources: dict[str, dict[str, int]]) -> None:
    table = Table("source", "documents", "MB")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, row in sources.items():
        table.add_row(plain(name), f"{row['documents']:,}", f"{row['bytes'] / 1e6:.2f}")
    console.print(table)


def _fingerprint() -> str:
    """What the documents depend on: this code, the texts and Python's own library."""
    digest = hashlib.sha256(sys.version.encode())
    here = Path(__file__).parent
    for file in sorted([*here.glob("*.py"), *here.glob("texts/*.txt")]):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def _read_manifest(out: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((out / "manifest.json").read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return manifest


def _complete(out: Path, manifest: dict[str, Any]) -> bool:
    return all((out / f"{name}.jsonl").exists() for name in manifest["sources"])


if __name__ == "__main__":
    main()
