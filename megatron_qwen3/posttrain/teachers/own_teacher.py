"""A model of ours, or of Hugging Face's format, that scores samples for `teacher_set.write`.

    with OwnTeacher(Path("Qwen3-32B"), 64, 1.0, Scoring(rows=16)) as teacher:
        if teacher.leads:
            write(dialogs, teacher.about, 64, teacher.score)
        else:
            teacher.follow()

The first rank sends samples and gets the targets. The other ranks `follow`: they do their share of
each task, in any layout. torch is imported on entering.

Legend: R rows, S positions, K ids of each.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from data_prep.best_fit import best_fit
from megatron_qwen3 import launcher
from megatron_qwen3.config import ConfigError
from megatron_qwen3.fields import setting
from megatron_qwen3.generate.load import load
from megatron_qwen3.generate.opening import checked, close, joined
from megatron_qwen3.parallel.layout import row_unit
from megatron_qwen3.posttrain import options
from megatron_qwen3.posttrain.dialogs.dialog_set import DialogSample
from megatron_qwen3.posttrain.generators.own_generator import label_of
from megatron_qwen3.posttrain.teachers.teacher_set import PART_LABELS, Targets, none, trained_labels
from megatron_qwen3.posttrain.teachers.teacher_settings import tokenizer_sha256

_ROW_TOKENS = 8192  # places of a row that samples share; the longest sample's length, if greater
_Rows = Sequence[Sequence[npt.NDArray[np.int64]]]  # for each row, the ids of its samples
_Task = tuple[int, _Rows]


@dataclass(frozen=True)
class Scoring:
    """How a model of ours is run."""

    rows: int = setting(8, "rows that each data rank of the teacher scores at a time", at_least=1)
    local: tuple[str, ...] = setting(
        (), "settings of a model of ours, such as parallel.tensor=2", metavar="KEY=VALUE"
    )

    def __post_init__(self) -> None:
        options.check(self)


class OwnTeacher:
    """A scorer; ConfigError where the folder has no model, or the layout does not fit.

    about: entries for the TeacherSet's description. tokenizer: the sha256 of its tokenizer.json, ""
    where it has none. leads: whether this rank sends the samples.
    """

    part_labels = PART_LABELS

    def __init__(self, path: Path, top_k: int, temperature: float, scoring: Scoring) -> None:
        # Followers wait for as long as the first rank is busy with other things.
        settings = ["guard.hang_seconds=0", *scoring.local]
        self._source, self._config = checked(path, settings, generates=False)
        self.leads, self._rows = launcher.rank() == 0, scoring.rows
        vocab_size = self._config.model.vocab_size
        if not 0 < top_k <= vocab_size:
            raise ConfigError(f"top_k = {top_k}; valid: 1 to the {vocab_size:,} tokens of {path}")
        self._top_k, self._temperature = top_k, temperature
        self.tokenizer = tokenizer_sha256(self._config.data.tokenizer)
        self.about = {
            "teacher": label_of(self._source.path),  # other weights there get another label
            "vocab_size": vocab_size,
            "temperature": temperature,
        }

    def __enter__(self) -> Self:
        layout = joined(self._config)
        from megatron_qwen3.model.distributions import top_k

        self._model = load(self._source, self._config, layout)
        self._head = top_k(self._top_k, self._temperature)
        self._unit, _ = row_unit(self._config.parallel)  # ranks share the positions of a row
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self.leads and kind is None:
            self._tell(None)
        close()

    def score(self, samples: Sequence[DialogSample]) -> list[Targets]:
        """Targets of the trained labels of each sample."""
        labels = [trained_labels(sample) for sample in samples]
        found = {n: none(self._top_k) for n in range(len(samples)) if not len(labels[n])}
        asked = [n for n in range(len(samples)) if len(labels[n])]
        for length, rows in self._packed([len(samples[n].ids) - 1 for n in asked]):
            numbers = [[asked[k] for k in row] for row in rows]
            task = length, [[samples[n].ids for n in row] for row in numbers]
            self._tell(task)
            for row, outputs in zip(numbers, self._scored(*task), strict=True):
                begin = 0
                for n in row:
                    ids, log_probs, log_rest = (x[begin + labels[n]] for x in outputs)
                    found[n] = Targets(ids.astype(np.int32), log_probs, log_rest)
                    begin += len(samples[n].ids) - 1
        return [found[n] for n in range(len(samples))]

    def follow(self) -> None:
        """Do this rank's share of each task, until the first rank leaves."""
        while (task := self._tell(None)) is not None:
            self._scored(*task)

    def _packed(self, lengths: list[int]) -> Iterator[tuple[int, list[list[int]]]]:
        """Yields (positions of a row, rows of sample numbers), each scored in one pass."""
        if not lengths:
            return
        length = max(max(lengths), min(sum(lengths), _ROW_TOKENS))
        length = -(-length // self._unit) * self._unit
        rows, size = best_fit(np.array(lengths), length), self._rows * self._model.layout.data
        for start in range(0, len(rows), size):
            yield length, rows[start : start + size]

    def _tell(self, task: _Task | None) -> _Task | None:
        """The first rank's task, on every rank."""
        import torch.distributed as dist

        told: list[_Task | None] = [task]
        dist.broadcast_object_list(told, src=0)
        return told[0]

    def _scored(self, length: int, rows: _Rows) -> list[tuple[npt.NDArray[Any], ...]]:
        """Ids [S, K], log p [S, K] and log of the rest [S] of each row, on every rank."""
        share = -(-len(rows) // self._model.layout.data)
        first = self._model.data_rank * share
        batch = _batch(rows[first : first + share] or rows[:1], length).padded_to(share)
        outputs = self._model.score(batch, self._head)
        every = [
            self._model.gather_over_data(outputs[name])[: len(rows)].cpu().numpy()
            for name in ("ids", "log_probs", "log_rest")
        ]
        return [tuple(x[n] for x in every) for n in range(len(rows))]


def _batch(rows: _Rows, length: int) -> Any:
    """Rows of `length` positions: samples attend only to themselves, then padding."""
    import torch

    from megatron_qwen3.model.stretches import Stretches
    from megatron_qwen3.training.batch import TokenBatch

    tokens_RS = torch.zeros(len(rows), length, dtype=torch.int64)
    valid_RS = torch.zeros(len(rows), length, dtype=torch.bool)
    starts: list[list[int]] = []
    for row, samples in enumerate(rows):
        begins, end = [], 0
        for ids in samples:
            begins.append(end)
            tokens_RS[row, end : end + len(ids) - 1] = torch.from_numpy(ids[:-1])
            end += len(ids) - 1
        valid_RS[row, :end] = True
        starts.append([*begins, end] if end < length else begins)
    stretches = Stretches.of(starts, length)
    return TokenBatch(tokens_RS, tokens_RS, valid_RS.float(), stretches, valid_RS)
