"""Drops samples that are too long, or cuts them where the cut sample still teaches the right thing.

    kept = limited(encoded, choices, encoder, counts)    # adds to `counts`, by kind of fate
    kept.encoded, kept.samples                           # the remaining samples, and their numbers

A cut sample ends after its first `max_tokens` tokens, without the end of its turn. It is dropped
where nothing before the cut is trained, or the cut is within a think block: a model that learns
from such samples thinks without an end. Of a pair both answers are kept, or none.
"""

from collections import Counter
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from megatron_qwen3.posttrain.dialogs.encoder import ChatEncoder, EncodedDialogs
from megatron_qwen3.posttrain.dialogs.samples import Choices

DROPPED, CUT = "samples too long: dropped", "samples too long: cut"
IN_THINKING = "samples too long: dropped, as the cut would be within thinking"
UNTRAINED = "samples too long: dropped, as nothing before the cut is trained"


class KeptSamples(NamedTuple):
    """encoded: the remaining samples; samples: their numbers among all, int64."""

    encoded: EncodedDialogs
    samples: npt.NDArray[np.int64]


def limited(
    encoded: EncodedDialogs, choices: Choices, encoder: ChatEncoder, counts: Counter[str]
) -> KeptSamples:
    """The samples of at most `choices.max_tokens` tokens each."""
    lengths = encoded.lengths.copy()
    most = choices.max_tokens
    too_long = np.flatnonzero(lengths > most) if most is not None else lengths[:0]
    if not len(too_long) or most is None:
        return KeptSamples(encoded, np.arange(len(lengths)))
    if choices.kind == "pairs":
        pairs = np.unique(too_long // 2)
        counts[DROPPED] += 2 * len(pairs)
        lengths[np.concatenate([2 * pairs, 2 * pairs + 1])] = 0
    elif choices.too_long == "drop":
        counts[DROPPED] += len(too_long)
        lengths[too_long] = 0
    else:
        ends = np.cumsum(encoded.lengths)
        for n in too_long:
            start = ends[n] - encoded.lengths[n]
            head = slice(start, start + most)
            fate = _fate(encoded.tokens[head], encoded.trained[head], encoder)
            counts[fate] += 1
            lengths[n] = most if fate == CUT else 0
    return _shortened(encoded, lengths)


def last_only(encoded: EncodedDialogs) -> EncodedDialogs:
    """Leave only the last of each sample's trained tokens trained: the end of its last turn."""
    places = np.where(encoded.trained, np.arange(len(encoded.trained)), -1)
    starts = np.cumsum(encoded.lengths) - encoded.lengths
    trained = np.zeros(len(encoded.trained), bool)
    if len(starts):
        trained[np.maximum.reduceat(places, starts)] = True
    return encoded._replace(trained=trained)


def _fate(
    head: npt.NDArray[np.uint32], trained: npt.NDArray[np.bool_], encoder: ChatEncoder
) -> str:
    """CUT, or why a sample that would be cut after these tokens is dropped."""
    if not trained.any():
        return UNTRAINED
    tags = np.flatnonzero(trained & ((head == encoder.think) | (head == encoder.end_think)))
    return IN_THINKING if len(tags) and head[tags[-1]] == encoder.think else CUT


def _shortened(encoded: EncodedDialogs, lengths: npt.NDArray[np.int64]) -> KeptSamples:
    """The first `lengths` tokens of each sample; samples of length 0 are left out."""
    starts = np.cumsum(encoded.lengths) - encoded.lengths
    places = np.arange(len(encoded.tokens)) - np.repeat(starts, encoded.lengths)
    stays = places < np.repeat(lengths, encoded.lengths)
    samples = np.flatnonzero(lengths)
    left = EncodedDialogs(encoded.tokens[stays], lengths[samples], encoded.trained[stays])
    return KeptSamples(left, samples)
