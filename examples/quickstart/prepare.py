"""Collects the quickstart's documents, with their labels, out of files that are here anyway.

    python examples/quickstart/prepare.py --out runs/quickstart/data/documents

The folder then holds one NAME.jsonl for each corpus of corpora.py, as mq3 data tokenize
reads it; data.sh goes on from there. A manifest, written last, records the sources of the documents
by hash; a second call that would make the same does nothing.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # also from a checkout that is not installed

from examples.quickstart import corpora
from megatron_qwen3 import tables
from megatron_qwen3.config import ConfigError
from megatron_qwen3.shown import plain, shown_lines
from megatron_qwen3.storage.whole import sync_tree, write_whole

console = tables.console()


def main() -> None:
    parser = argparse.ArgumentParser(description="Collect the quickstart's documents; no download.")
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart/data/documents"))
    try:
        prepare(parser.parse_args().out)
    except ConfigError as error:
        sys.exit(f"error: {shown_lines(error)}")


def prepare(out: Path) -> dict[str, Any]:
    """Make the documents where they are missing or out of date; returns the manifest.

    Raises ConfigError where the folder holds anything else: only files that were made here are
    removed.
    """
    made_from = _fingerprint()
    manifest = _read_manifest(out)
    if manifest.get("made_from") != made_from or not _complete(out, manifest):
        old = set(manifest.get("sources", {}))
        with TemporaryDirectory(dir=_parent(out), prefix=f"{out.name}.") as folder:
            made = Path(folder) / "documents"
            made.mkdir()
            manifest = {"made_from": made_from, "sources": _write(made, corpora.documents())}
            content = json.dumps(manifest, indent=2) + "\n"
            write_whole(made / "manifest.json", [content.encode()])
            sync_tree(made)
            _make_room(out, old | set(manifest["sources"]))
            made.rename(out)
        _print_table(manifest["sources"])
    else:
        console.print(plain(f"{out}: up to date"))
    return manifest


def _parent(out: Path) -> Path:
    out.parent.mkdir(parents=True, exist_ok=True)
    return out.parent


def _make_room(out: Path, sources: set[str]) -> None:
    """Remove the files of an earlier call; ConfigError where anything else is there."""
    ours = {"manifest.json", *(f"{name}.jsonl" for name in sources)}
    found = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if others := sorted(found - ours):
        raise ConfigError(f"{out} holds {others[0]}, not made here; choose another folder")
    for name in found:
        (out / name).unlink()
    if out.is_dir():
        out.rmdir()


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
    lines = [["source", "documents", "MB"]]
    for name, row in sources.items():
        lines.append([name, f"{row['documents']:,}", f"{row['bytes'] / 1e6:.2f}"])
    table = tables.table(lines)
    console.print(table)


def _fingerprint() -> str:
    """A hash of everything the documents depend on: this code, the texts, Python's own library."""
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
