"""Computes signatures by which near-duplicates are found, at tens of MB of text per CPU second.

A text is the set of its runs of `ngram` units (`units.py`). One-permutation hashing (Li, Owen,
Zhang 2012) reads a MinHash signature off a single hash of each run: the range of the hash is cut
into bins, and each bin keeps its smallest value. Two texts agree in a bin with the probability of
their similarity (Jaccard's, of the sets). Empty bins borrow from full ones in a fixed
random order (optimal densification: Shrivastava 2017, section 4).

    made = Signing(bands=20, rows=6, ngram=5)
    a, b = signature(split(text).hashes, made), signature(split(other).hashes, made)
    similarity(a, b)   # an estimate with a standard error of at most 0.046
    band_key(a[:6])     # texts that agree in one of 20 bands of 6 bins are compared at all

With 20 bands of 6 bins, as by default, a pair of similarity s meets with probability
1 - (1 - s^6)^20: 0.998 at 0.8, 0.27 at 0.5, 0.014 at 0.3 (Leskovec et al., Mining of Massive
Datasets, section 3.4).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from data_prep.units import Hashes, mix, shingles
from megatron_qwen3.fields import setting

Signature = npt.NDArray[np.uint16]  # [..., bands * rows]
_MOST_BINS = 2048  # of which each has an order of all others


@dataclass(frozen=True)
class Signing:
    """How signatures are made: more rows find fewer pairs, more bands more of them."""

    bands: int = setting(20, "parts of a signature; texts that agree in one are compared")
    rows: int = setting(6, "bins in a band")
    ngram: int = setting(5, "units (words) in a run; texts are compared by their runs")

    @property
    def bins(self) -> int:
        """How many numbers a signature has."""
        return self.bands * self.rows

    def faults(self) -> Iterator[str]:
        """Faults of the settings, one line each."""
        for name, value in vars(self).items():
            if value < 1:
                yield f"signatures.{name} = {value}; valid: 1 or more"
        if self.bins > _MOST_BINS:
            yield (
                f"signatures.bands * signatures.rows = {self.bins:,}; valid: up to {_MOST_BINS:,}"
            )


BY_DEFAULT = Signing()


def signature(hashes: Hashes, signing: Signing = BY_DEFAULT) -> Signature:
    """uint16 [bins] of a text's units [U]; all zeros for a text without units.

    A bin keeps 16 bits of its smallest hash: unequal ones look alike once in 65,536.
    """
    ordered = np.sort(shingles(hashes, signing.ngram))
    if not len(ordered):
        return np.zeros(signing.bins, np.uint16)
    first = np.searchsorted(ordered, _starts(signing.bins))
    past = np.append(first[1:], len(ordered))
    values = ordered[np.minimum(first, len(ordered) - 1)].astype(np.uint16)
    full = first < past
    if not full.all():
        empty = np.flatnonzero(~full)
        order = _order(signing.bins)[empty]
        values[empty] = values[order[np.arange(len(empty)), full[order].argmax(axis=1)]]
    return values


@cache
def _starts(bins: int) -> Hashes:
    """The least hash of each bin."""
    return np.array([(k << 64) // bins for k in range(bins)], np.uint64)


@cache
def _order(bins: int) -> npt.NDArray[np.int64]:
    """Row k: in which order an empty bin k asks the others."""
    drawn = mix(np.arange(1, bins * bins + 1, dtype=np.uint64)).reshape(bins, bins)
    return np.argsort(drawn, axis=1)


def similarity(a: Signature, b: Signature) -> npt.NDArray[np.float64]:
    """The estimated similarity of texts, along the last axis."""
    return np.asarray((a == b).mean(axis=-1), np.float64)


def band_key(rows: Signature) -> Hashes:
    """uint64 [...] of the bins of a band [..., rows]: equal where they all are."""
    keys = np.zeros(rows.shape[:-1], np.uint64)
    for row in range(rows.shape[-1]):
        keys = mix(keys * np.uint64(0x9E3779B97F4A7C15) + rows[..., row] + np.uint64(1))
    return keys
