"""A teacher's scores of rollouts, from a second model in memory or from a server.

    scorer = scorer_of(config, layout, engine)                  # all ranks
    batch = scorer.batch(record, rows)                          # of one update, on all ranks
    engine.train_step(batch, scorer.objective, rate)

A model in memory scores the rows of each update right before it. A server may score the same tokens
differently the next time, so the first rank asks it once per batch and keeps its scores beside the
record, in `teacher.npz` with the server's address: a run resumed within a batch trains on the same
scores; with another teacher's address it asks that one instead.

Legend: T tokens of all rollouts of a record one after another, K ids of each; R rows, S positions.
"""

import io
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from megatron_qwen3.config import Config, ConfigError
from megatron_qwen3.launcher import tell
from megatron_qwen3.parallel.first import of_first
from megatron_qwen3.parallel.layout import Layout, row_unit
from megatron_qwen3.posttrain.dialogs.dialog_set import DialogSample
from megatron_qwen3.posttrain.generators.endpoint import Named
from megatron_qwen3.posttrain.generators.settings import EndpointLimits
from megatron_qwen3.posttrain.policy import towards
from megatron_qwen3.posttrain.policy.objective import SAMPLER
from megatron_qwen3.posttrain.rollouts import record as records
from megatron_qwen3.posttrain.rollouts.record import Array, RolloutRecord, folder_of
from megatron_qwen3.posttrain.rollouts.record_files import read_arrays
from megatron_qwen3.posttrain.rollouts.rows import RolloutRows
from megatron_qwen3.posttrain.teachers.endpoint_teacher import EndpointTeacher
from megatron_qwen3.posttrain.teachers.output_matrix import output_matrix
from megatron_qwen3.posttrain.teachers.teacher import Teacher
from megatron_qwen3.storage.whole import write_whole
from megatron_qwen3.training.batch import TokenBatch
from megatron_qwen3.training.engine import Engine
from megatron_qwen3.training.objectives import Objective
from megatron_qwen3.training.optim import state_tensors
from megatron_qwen3.training.turns import DeviceTurn

TEACHER_FILE = "teacher.npz"  # in the folder of a record
_TEACHER = "teacher"  # its address, beside its scores
Waiting = Callable[[], AbstractContextManager[object]]
_AT_ONCE = 64  # rollouts sent to a served teacher between two signs of life
_ANSWER = {"ids": np.int64, "log_probs": np.float32, "log_rest": np.float32, "log_prob": np.float32}


class Scorer(Protocol):
    """objective: the one to train; known: how many ids, from 0 on, the teacher knows; unit: the
    length of rows must be a multiple of it."""

    objective: Objective
    known: int
    unit: int

    def batch(self, record: RolloutRecord, rows: RolloutRows) -> TokenBatch:
        """An update's rows of this data rank with the teacher's scores; all ranks call it."""
        ...


def scorer_of(
    config: Config,
    layout: Layout,
    engine: Engine,
    beat: Callable[[], None] = lambda: None,
    waiting: Waiting = nullcontext,
) -> Scorer:
    """The scorer of distill.teacher. beat: called now and then while a server is asked; waiting: a
    context that all ranks hold until it answers. ConfigError where its weights are damaged."""
    if config.distill.teacher.url:
        return ServedScorer(config, engine.data_rank, beat, waiting)
    return OwnScorer(config, layout, engine)


class OwnScorer:
    """A second model; with distill.teacher.in_turns its weights and the student's optimizer are in
    the device's memory by turns."""

    def __init__(self, config: Config, layout: Layout, engine: Engine) -> None:
        self._data_rank = engine.data_rank
        self._optimizer = DeviceTurn(lambda: state_tensors(engine.optimizer))
        self._in_turns = config.distill.teacher.in_turns
        if self._in_turns:
            self._optimizer.leave()  # before the teacher's weights come
        self._teacher = teacher = Teacher(config, layout, engine.data_rank)
        self._weights = DeviceTurn(self._tensors)
        model = teacher.model.config.model
        self.unit, _ = row_unit(teacher.model.config.parallel, teacher.model.config.fp8)
        self.known = min(model.vocab_size, config.model.vocab_size)
        self._head = towards.asked_of(config, model.hidden_size)
        is_whole = towards.is_whole(config.distill)
        matrix_vG = output_matrix(teacher.model, engine.model) if is_whole else None
        self.objective = towards.towards(config, model.hidden_size, matrix_vG, self.known)
        if self._in_turns:
            self._weights.leave()
            self._optimizer.come()

    def batch(self, record: RolloutRecord, rows: RolloutRows) -> TokenBatch:
        def read(first: int, count: int) -> TokenBatch:
            members = rows.members[first : first + count]
            return replace(rows, members=members, ranks=1).batch(0, {}, {})

        batch = rows.batch(self._data_rank, {}, {SAMPLER: record.log_probs})
        with self._teachers_turn():
            answer = self._teacher.scores(batch, self._head, read)
        return towards.with_answer(batch.to(self._teacher.model.device), answer)

    @contextmanager
    def _teachers_turn(self) -> Iterator[None]:
        if self._in_turns:
            self._optimizer.leave()
            self._weights.come()
        yield
        if self._in_turns:
            self._weights.leave()
            self._optimizer.come()

    def _tensors(self) -> Iterator[torch.Tensor]:
        for chunk in self._teacher.model.chunks:
            yield from chunk.parameters()
            yield from chunk.buffers()


class ServedScorer:
    """vLLM, which the first rank asks once about all rollouts of a batch. beat: called on all ranks
    before each part of the requests; waiting: a context that they hold until the replies are
    there."""

    def __init__(
        self,
        config: Config,
        data_rank: int,
        beat: Callable[[], None] = lambda: None,
        waiting: Waiting = nullcontext,
    ) -> None:
        self._config, self._data_rank = config, data_rank
        self._beat, self._waiting = beat, waiting
        self.known, self.unit = config.model.vocab_size, 1
        self.objective = towards.towards(config)
        self._record: RolloutRecord | None = None
        self._answer: dict[str, Array] = {}

    def batch(self, record: RolloutRecord, rows: RolloutRows) -> TokenBatch:
        if record is not self._record:  # after a rollback a number may be another batch's
            self._record, self._answer = record, self._of_batch(record)
        of_tokens = {SAMPLER: record.log_probs, **self._answer}
        batch = rows.batch(self._data_rank, {}, of_tokens)
        answer = {name: batch.extra[name] for name in _ANSWER}
        others = {name: x for name, x in batch.extra.items() if name not in _ANSWER}
        return towards.with_answer(replace(batch, extra=others), answer)

    def _of_batch(self, record: RolloutRecord) -> dict[str, Array]:
        """[T, K] and [T] each of `_ANSWER`, from the record's folder; asked where it has none."""
        path = folder_of(self._config.run_dir, record.batch) / TEACHER_FILE

        if not of_first(partial(self._has_said, path)):
            self._ask(record, path)
        try:
            found = read_arrays(path, _ANSWER)
        except (OSError, ValueError, LookupError, zipfile.BadZipFile) as error:
            found, fault = {}, str(error)
        shapes = _shapes(record, towards.ids_of(self._config.distill))
        if {name: x.shape for name, x in found.items()} != shapes:
            why = fault if not found else "other tokens, or another distill.top_k"
            raise ConfigError(f"{path}: no teacher's scores of this batch: {why}; remove it")
        return found

    def _has_said(self, path: Path) -> bool:
        """Whether the present teacher's scores are stored; those of another one are not used."""
        if not path.exists():
            return False
        url = self._config.distill.teacher.url
        try:
            of = str(read_arrays(path, (_TEACHER,))[_TEACHER])
        except LookupError:  # none is named
            return True
        except (OSError, ValueError, zipfile.BadZipFile):
            return True  # reading the scores reports the fault
        if of != url:
            tell(f"note: {path} has the scores of {of}: asking distill.teacher.url = {url} instead")
        return of == url

    def _ask(self, record: RolloutRecord, path: Path) -> None:
        K = towards.ids_of(self._config.distill)
        found = {name: np.zeros(s, _ANSWER[name]) for name, s in _shapes(record, K).items()}
        numbers = np.flatnonzero(record.trained_tokens_N)
        for start in range(0, len(numbers), _AT_ONCE):
            self._beat()
            with self._waiting():
                of_first(partial(self._ask_about, numbers[start : start + _AT_ONCE], record, found))
        named = {**found, _TEACHER: np.array(self._config.distill.teacher.url)}
        of_first(partial(_write, path, named))

    def _ask_about(self, numbers: Array, record: RolloutRecord, found: dict[str, Array]) -> None:
        """Put the teacher's scores of some rollouts into `found`, at their places."""
        with served_teacher(self._config, EndpointLimits()) as teacher:
            told = teacher.told([_sample(record, n) for n in numbers])
        for n, (targets, label_log_probs) in zip(numbers, told, strict=True):
            places = record.places(n)
            here = places.start + np.flatnonzero(record.sampled[places])
            found["ids"][here], found["log_probs"][here] = targets.ids, targets.log_probs
            found["log_rest"][here], found["log_prob"][here] = targets.log_rest, label_log_probs


def served_teacher(config: Config, limits: EndpointLimits) -> EndpointTeacher:
    """The teacher of distill.teacher.url, to be entered; it may reply any id of the student."""
    return EndpointTeacher(
        config.distill.teacher.url,
        config.data.tokenizer,
        config.model.vocab_size,
        towards.ids_of(config.distill),
        limits,
        Named("distill.teacher.url", key=""),
    )


def _write(path: Path, arrays: dict[str, Array]) -> None:
    file = io.BytesIO()
    np.savez(file, **arrays)
    write_whole(path, [file.getvalue()])


def _shapes(record: RolloutRecord, K: int) -> dict[str, tuple[int, ...]]:
    T = len(record.log_probs)
    return {"ids": (T, K), "log_probs": (T, K), "log_rest": (T,), "log_prob": (T,)}


def _sample(record: RolloutRecord, n: int) -> DialogSample:
    """Rollout n as a sample for a teacher to score; its sampled tokens are the trained ones."""
    prompt, tokens = record.prompt(n), record.tokens(n)
    trained = np.concatenate([np.zeros(len(prompt), bool), record.sampled[record.places(n)]])
    return DialogSample(np.concatenate([prompt, tokens]).astype(np.int64), trained)


def without_unknown(record: RolloutRecord, known: int) -> RolloutRecord:
    """The record with answers untrained that have an id unknown to the teacher. A batch that was
    made for this teacher left them out already."""
    places_N = record.lengths_N + record.prompt_lengths_N
    has_unknown_N = records.any_beyond(record.ids, places_N, known)
    return replace(record, is_trained_N=record.is_trained_N & ~has_unknown_N)
