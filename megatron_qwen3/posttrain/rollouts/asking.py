"""Chooses the next tasks: sources by weight, modes, held-out tasks, and a curriculum.

    asker = Asker(config, sources, encode, state)    # state: from the last record, {} at first
    drawn = asker.draw(32)                           # tasks, each with the Ask for its samples
    asker.learn(results)                             # [(source, task, answers, right ones), …]
    state = asker.state                              # goes into the record: later draws need it

A draw is a function of the settings, the sources and the state, which is JSON: a run that resumes
from a record draws the same tasks as one that was never stopped. Sources take turns exactly in
proportion to their weights. A file's tasks come in epochs, each in its own order; a generator's one
after the other, without end. Held-out tasks of a source are asked only in evaluations: a hash of
the question chooses them, the same in every stage.

rl.curriculum = "learnable" goes by pass rates. A task of a file is asked in an epoch by chance:

    never asked, or solved by up to half of its last answers    always
    solved by a share p above that                              2 (1 - p), but 1/4 at least
    solved by all, or by none                                   1/8

where answers of an earlier epoch count half as much as those of the next, and a truncated answer is
a failure, scored or not. A generator's tasks never repeat: the pass rate of its source decides
whether the source keeps its turn or the next source gets it. So tasks that are hard but learnable
are asked most, and none is dropped for good.

Nothing here imports torch.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Any, NamedTuple, Protocol

from megatron_qwen3.chat import soft_switch
from megatron_qwen3.posttrain.evaluation.tasks import Task
from megatron_qwen3.posttrain.rollouts.record import TaskName
from megatron_qwen3.posttrain.rollouts.record_files import TASK_RATES
from megatron_qwen3.posttrain.rollouts.rollout import Ask
from megatron_qwen3.pretrain.order import Interleave, Shuffle, epoch_key, mixed
from megatron_qwen3.settings import Config, ConfigError
from megatron_qwen3.settings_rollouts import TaskSourceConfig

THINKING, NOT_THINKING = "thinking", "non-thinking"
_PERIOD = 1 << 20  # draws of the heaviest source in a period of all
_LEAST, _SETTLED = 1 / 4, 1 / 8  # chances of tasks mostly solved; always or never solved
_FADING = 0.5  # weight of earlier answers against the latest ones
_LEAST_HELD_OUT = 0.1  # of a generator: with a smaller share, finding enough would take minutes
_LOOKED_AT = 3  # times as many tasks of a generator as have enough held-out ones on average
_LONGEST_WAIT = 1000  # draws in a row of tasks that are too long, before giving up
State = dict[str, Any]
# Ids of a prompt, from messages, tools, and whether thinking is asked for.
Encode = Callable[[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]], bool], Sequence[int]]


class Tasks(Protocol):
    """Tasks by number, always the same ones. size: how many; None where they have no end."""

    name: str

    @property
    def size(self) -> int | None: ...

    def task(self, number: int) -> Task: ...


class DrawnTask(NamedTuple):
    """A drawn task and the Ask for its samples. number: of the task in its source."""

    source: str
    number: int
    task: Task
    ask: Ask

    @property
    def name(self) -> TaskName:
        return TaskName(self.task.id, self.source, THINKING if self.ask.thinking else NOT_THINKING)


class TaskOutcome(NamedTuple):
    """The result of an asked task: the number of answers that were scored or truncated, and of
    those that passed."""

    source: str
    task: str
    answers: int
    passed: float


@dataclass(frozen=True)
class SplitTasks:
    """A source of tasks with its settings, and the numbers of its tasks on both sides.

    trained, held_out: of a finite source; () of an endless one.
    """

    settings: TaskSourceConfig
    tasks: Tasks
    fraction: float
    trained: tuple[int, ...] = ()
    held_out: tuple[int, ...] = ()
    _found: dict[int, list[int]] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, settings: TaskSourceConfig, tasks: Tasks, fraction: float) -> SplitTasks:
        """fraction: of tasks to hold out; at least a tenth of a generator's, which has enough for
        both sides and must generate each task to look at it. ConfigError where no task is left to
        train on."""
        if tasks.size is None:
            return cls(settings, tasks, max(fraction, _LEAST_HELD_OUT) if fraction else 0.0)
        sides: tuple[list[int], list[int]] = ([], [])
        for n in range(tasks.size):
            sides[is_held_out(tasks.task(n), fraction)].append(n)
        if not sides[0]:
            raise ConfigError(
                f"rollouts.tasks: all {tasks.size:,} tasks of {settings.name!r} are held out with "
                f"rollouts.held_out = {fraction}; add tasks, or lower it"
            )
        return cls(settings, tasks, fraction, *map(tuple, sides))

    @property
    def name(self) -> str:
        return self.settings.name

    def first_held_out(self, most: int) -> list[int]:
        """The first held-out tasks, at most `most`. Of a generator, distinct questions among its
        first numbers; if it has few questions, all of these."""
        if self.tasks.size is not None:
            return list(self.held_out[:most])
        if most not in self._found:
            looked_at = int(_LOOKED_AT * most / self.fraction) if self.fraction else 0
            tasks = ((n, self.tasks.task(n)) for n in range(looked_at))
            held_out = ((question(task), n) for n, task in tasks if self._is_held_out(task))
            self._found[most] = list(islice(_firsts(held_out), most))
        return self._found[most]

    def trained_from(self, cursor: int, seed: int) -> Iterator[tuple[int, Task, int]]:
        """Yields (number, task, cursor after it) of trained tasks from a cursor on, for ever.
        ConfigError where a generator makes only held-out tasks.

        The cursor counts the tasks of a file over its epochs; of a generator it is a number."""
        if self.tasks.size is None:
            yield from self._generated_from(cursor)
        for place in count(cursor):
            epoch, within = divmod(place, len(self.trained))
            order = Shuffle(len(self.trained), epoch_key(seed, self.name, epoch))
            number = self.trained[order[within]]
            yield number, self.tasks.task(number), place + 1

    def _generated_from(self, cursor: int) -> Iterator[tuple[int, Task, int]]:
        last = cursor
        for n in count(cursor):
            task = self.tasks.task(n)
            if not self._is_held_out(task):
                last = n
                yield n, task, n + 1
            elif n - last > _LONGEST_WAIT / (1 - self.fraction):
                raise ConfigError(
                    f"rollouts.tasks: {n - last:,} tasks in a row of {self.name!r} are held out "
                    f"with rollouts.held_out = {self.fraction}: it has too few questions; lower it"
                )

    def _is_held_out(self, task: Task) -> bool:
        return is_held_out(task, self.fraction)


def question(task: Task) -> str:
    """The question as text, equal for equal messages only."""
    return json.dumps([dict(m) for m in task.messages], sort_keys=True, default=str)


def is_held_out(task: Task, fraction: float) -> bool:
    """Whether a hash of the question puts the task on the held-out side. No setting changes the
    hash: equal questions are on one side, whatever their id, source, mode or generator's number."""
    return bool(fraction) and _chance("held out", question(task)) < fraction


def _firsts(found: Iterable[tuple[str, int]]) -> Iterator[int]:
    """The numbers of distinct questions, at their first appearance."""
    seen: set[str] = set()
    for asked, number in found:
        if asked not in seen:
            seen.add(asked)
            yield number


class Asker:
    """Draws tasks. encode: gives a prompt's ids; too_long: number of tasks without room so far."""

    def __init__(
        self,
        config: Config,
        sources: Sequence[SplitTasks],
        encode: Encode,
        state: State | None = None,
    ) -> None:
        self._config, self._encode = config, encode
        self._sources = {source.name: source for source in sources}
        self._names = list(self._sources)
        heaviest = max(source.settings.weight for source in sources)
        shares = [source.settings.weight / heaviest for source in sources]
        self._turns = Interleave([max(1, round(share * _PERIOD)) for share in shares])
        self.state: State = copy.deepcopy(state) if state else {"turn": 0, "drawn": 0}
        for name in ("cursors", "asked", "rates", TASK_RATES):
            self.state.setdefault(name, {})
        self.too_long = 0

    def draw(self, number: int) -> list[DrawnTask]:
        """The next tasks to ask. ConfigError where too many in succession have no room in a row."""
        return [self._next() for _ in range(number)]

    def learn(self, outcomes: Iterable[TaskOutcome]) -> None:
        """Record pass rates, which later draws depend on."""
        of_sources: dict[str, list[float]] = {}
        for source, task, answers, passed in outcomes:
            sums = of_sources.setdefault(source, [0.0, 0.0])
            sums[0], sums[1] = sums[0] + answers, sums[1] + passed
            if self._goes_by_rates and self._sources[source].tasks.size is not None:
                rates = self.state[TASK_RATES].setdefault(source, {})
                rates[task] = _faded(rates.get(task), answers, passed)
        for source, (answers_, passed) in of_sources.items():
            rates = self.state["rates"]
            rates[source] = _faded(rates.get(source), answers_, passed)

    @property
    def _goes_by_rates(self) -> bool:
        return self._config.rl.curriculum == "learnable" and self._config.run.mode == "rl"

    def _next(self) -> DrawnTask:
        for _ in range(_LONGEST_WAIT):
            source = self._source()
            number, task = self._task(source)
            if drawn := self._drawn(source, number, task):
                self.state["drawn"] += 1
                return drawn
            self.too_long += 1
        rollouts, length = self._config.rollouts, self._config.data.sequence_length
        raise ConfigError(
            f"{_LONGEST_WAIT:,} tasks in a row have no room: prompt and rollouts.max_new_tokens = "
            f"{rollouts.max_new_tokens} exceed data.sequence_length = {length}; raise it, or lower "
            "the other"
        )

    def _source(self) -> SplitTasks:
        """The source whose turn it is."""
        while True:
            turn = self.state["turn"]
            self.state["turn"] += 1
            source = self._sources[self._names[self._turns.locate(turn)[0]]]
            if not self._goes_by_rates or source.tasks.size is not None:
                return source
            if _chance("turn", f"{self._seed}\0{turn}") < _wanted(self._rate_of(source)):
                return source

    def _rate_of(self, source: SplitTasks) -> list[float] | None:
        rate: list[float] | None = self.state["rates"].get(source.name)
        return rate

    def _task(self, source: SplitTasks) -> tuple[int, Task]:
        """The source's next task that the curriculum accepts; after a rejected epoch, the next."""
        cursors = self.state["cursors"]
        rates = self.state[TASK_RATES].get(source.name, {})
        places = source.trained_from(cursors.get(source.name, 0), self._seed)
        for passed_by in count():
            number, task, cursors[source.name] = next(places)
            is_listed = self._goes_by_rates and source.tasks.size is not None
            key = f"{self._seed}\0{source.name}\0{cursors[source.name]}"
            if not is_listed or _chance("task", key) < _wanted(rates.get(task.id)):
                break
            if passed_by >= len(source.trained):
                break
        return number, task

    def _drawn(self, source: SplitTasks, number: int, task: Task) -> DrawnTask | None:
        """The draw of a task; None where prompt and answer have no room in a row."""
        asked = self.state["asked"]
        nth = asked[source.name] = asked.get(source.name, 0) + 1
        thinking = thinks(self._config, source.settings, nth)
        seed = mixed(epoch_key(self._seed, "rollouts", 0), self.state["drawn"]) >> 1
        ask = ask_of(self._config, task, thinking, seed, self._encode)
        return DrawnTask(source.name, number, task, ask) if has_room(self._config, ask) else None

    @property
    def _seed(self) -> int:
        return self._config.run.seed


def thinks(config: Config, source: TaskSourceConfig, nth: int) -> bool:
    """Whether a source's nth task, from 1, is asked with thinking; "mixed" gives an exact share."""
    mode, share = source.mode or config.rollouts.mode, config.rollouts.thinking_share
    if mode == "mixed":
        return int(nth * share + 1e-9) > int((nth - 1) * share + 1e-9)
    return mode == "thinking"


def modes_of(config: Config, source: TaskSourceConfig) -> tuple[bool, ...]:
    """The modes, as thinking or not, that a source's tasks are asked in."""
    mode = source.mode or config.rollouts.mode
    return (True, False) if mode == "mixed" else (mode == "thinking",)


def ask_of(
    config: Config, task: Task, thinking: bool, seed: int, encode: Encode, samples: int = 0
) -> Ask:
    """The Ask of a task. A /think or /no_think in its own text overrides the mode. samples: 0 takes
    rollouts.samples."""
    rollouts, messages = config.rollouts, list(task.messages)
    own = soft_switch(messages)
    if own is not None:
        thinking = own
    elif rollouts.switch == "flag":
        messages[-1] = _flagged(messages[-1], thinking)
    by_template = own is None and rollouts.switch == "template"
    return Ask(
        task.id,
        tuple(encode(messages, task.tools, thinking or not by_template)),
        seed,
        samples or rollouts.samples,
        rollouts.max_new_tokens,
        thinking,
        rollouts.thinking_budget if thinking else 0,
    )


def has_room(config: Config, ask: Ask) -> bool:
    """Whether a row holds the prompt with the longest answer; the last token is only a label."""
    return len(ask.prompt) + ask.max_new_tokens <= config.data.sequence_length + 1


def held_out(config: Config, source: SplitTasks, encode: Encode) -> list[DrawnTask]:
    """The draws of an evaluation: each held-out task once in each mode that its source trains."""
    modes, drawn = modes_of(config, source.settings), []
    for number in source.first_held_out(config.rollouts.eval_prompts):
        task = source.tasks.task(number)
        for thinking in modes:
            seed = mixed(epoch_key(config.run.seed, f"held out\0{source.name}", 0), number) >> 1
            ask = ask_of(config, task, thinking, seed, encode, samples=1)
            drawn.append(DrawnTask(source.name, number, task, ask))
    return [each for each in drawn if has_room(config, each.ask)]


def _flagged(message: Mapping[str, Any], thinking: bool) -> dict[str, Any]:
    flag = "/think" if thinking else "/no_think"
    return {**message, "content": f"{message.get('content') or ''} {flag}"}


def _wanted(rate: Sequence[float] | None) -> float:
    """The chance that a task with this pass rate is asked."""
    if not rate or rate[0] <= 0:
        return 1.0
    share = rate[1] / rate[0]
    if share in (0.0, 1.0):
        return _SETTLED
    return max(_LEAST, min(1.0, 2 * (1 - share)))


def _faded(before: Sequence[float] | None, answers: float, passed: float) -> list[float]:
    earlier = before or (0.0, 0.0)
    return [_FADING * earlier[0] + answers, _FADING * earlier[1] + passed]


def _chance(what: str, key: str) -> float:
    """A number in [0, 1), a hash of the key."""
    digest = hashlib.blake2b(f"{what}\0{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64
