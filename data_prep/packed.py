"""What is known of text in rows of one length (`lay_out.py`), by readers and mixtures of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

SHORTEST_ROW = 2  # a row's last place is never trained


class Packed(NamedTuple):
    """Counts of text in rows.

    row_length: in tokens; filler: tokens of all rows that are no text; texts: tokens by the length
    that a text has in its row (`labels.LENGTHS`), {} where these are unknown.
    """

    row_length: int
    filler: int
    texts: Mapping[str, int]

    def as_json(self) -> dict[str, Any]:
        return {**self._asdict(), "texts": dict(self.texts)}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Self:
        return cls(row["row_length"], row["filler"], row["texts"])

    @classmethod
    def of_all(cls, parts: Sequence[Packed]) -> Packed:
        """The sum of parts that have rows of the same length."""
        texts: dict[str, int] = {}
        for part in parts:
            for length, tokens in part.texts.items():
                texts[length] = texts.get(length, 0) + tokens
        return cls(parts[0].row_length, sum(part.filler for part in parts), texts)
