"""Rows of mode reward: which pairs are trained, which are held out, and which share a row.

    mixture = PairMixture(config)                    # ConfigError names every fault of the sets
    mixture.rows(step * global_batch, count)         # the pairs of each row, as (source, pair)
    mixture.held_out(config.eval.tokens)             # the same for held-out pairs

Both answers to a conversation lie in one row, so a row needs room for both: a pair takes as many
places as its answers have tokens, each with the conversation before it. Every pair of every set is
drawn once before any is drawn again. No torch here.

Legend: N pairs of a set.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from megatron_qwen3.config import Config, ConfigError
from megatron_qwen3.posttrain.dialogs.dialog_set import DialogSet, set_of
from megatron_qwen3.posttrain.rows import dialog_mixture
from megatron_qwen3.posttrain.rows.packing import (
    DrawnSource,
    PackedPlace,
    Packing,
    held_out_rows,
    trained_rows,
)
from megatron_qwen3.settings_posttrain import PairSourceConfig
from megatron_qwen3.training import tokenizer_check

Int64 = npt.NDArray[np.int64]


class Pairs:
    """The pairs of a set that fit into rows of `length` places.

    trained_M, held_out_M: their numbers in the set; fraction: the share of pairs to hold out, as
    for dialogs (`dialog_mixture.py`). too_long: number of pairs that do not fit and are left out.
    ConfigError where the set holds no pairs, or no pair to be trained fits.
    """

    def __init__(self, dialogs: DialogSet, name: str, length: int, fraction: float) -> None:
        self.dialogs, self.name = dialogs, name
        if dialogs.kind != "pairs":
            raise ConfigError(
                f"reward.sources.{name}: {dialogs.prefix} holds {dialogs.kind}; valid: pairs, as "
                "mq3 data dialogs writes them of chosen and rejected"
            )
        self.lengths_N: Int64 = dialogs.lengths_N.reshape(-1, 2).sum(1)
        fits_N = self.lengths_N <= length
        is_held_out_N = dialog_mixture.held_out(dialogs, fraction)[::2]
        self.trained_M = np.flatnonzero(fits_N & ~is_held_out_N)
        self.held_out_M = np.flatnonzero(fits_N & is_held_out_N)
        self.too_long = int(np.count_nonzero(~fits_N))
        if not len(self.trained_M):
            raise ConfigError(
                f"reward.sources.{name}: of the {len(fits_N):,} pairs of {dialogs.prefix} "
                f"{np.count_nonzero(is_held_out_N):,} are held out, and none of the others fits "
                f"into data.sequence_length = {length:,}, which needs room for both answers; the "
                f"longest pair has {self.lengths_N.max(initial=0):,} tokens"
            )


class PairMixture:
    """Rows 0, 1, 2, … of a run, each a pure function of the settings and its number."""

    def __init__(self, config: Config) -> None:
        if not config.reward.sources:
            raise ConfigError(
                "reward.sources is empty: a run of mode reward needs at least one "
                "[[reward.sources]]"
            )
        self.sources = tuple(_source(each, config) for each in config.reward.sources)
        self._length = config.data.sequence_length
        drawn = [
            DrawnSource(s.lengths_N[s.trained_M], s.dialogs.fingerprint, len(s.trained_M))
            for s in self.sources
        ]
        self._packing = Packing(drawn, self._length, config.run.seed)
        self.facts = {
            "run.seed": config.run.seed,
            "data.sequence_length": config.data.sequence_length,
            "train.global_batch": config.train.global_batch,
            "reward.held_out": config.reward.held_out,
            "reward.sources": [source.dialogs.fingerprint for source in self.sources],
        }

    def rows(self, first: int, count: int) -> list[list[PackedPlace]]:
        """Rows [first, first + count) of the run."""
        trained = [source.trained_M for source in self.sources]
        return trained_rows(self._packing, trained, first, count)

    def held_out(self, max_tokens: int) -> list[list[PackedPlace]]:
        """Rows of held-out pairs: at most `max_tokens` places of each source, at least one pair."""
        held_out = [source.held_out_M for source in self.sources]
        lengths = [source.lengths_N for source in self.sources]
        return held_out_rows(held_out, lengths, self._length, max_tokens)

    def tokens(self, place: PackedPlace) -> int:
        """Tokens of both answers of a pair, each with its conversation."""
        return int(self.sources[place.source].lengths_N[place.sample])

    def describe(self, rows: Iterable[Iterable[PackedPlace]]) -> str:
        """The pairs in these rows, by source, as line numbers of its input, from 1."""
        lines: dict[int, set[int]] = {}
        for source, pair in (place for row in rows for place in row):
            line = int(self.sources[source].dialogs.dialogs_N[2 * pair]) + 1
            lines.setdefault(source, set()).add(line)
        names = {self.sources[k].name: numbers for k, numbers in sorted(lines.items())}
        return dialog_mixture.told(names)

    def news(self) -> Iterator[str]:
        """One line on each source, logged when the run starts."""
        for s in self.sources:
            text = f"pairs of {s.name}: {len(s.trained_M):,} to train, {len(s.held_out_M):,} more "
            text += "are held out"
            if s.too_long:
                text += f", {s.too_long:,} are longer than data.sequence_length and left out"
            yield text


def _source(settings: PairSourceConfig, config: Config) -> Pairs:
    where = f"reward.sources.{settings.name}"
    dialogs = set_of(where, settings.path)
    if dialogs.vocab_size > config.model.vocab_size:
        raise ConfigError(
            f"{where}: {settings.path} was tokenized with {dialogs.vocab_size:,} tokens, more than "
            f"model.vocab_size = {config.model.vocab_size:,}; valid: at least "
            f"{dialogs.vocab_size:,}"
        )
    tokenizer_check.check_is_of(config, f"{where} = {settings.path}", dialogs.tokenizer)
    return Pairs(dialogs, settings.name, config.data.sequence_length, config.reward.held_out)
