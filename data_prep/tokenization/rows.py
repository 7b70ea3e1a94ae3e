"""Packs documents into rows, and groups the rows into cells.

    for cell, text_R, rows, files in in_rows(table, inputs, labels, row_length):
        Content(cell, chunks(rows, files), text_R)      # for write_shard

Documents of all lengths share rows: those of 16 to 32 thousand tokens leave room in a row of 32,768
that no other of them fits into. So the length that rows are labelled with is that of the longest
text in them, of a cut document the length of its part there; and the cell counts its
tokens by the lengths of their texts.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from data_prep.cells import Cell
from data_prep.labels import LENGTH_BOUNDS_TOKENS, LENGTHS, Labels
from data_prep.lay_out import FILLER, Pieces, lay_out
from data_prep.packed import Packed
from data_prep.shards import NO_FILE
from data_prep.tokenization.spill import TokenTable

PackedCell = tuple[Cell, npt.NDArray[np.int64], TokenTable, npt.NDArray[np.uint32]]


def in_rows(
    table: TokenTable, inputs: npt.NDArray[np.uint32], labels: Labels, row_length: int
) -> Iterator[PackedCell]:
    """(cell without its place, tokens of text in each of its rows, its pieces, the input of each).

    The table's tokens end with `row_length` of filler. labels: without a length.
    """
    pieces, rows = lay_out(table.rows["length"], row_length)
    range_P, range_R = (_ranges(longest) for longest in (pieces.longest_P, rows.longest_R))
    for number, length in enumerate(LENGTHS):
        some = Pieces(*(x[range_P == number] for x in pieces))
        if len(some.document_P):
            own = labels._replace(length=length)
            taken, files = _taken(table, inputs, some, row_length)
            cell = _cell(table, own, row_length, some, taken)
            yield cell, rows.text_R[range_R == number], taken, files


def _ranges(tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Numbers of LENGTHS."""
    return np.searchsorted(LENGTH_BOUNDS_TOKENS, tokens, side="right")


def _taken(
    table: TokenTable, inputs: npt.NDArray[np.uint32], pieces: Pieces, row_length: int
) -> tuple[TokenTable, npt.NDArray[np.uint32]]:
    """The pieces as if each were a document, and the input of each."""
    rows = table.rows[pieces.document_P]  # of filler any row, all of which is written over
    is_filler = pieces.document_P == FILLER
    size, whole = rows["text_bytes"].astype(np.int64), rows["length"].astype(np.int64)
    before, after = (size * x // whole for x in (pieces.first_P, pieces.first_P + pieces.length_P))
    rows["start"] += pieces.first_P.astype(np.uint64)
    rows["length"], rows["text_bytes"] = pieces.length_P, after - before
    rows["start"][is_filler] = len(table.tokens) - row_length
    for name in ("line", "id_bytes", "text_bytes"):
        rows[name][is_filler] = 0
    files = np.where(is_filler, np.uint32(NO_FILE), inputs[pieces.document_P])
    return table._replace(rows=rows), files


def _cell(
    table: TokenTable, labels: Labels, row_length: int, pieces: Pieces, taken: TokenTable
) -> Cell:
    is_text = pieces.document_P != FILLER
    begins = is_text & (pieces.first_P == 0)
    is_cut = begins & (pieces.length_P < table.rows["length"][pieces.document_P])
    in_row_P = np.minimum(pieces.length_P, row_length)
    tokens_P = np.where(is_text, pieces.length_P, 0)
    texts = np.bincount(_ranges(in_row_P), tokens_P, len(LENGTHS)).astype(int).tolist()
    filler = int(pieces.length_P[~is_text].sum())
    known = {length: count for length, count in zip(LENGTHS, texts, strict=True) if count}
    return Cell(
        "",
        labels,
        documents=int(begins.sum()),
        tokens=int(pieces.length_P.sum()),
        bytes=int(taken.rows["text_bytes"].sum(dtype=np.int64)),
        packed=Packed(row_length, filler, known),
        cut=int(is_cut.sum()),
        pieces=len(pieces.document_P),
    )
