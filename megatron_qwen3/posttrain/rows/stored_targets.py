"""Adds the targets that a teacher stored beside the dialog sets to rows of samples.

    stored = StoredTargets(config, mixture)           # ConfigError where a set has none that fit
    arrays = stored.with_targets(arrays_of(rows, …), rows)

Untrained places get uniform targets, which nothing reads. No torch here.
Legend: B rows, S places, K ids of each.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from megatron_qwen3.config import Config, ConfigError
from megatron_qwen3.posttrain.rows.dialog_mixture import DialogMixture
from megatron_qwen3.posttrain.rows.packing import PackedPlace
from megatron_qwen3.posttrain.teachers.teacher_set import TeacherSet, as_extra, trained_labels
from megatron_qwen3.training.arrays import Arrays


class StoredTargets:
    """The stored targets of all sets of a run."""

    def __init__(self, config: Config, mixture: DialogMixture) -> None:
        self._mixture, self._top_k = mixture, config.sft.teacher.top_k
        self._sets = [TeacherSet(source.dialogs) for source in mixture.sources]
        for found in self._sets:
            _check(config, found)

    def with_targets(self, arrays: Arrays, rows: Sequence[Sequence[PackedPlace]]) -> Arrays:
        """The arrays of a batch, made of these rows, with their targets."""
        (B, S), K = arrays.tokens_BS.shape, self._top_k
        ids_BSK = np.broadcast_to(np.arange(K), (B, S, K)).copy()
        even = -math.log(K + 1)
        log_probs_BSK, log_rest_BS = np.full((B, S, K), even, "f4"), np.full((B, S), even, "f4")
        for row, places in enumerate(rows):
            start = 0
            for place in places:
                here = start + trained_labels(self._mixture.sample(place))
                targets = self._sets[place.source].read(place.sample, K)
                ids_BSK[row, here], log_probs_BSK[row, here] = targets.ids, targets.log_probs
                log_rest_BS[row, here] = targets.log_rest
                start += self._mixture.places(place)
        return replace(arrays, extra=as_extra(ids_BSK, log_probs_BSK, log_rest_BS))


def _check(config: Config, found: TeacherSet) -> None:
    asked = config.sft.teacher
    if asked.top_k > found.top_k:
        raise ConfigError(
            f"sft.teacher.top_k = {asked.top_k}, but {found.folder} holds {found.top_k} ids of "
            f"each token; valid: at most {found.top_k}, or score the set again"
        )
    if asked.temperature != found.temperature:
        raise ConfigError(
            f"sft.teacher.temperature = {asked.temperature:g}, but {found.folder} was scored at "
            f"{found.temperature:g}; valid: that, or score the set again"
        )
    if found.vocab_size > config.model.vocab_size:
        raise ConfigError(
            f"{found.folder} is of a teacher of {found.vocab_size:,} tokens, more than "
            f"model.vocab_size = {config.model.vocab_size:,}, so that the student cannot follow it"
        )
