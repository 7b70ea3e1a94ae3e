"""Rows of mode sft: which dialogs are trained, which are held out, which samples share a row.

    mixture = DialogMixture(config)                  # ConfigError names every fault of the sets
    mixture.rows(step * global_batch, count)         # the samples of each row, as (source, sample)
    mixture.held_out(config.eval.tokens)             # the same for held-out samples
    mixture.sample(place)                            # token ids, and a mask of the trained ones

A row has sequence_length places, and a sample of L tokens takes L - 1 of them: each place has a
token and the one after it as its label. Dialogs are held out whole, so that no dialog is both
trained and evaluated. A digest of a dialog's own tokens decides whether it is held out: the choice
is the same for every run, every stage, and every set that has the dialog. No torch here.

Legend: N samples of a set, D dialogs.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_qwen3.config import Config, ConfigError
from megatron_qwen3.posttrain.dialogs.dialog_set import DialogSample, DialogSet, set_of
from megatron_qwen3.posttrain.rows.packing import (
    PackedPlace,
    Packing,
    by_epochs,
    by_weights,
    held_out_rows,
    trained_rows,
)
from megatron_qwen3.settings_posttrain import DialogSourceConfig
from megatron_qwen3.training import tokenizer_check

Int64 = npt.NDArray[np.int64]
_LINES_TOLD = 40  # line numbers shown of one source
_FEW = 10  # fewer held-out samples give a loss of little meaning


@dataclass(frozen=True, eq=False)
class DialogSource:
    """A dialog set, the numbers of its trained and of its held-out samples.

    siblings_N: for each sample, how many samples of the set come from its dialog, itself included.
    """

    name: str
    dialogs: DialogSet
    trained_M: Int64
    held_out_M: Int64
    siblings_N: Int64


class DialogMixture:
    """Rows 0, 1, 2, … of a run, each a pure function of the settings and its number."""

    def __init__(self, config: Config) -> None:
        if not config.sft.sources:
            raise ConfigError(
                "sft.sources is empty: a run of mode sft needs at least one [[sft.sources]]"
            )
        self.sources = tuple(_source(each, config) for each in config.sft.sources)
        self._length = config.data.sequence_length
        self._packing = _packing(self.sources, config)
        self.facts = _facts(self.sources, config)
        if config.sft.sources[0].epochs:
            _check_steps(config, self._packing.total_rows)

    def rows(self, first: int, count: int) -> list[list[PackedPlace]]:
        """Rows [first, first + count) of the run."""
        trained = [source.trained_M for source in self.sources]
        return trained_rows(self._packing, trained, first, count)

    def held_out(self, max_tokens: int) -> list[list[PackedPlace]]:
        """Rows of held-out samples: `max_tokens` places per source at most, but one sample."""
        held_out = [source.held_out_M for source in self.sources]
        lengths = [source.dialogs.lengths_N - 1 for source in self.sources]
        return held_out_rows(held_out, lengths, self._length, max_tokens)

    def sample(self, place: PackedPlace) -> DialogSample:
        """The sample at a place."""
        return self.sources[place.source].dialogs.read(place.sample)

    def places(self, place: PackedPlace) -> int:
        """How many places of a row the sample takes."""
        return int(self.sources[place.source].dialogs.lengths_N[place.sample]) - 1

    def weight(self, place: PackedPlace) -> float:
        """The weight of the sample's dialog, which each of its trained tokens gets."""
        return float(self.sources[place.source].dialogs.weights_N[place.sample])

    def siblings(self, place: PackedPlace) -> int:
        """How many samples of the set come from the same dialog, this one included."""
        return int(self.sources[place.source].siblings_N[place.sample])

    def mode(self, place: PackedPlace) -> int:
        """The number, in dialog_set.MODES, of the mode that its last answer was asked for in."""
        return int(self.sources[place.source].dialogs.modes_N[place.sample])

    def label(self, place: PackedPlace) -> int:
        """The number, in the set's `sources`, of the source that its line names."""
        return int(self.sources[place.source].dialogs.sources_N[place.sample])

    def describe(self, rows: Iterable[Iterable[PackedPlace]]) -> str:
        """The dialogs in these rows, by source, as line numbers of its input, from 1."""
        lines: dict[int, set[int]] = {}
        for source, sample in (place for row in rows for place in row):
            line = int(self.sources[source].dialogs.dialogs_N[sample]) + 1
            lines.setdefault(source, set()).add(line)
        return told({self.sources[k].name: numbers for k, numbers in sorted(lines.items())})

    def news(self) -> Iterator[str]:
        """One line on each source, logged when the run starts."""
        for source in self.sources:
            lengths_N = source.dialogs.lengths_N
            yield (
                f"dialogs of {source.name}: {len(source.trained_M):,} samples of "
                f"{int(lengths_N[source.trained_M].sum()):,} tokens, {len(source.held_out_M):,} "
                "more are held out"
            )
            if 0 < (few := len(source.held_out_M)) < _FEW:
                yield (
                    f"{source.name}: a loss over {few} held-out samples means little: raise "
                    "sft.held_out"
                )


def _source(settings: DialogSourceConfig, config: Config) -> DialogSource:
    where = f"sft.sources.{settings.name}"
    dialogs = set_of(where, settings.path)
    if dialogs.kind != "dialogs":
        raise ConfigError(
            f"{where}: {settings.path} holds {dialogs.kind}; valid: dialogs, as "
            "mq3 data dialogs writes them of messages"
        )
    if dialogs.vocab_size > config.model.vocab_size:
        raise ConfigError(
            f"{where}: {settings.path} was tokenized with {dialogs.vocab_size:,} tokens, more than "
            f"model.vocab_size = {config.model.vocab_size:,}; valid: at least "
            f"{dialogs.vocab_size:,}"
        )
    tokenizer_check.check_is_of(config, f"{where} = {settings.path}", dialogs.tokenizer)
    _check_lengths(where, dialogs, config.data.sequence_length)
    is_held_out_N = held_out(dialogs, config.sft.held_out)
    trained_M, held_out_M = (np.flatnonzero(which) for which in (~is_held_out_N, is_held_out_N))
    if not len(trained_M):
        raise ConfigError(f"{where}: {settings.path} has no dialog to train on")
    _, dialog_N, counts = np.unique(dialogs.dialogs_N, return_inverse=True, return_counts=True)
    return DialogSource(settings.name, dialogs, trained_M, held_out_M, counts[dialog_N])


def _check_lengths(where: str, dialogs: DialogSet, length: int) -> None:
    lengths_N = dialogs.lengths_N
    if len(lengths_N) and lengths_N.min() < 2:
        raise ConfigError(
            f"{where}: sample {int(lengths_N.argmin())} of {dialogs.prefix} has one token, which "
            "leaves nothing to train"
        )
    if len(lengths_N) and lengths_N.max() - 1 > length:
        longer, longest = int((lengths_N - 1 > length).sum()), int(lengths_N.max())
        raise ConfigError(
            f"{where}: {longer:,} of {len(lengths_N):,} samples of {dialogs.prefix} are longer "
            f"than data.sequence_length = {length:,}; valid: at least {longest - 1:,}, or tokenize "
            "the dialogs again with that as their greatest length"
        )


def held_out(dialogs: DialogSet, fraction: float) -> npt.NDArray[np.bool_]:
    """Which samples are of held-out dialogs, bool [N].

    A dialog is held out where the digest of its first sample is below `fraction` of the greatest
    value: all samples of a dialog, and of its copies in the set, go the same way. Of two dialogs or
    more, at least the one of the greatest digest is trained, and where the fraction is above 0 at
    least the one of the least digest is held out.
    """
    _, first_D, dialog_N = np.unique(dialogs.dialogs_N, return_index=True, return_inverse=True)
    if not fraction or len(first_D) < 2:
        return np.zeros(len(dialogs), np.bool_)
    digest_D = np.array([dialogs.digest(int(n)) for n in first_D], np.uint64)
    is_held_out_D = digest_D / 2.0**64 < fraction
    is_held_out_D[digest_D.argmin()] = True
    is_held_out_D[digest_D.argmax()] = False
    return is_held_out_D[dialog_N]


def told(lines: Mapping[str, Collection[int]]) -> str:
    """Line numbers by source, as text; of many, the first ones and how many follow."""
    texts = []
    for name, numbers in lines.items():
        shown = ", ".join(map(str, sorted(numbers)[:_LINES_TOLD]))
        more = len(numbers) - _LINES_TOLD
        texts.append(f"{name}: {shown}" + (f" and {more:,} more" if more > 0 else ""))
    return "; ".join(texts)


def _packing(sources: tuple[DialogSource, ...], config: Config) -> Packing:
    lengths = [source.dialogs.lengths_N[source.trained_M] - 1 for source in sources]
    keys = [source.dialogs.fingerprint for source in sources]
    settings, length, seed = config.sft.sources, config.data.sequence_length, config.run.seed
    if settings[0].epochs:
        drawn = by_epochs(lengths, keys, [each.epochs for each in settings])
        return Packing(drawn, length, seed, ends=True)
    drawn = by_weights(lengths, keys, [each.weight for each in settings])
    return Packing(drawn, length, seed)


def _check_steps(config: Config, rows: int) -> None:
    batch = config.train.global_batch
    if config.steps * batch > rows:
        asked = "train.tokens" if config.train.tokens else "train.steps"
        raise ConfigError(
            f"{asked} asks for {config.steps:,} steps of {batch:,} rows, but the epochs of "
            f"[[sft.sources]] fill {rows:,} rows of {config.data.sequence_length:,} tokens; valid: "
            f"train.steps of at most {rows // batch:,}, or more epochs"
        )


def _facts(sources: tuple[DialogSource, ...], config: Config) -> dict[str, Any]:
    """Everything that the rows depend on, by setting."""
    return {
        "run.seed": config.run.seed,
        "data.sequence_length": config.data.sequence_length,
        "train.global_batch": config.train.global_batch,
        "sft.held_out": config.sft.held_out,
        "sft.sources": [
            [source.dialogs.fingerprint, each.weight, each.epochs]
            for source, each in zip(sources, config.sft.sources, strict=True)
        ],
    }
