"""Packs texts into rows of limited length: best fit, longest first.

    rows = best_fit(lengths_W, 4096)        # of each row the numbers of its texts

Of texts of usual lengths a few tenths of a percent of the places stay empty. A word of bits finds
the row, so that a text costs two microseconds, whatever the number of rows.

Legend: W texts of a window, which are packed together.
"""

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]


def best_fit(lengths_W: Int64, capacity: int) -> list[list[int]]:
    """Rows of at most `capacity` places: of each the numbers of its texts.

    Longest first, of equals the earlier; each goes into the row with the least room left that is
    enough, or into a new one. ValueError where a text has no place or more than a row.
    """
    if not len(lengths_W):
        return []
    shortest, longest = int(lengths_W.min()), int(lengths_W.max())
    if shortest < 1 or longest > capacity:
        raise ValueError(f"lengths are {shortest} to {longest}; valid: 1 to {capacity}")
    rows: list[list[int]] = []
    rooms = _Rooms(capacity)
    order = np.argsort(-lengths_W, kind="stable")
    for text, length in zip(order.tolist(), lengths_W[order].tolist(), strict=True):
        room = rooms.least(length)
        if room:
            row = rooms.take(room)
        else:
            room, row = capacity, len(rows)
            rows.append([])
        rows[row].append(text)
        if room - length >= shortest:  # else nothing fits in any more
            rooms.put(room - length, row)
    return rows


class _Rooms:
    """Rows by the room that they have left; bits find the least room that is enough.

    Bit r of word w stands for room 64 w + r, bit w of `_any` for a word that is not 0.
    """

    def __init__(self, capacity: int) -> None:
        self._rows: list[list[int]] = [[] for _ in range(capacity + 1)]
        self._words, self._any = [0] * (capacity // 64 + 1), 0

    def least(self, length: int) -> int:
        """The least room of a row that is at least `length`; 0 where there is none."""
        word = length >> 6
        bits = self._words[word] >> (length & 63)
        if bits:
            return length + (bits & -bits).bit_length() - 1
        words = self._any >> (word + 1)
        if not words:
            return 0
        word += (words & -words).bit_length()
        bits = self._words[word]
        return 64 * word + (bits & -bits).bit_length() - 1

    def take(self, room: int) -> int:
        """A row with that room, which is not among the others any more."""
        rows = self._rows[room]
        row = rows.pop()
        if not rows:
            word = room >> 6
            self._words[word] ^= 1 << (room & 63)
            if not self._words[word]:
                self._any ^= 1 << word
        return row

    def put(self, room: int, row: int) -> None:
        """Add a row with that room."""
        if not self._rows[room]:
            self._words[room >> 6] |= 1 << (room & 63)
            self._any |= 1 << (room >> 6)
        self._rows[room].append(row)
