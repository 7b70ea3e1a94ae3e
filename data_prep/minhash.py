"""Signatures by which near-duplicates find each other, at tens of MB of text per CPU second.

A text is the set of its runs of five units (`units.py`). One-permutation hashing (Li, Owen, Zhang
2012) reads a MinHash signature off a single hash of each run: the range of the hash is cut into
120 bins, and each bin keeps its smallest value. Two texts agree in a bin with the probability of
their resemblance (Jaccard similarity of the sets). Empty bins borrow from full ones in a fixed
random order (optimal densification: Shrivastava 2017, section 4).

    a, b = signature(split(text).hashes), signature(split(other).hashes)
    resemblance(a, b)   # an estimate with a standard error of at most 0.046
    band_key(a[:ROWS])  # texts that agree in one of 20 bands of 6 bins are compared at all

With 20 bands of 6 bins a pair of resemblance s meets with probability 1 - (1 - s^6)^20: 0.998 at
0.8, 0.27 at 0.5, 0.014 at 0.3 (Leskovec et al., Mining of Massive Datasets, section 3.4).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from data_prep.units import Hashes, mix, shingles

BANDS, ROWS = 20, 6
BINS = BANDS * ROWS
RUN = 5  # units in a run
Signature = npt.NDArray[np.uint16]  # [..., BINS]

_BOUNDS = np.array([(k << 64) // BINS for k in range(BINS)], np.uint64)
# Row k: in which order an empty bin k asks the others.
_ORDER = np.argsort(mix(np.arange(1, BINS * BINS + 1, dtype=np.uint64)).reshape(BINS, BINS), axis=1)


def signature(hashes: Hashes, run: int = RUN) -> Signature:
    """uint16 [BINS] of a text's units [U]; all zeros for a text without units.

    A bin keeps 16 bits of its smallest hash: unequal ones look alike once in 65,536.
    """
    ordered = np.sort(shingles(hashes, run))
    if not len(ordered):
        return np.zeros(BINS, np.uint16)
    first = np.searchsorted(ordered, _BOUNDS)
    past = np.append(first[1:], len(ordered))
    values = ordered[np.minimum(first, len(ordered) - 1)].astype(np.uint16)
    full = first < past
    if not full.all():
        empty = np.flatnonzero(~full)
        order = _ORDER[empty]
        values[empty] = values[order[np.arange(len(empty)), full[order].argmax(axis=1)]]
    return values


def resemblance(a: Signature, b: Signature) -> npt.NDArray[np.float64]:
    """The estimated resemblance of texts, along the last axis."""
    return np.asarray((a == b).mean(axis=-1), np.float64)


def band_key(rows: Signature) -> Hashes:
    """uint64 [...] of the bins of a band [..., ROWS]: equal where they all are."""
    keys = np.zeros(rows.shape[:-1], np.uint64)
    for row in range(ROWS):
        keys = mix(keys * np.uint64(0x9E3779B97F4A7C15) + rows[..., row] + np.uint64(1))
    return keys
