"""Reads a shard's note on a document: its id, and its kept fields.

name, fields = parted(note)         # of kept_fields.note
"""

import json

Scalar = str | int | float | bool
BORDER = b"\xff"  # between id and fields; no byte of UTF-8


def parted(found: bytes) -> tuple[str, dict[str, Scalar]]:
    """The id and the fields of a note."""
    name, _, fields = found.partition(BORDER)
    return name.decode(), json.loads(fields) if fields else {}
