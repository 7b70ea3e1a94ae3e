"""Lays documents out in rows of one length, so that none is cut that fits into a row.

    pieces, rows = lay_out(lengths_N, row_length=32768)
    pieces.document_P[k], pieces.first_P[k], pieces.length_P[k]     # which tokens stand there

A document that is longer than a row fills whole rows, one after another; its rest is
packed like a document of that length. Best fit, longest first, over all documents that are given:
those of 16 to 32 thousand tokens leave a third of a row of 32,768, which shorter ones must fill.
The empty places at the end of a row are filler, a piece of its own. Rows come in the order of their
longest documents' numbers, so at random where documents are numbered so.

Legend: N documents, P pieces in the order of the rows, R rows.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from data_prep.best_fit import best_fit

Int64 = npt.NDArray[np.int64]
FILLER = -1  # in place of a document's number


class Pieces(NamedTuple):
    """Pieces end to end: tokens [first, first + length) of a document, or FILLER.

    longest_P: how long the longest text is in the row that a piece stands in.
    """

    document_P: Int64
    first_P: Int64
    length_P: Int64
    longest_P: Int64


class TextRows(NamedTuple):
    """text_R: how many tokens of a row are text, before its filler; longest_R: as in Pieces."""

    text_R: Int64
    longest_R: Int64


def lay_out(lengths_N: npt.NDArray[Any], row_length: int) -> tuple[Pieces, TextRows]:
    """The pieces of all documents and the filler between them, and their rows.

    lengths_N: tokens of each document, at least 1. Deterministic.
    """
    lengths_N = np.asarray(lengths_N, np.int64)
    whole_N, rest_N = lengths_N // row_length, lengths_N % row_length
    full_F, rests = np.flatnonzero(whole_N), np.flatnonzero(rest_N)
    members = best_fit(rest_N[rests], row_length)
    sizes_M = np.array([len(row) for row in members], np.int64)
    flat = rests[np.array([k for row in members for k in row], np.int64)]
    leader_M = flat[np.cumsum(sizes_M) - sizes_M]  # the longest of a row stands first in it
    row_of = np.repeat(np.arange(len(members)), sizes_M)
    text_M = np.bincount(row_of, rest_N[flat], len(members)).astype(np.int64)
    filled = np.flatnonzero(text_M < row_length)
    # Where each row comes: a document's whole rows first, then the one that its rest leads.
    whole_at_F, at_M = 2 * full_F, 2 * leader_M + 1
    longest_M = rest_N[leader_M]
    pieces = Pieces(
        np.concatenate([full_F, flat, np.full(len(filled), FILLER)]),
        np.concatenate([np.zeros_like(full_F), whole_N[flat] * row_length, np.zeros_like(filled)]),
        np.concatenate([whole_N[full_F] * row_length, rest_N[flat], row_length - text_M[filled]]),
        np.concatenate([np.full(len(full_F), row_length), longest_M[row_of], longest_M[filled]]),
    )
    at_P = np.concatenate([whole_at_F, at_M[row_of], at_M[filled]])
    within_P = np.where(pieces.document_P == FILLER, len(lengths_N), pieces.document_P)
    order = np.lexsort((within_P, at_P))
    copies_F = whole_N[full_F]
    all_full = np.full(int(copies_F.sum()), row_length)
    rows = TextRows(np.concatenate([all_full, text_M]), np.concatenate([all_full, longest_M]))
    order_R = np.argsort(np.concatenate([np.repeat(whole_at_F, copies_F), at_M]), kind="stable")
    return Pieces(*(x[order] for x in pieces)), TextRows(*(x[order_R] for x in rows))
