"""Packs the rollouts of an update into rows of an optimizer step.

    updates = record.updates(count=4, seed=1)              # the rollouts of each; [] if none
    rows = RolloutRows.of(record, updates[0], length=4096, ranks=8, micro_batch=1, unit=1)
    batch = rows.batch(data_rank, {"advantage": advantage_N}, {"old_log_prob": old_T})
    values_T = rows.spread(log_prob_RS)                     # back from positions to tokens

Each rollout, after its prompt, is a document of its own. Rows are as short as possible: all data
ranks get equally many, about equally full, so that no rank computes padding while others work.

Legend: N rollouts, T their tokens one after another, R rows, S positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from data_prep.best_fit import best_fit
from megatron_qwen3.model.stretches import Stretches
from megatron_qwen3.posttrain.rollouts.record import Array, RolloutRecord
from megatron_qwen3.training.batch import TokenBatch

_LONGER = 1.02  # factor by which rows grow until their rollouts fit
SEQUENCE, SHARE = "sequence", "share"


@dataclass(frozen=True, eq=False)
class RolloutRows:
    """The rollouts of each row, by number; empty rows fill up a schedule.

    length: positions of each row; ranks: data ranks, which have equally many rows.
    """

    record: RolloutRecord
    members: tuple[tuple[int, ...], ...]
    length: int
    ranks: int

    @classmethod
    def of(
        cls,
        record: RolloutRecord,
        rollouts: Sequence[int],
        length: int,
        ranks: int,
        micro_batch: int = 1,
        unit: int = 1,
    ) -> RolloutRows:
        """Rows for these rollouts. length: of the longest row; unit: a factor of row lengths.
        ValueError where a rollout is longer than a row, or there is none."""
        chosen = np.asarray(rollouts, np.int64)
        lengths_W = (record.lengths_N + record.prompt_lengths_N - 1)[chosen].astype(np.int64)
        most = length // unit * unit
        if not len(chosen) or lengths_W.max() > most:
            raise ValueError(f"rollouts of {lengths_W.max(initial=0)} places; valid: 1 to {most}")
        together = ranks * micro_batch
        count = -(-int(lengths_W.sum()) // (most * together)) * together
        while True:
            least = max(int(lengths_W.max()), -(-int(lengths_W.sum()) // count))
            for places in _lengths(least, most, unit):
                members = best_fit(lengths_W, places)
                if len(members) <= count:
                    rows = [tuple(chosen[row].tolist()) for row in members]
                    rows += [()] * (count - len(rows))
                    return cls(record, tuple(_dealt(rows, ranks)), places, ranks)
            count += together

    def batch(
        self, data_rank: int, of_rollouts: Mapping[str, Array], of_tokens: Mapping[str, Array]
    ) -> TokenBatch:
        """This data rank's rows. Values of each rollout [N] and token [T, …] become extras
        [R, S, …], floats as float32, integers unchanged, 0 where the label is no token of an
        answer; SEQUENCE and SHARE are added."""
        record, rows = self.record, self.of_rank(data_rank)
        tokens_RS = np.zeros((len(rows), self.length), np.int64)
        labels_RS = np.zeros_like(tokens_RS)
        valid_RS = np.zeros(tokens_RS.shape, np.bool_)
        starts: list[list[int]] = []
        for r, row in enumerate(rows):
            begins, end = [], 0
            for n in row:
                last = int(record.id_ends_N[n])
                size = int(record.prompt_lengths_N[n] + record.lengths_N[n])
                ids, here = record.ids[last - size : last], slice(end, end + size - 1)
                tokens_RS[r, here], labels_RS[r, here] = ids[:-1], ids[1:]
                begins.append(end)
                end = here.stop
            valid_RS[r, :end] = True
            starts.append([*begins, end] if end < self.length else begins)
        place_RS = self._place_RS[self._slice(data_rank)]
        is_answer_RS = place_RS >= 0
        trained_RS = np.zeros(tokens_RS.shape, np.float32)
        trained_RS[is_answer_RS] = record.sampled[place_RS[is_answer_RS]]
        of_rollouts = {**of_rollouts, SHARE: 1 / np.maximum(record.trained_tokens_N, 1)}
        rollout_T = np.repeat(np.arange(len(record)), record.lengths_N)
        columns = {**{k: x_N[rollout_T] for k, x_N in of_rollouts.items()}, **of_tokens}
        extra = {}
        for name, values_T in columns.items():
            of_place, dtype = values_T.shape[1:], values_T.dtype
            if not np.issubdtype(dtype, np.integer):
                dtype = np.dtype(np.float32)
            spread_RS = np.zeros((*place_RS.shape, *of_place), dtype)
            spread_RS[is_answer_RS] = values_T[place_RS[is_answer_RS]]
            extra[name] = torch.from_numpy(spread_RS)
        extra[SEQUENCE] = torch.from_numpy(self._sequence_RS[self._slice(data_rank)])
        return TokenBatch(
            torch.from_numpy(tokens_RS),
            torch.from_numpy(labels_RS),
            torch.from_numpy(trained_RS),
            Stretches.of(starts, self.length),
            torch.from_numpy(valid_RS),
            extra,
        )

    def spread(self, values_RS: Array, into_T: Array) -> None:
        """Copy values at all rows' positions to their tokens' places in `into_T`."""
        is_answer_RS = self._place_RS >= 0
        into_T[self._place_RS[is_answer_RS]] = values_RS[is_answer_RS]

    def of_rank(self, data_rank: int) -> tuple[tuple[int, ...], ...]:
        return self.members[self._slice(data_rank)]

    @property
    def rollouts(self) -> list[int]:
        """All rollouts, row by row."""
        return [n for row in self.members for n in row]

    def _slice(self, data_rank: int) -> slice:
        count = len(self.members) // self.ranks
        return slice(data_rank * count, (data_rank + 1) * count)

    @cached_property
    def _place_RS(self) -> Array:
        """For each position, the number in T of the token that is its label; -1 outside answers."""
        return self._positions[0]

    @cached_property
    def _sequence_RS(self) -> Array:
        """The number of the rollout within its row; -1 outside of answers."""
        return self._positions[1]

    @cached_property
    def _positions(self) -> tuple[Array, Array]:
        place_RS = np.full((len(self.members), self.length), -1, np.int64)
        sequence_RS = np.full_like(place_RS, -1)
        for r, row in enumerate(self.members):
            end = 0
            for k, n in enumerate(row):
                first = end + int(self.record.prompt_lengths_N[n]) - 1
                end = first + int(self.record.lengths_N[n])
                tokens = self.record.places(n)
                place_RS[r, first:end] = np.arange(tokens.start, tokens.stop)
                sequence_RS[r, first:end] = k
        return place_RS, sequence_RS


def _lengths(least: int, most: int, unit: int) -> list[int]:
    """Row lengths to try, ascending, multiples of the unit."""
    found, places = [], -(-least // unit) * unit
    while places < most:
        found.append(places)
        places = max(places + unit, int(places * _LONGER) // unit * unit)
    return [*found, most]


def _dealt(rows: Sequence[tuple[int, ...]], ranks: int) -> list[tuple[int, ...]]:
    """The rows in order of data ranks, dealt one by one, the fullest first."""
    return [row for rank in range(ranks) for row in rows[rank::ranks]]
