"""Reads tasks: the user's JSON lines with verifiers, and generators of tasks.

    tasks, problems = read(["math.jsonl", "gym:chain_sum,size=50,seed=1,min_terms=3", "own:code"])

A line is a query (posttrain/building/queries.py) with a verifier. `gym:` is followed by the name of
a generator of reasoning-gym and its settings; `size` tasks are made from `seed` (defaults 50 and
0). `own:` is followed by one of this project's kinds of tasks (posttrain/rewards/tasks) with the
same two settings. A task's set is its file's name, `gym:NAME` or `own:KIND`; results are reported
for each set. Tasks that only a judge can score are left out here.

    source = open_source("own:code,seed=3")       # for training: endless (size None)
    source.task(10_000_000)
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

from megatron_qwen3.config import ConfigError
from megatron_qwen3.posttrain.building import queries
from megatron_qwen3.posttrain.building.queries import Query, QueryProblem
from megatron_qwen3.posttrain.evaluation.task import Task
from megatron_qwen3.posttrain.rewards import weights
from megatron_qwen3.posttrain.rewards.tasks import kinds
from megatron_qwen3.posttrain.verifiers import check_spec, gym
from megatron_qwen3.posttrain.verifiers.final import CannotJudge

GYM, OWN = "gym:", "own:"
ALL = "all"  # the name of results over every set
_Needs = Literal["verifier", "judgement", "nothing"]
_SIZE = 50  # default number of tasks of an endless generator


class TaskSource(Protocol):
    """Tasks by number. size: their number; None for an endless source."""

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int | None: ...

    def task(self, number: int) -> Task:
        """Task `number`, from 0, always the same. IndexError beyond the last."""
        ...


def read(
    names: Sequence[str], most: int | None = None, stop_at_problem: bool = False
) -> tuple[list[Task], list[QueryProblem]]:
    """All tasks of files and generators, at most `most` per set, and the lines that are no task.

    ConfigError where a name is neither, two sets share a name, or there is no task at all.
    """
    if most is not None and most < 1:
        raise ConfigError(f"--most {most}; valid: at least 1")
    if again := [name for n, name in enumerate(names) if name in names[:n]]:
        raise ConfigError(f"--tasks {again[0]} is named twice")
    tasks: list[Task] = []
    problems: list[QueryProblem] = []
    sets: dict[str, str] = {}
    for name in names:
        try:
            found, faults = _found(name)
        except ConfigError as error:
            raise ConfigError(f"--tasks {error}") from None
        if stop_at_problem and faults:
            raise ConfigError(f"{faults[0].file}:{faults[0].line}: {faults[0].detail}")
        problems += faults
        for task in found[:most]:
            if task.set == ALL:
                raise ConfigError(f"--tasks {name}: {ALL} is the name of results over all sets")
            if sets.setdefault(task.set, name) != name:
                raise ConfigError(f"--tasks {name} and {sets[task.set]} are both called {task.set}")
            tasks.append(task)
    if not tasks:
        raise ConfigError(f"--tasks {' '.join(names)}: not one task that can be verified")
    return tasks, problems


def open_source(path: str, name: str = "", is_judged: bool = True) -> TaskSource:
    """The tasks of a file, `gym:NAME,…` or `own:KIND,…`; generators are endless without `size`.

    name: the set of its tasks; "": the file's or generator's name. is_judged: whether a line needs
    a verifier or a reference for a judge. ConfigError where there is no such source, one of its
    settings is wrong, or a line of a file is no task.
    """
    if path.startswith(OWN):
        kind, settings, size, seed = _asked_of(path, OWN, None)
        return _Generated(name or OWN + kind, size, _own(path, kind, seed, settings))
    if path.startswith(GYM):
        dataset, settings, size, seed = _asked_of(path, GYM, None)
        made = partial(kinds.gym_task, dataset, settings, seed)
        if size is not None:
            return _Listed(name or GYM + dataset, tuple(_generated(path)))
        _checked(path, lambda: made(0))
        return _Generated(name or GYM + dataset, None, made)
    tasks, problems = _of_file(path, "judgement" if is_judged else "nothing")
    if problems:
        first = problems[0]
        raise ConfigError(f"{first.file}:{first.line}: {first.kind}: {first.detail}")
    if not tasks:
        raise ConfigError(f"{path}: not one task in it")
    return _Listed(name or Path(path).name, tuple(tasks))


@dataclass(frozen=True)
class _Listed:
    name: str
    tasks: tuple[Task, ...]

    @property
    def size(self) -> int:
        return len(self.tasks)

    def task(self, number: int) -> Task:
        if not 0 <= number < len(self.tasks):
            raise IndexError(f"{self.name}: task {number} of {len(self.tasks)}")
        return replace(self.tasks[number], set=self.name)


@dataclass(frozen=True)
class _Generated:
    name: str
    size: int | None
    make: Callable[[int], Task]

    def task(self, number: int) -> Task:
        if number < 0 or (self.size is not None and number >= self.size):
            raise IndexError(f"{self.name}: task {number} of {self.size}")
        return replace(self.make(number), set=self.name)


def _found(name: str) -> tuple[list[Task], list[QueryProblem]]:
    if name.startswith(GYM):
        return _generated(name), []
    if name.startswith(OWN):
        kind, settings, size, seed = _asked_of(name, OWN, _SIZE)
        made = map(_own(name, kind, seed, settings), range(size or _SIZE))
        return [task for task in made if task.verifier], []
    return _of_file(name)


def _own(name: str, kind: str, seed: int, settings: Mapping[str, Any]) -> Callable[[int], Task]:
    """A function that makes task n of one of the project's kinds."""
    if settings:
        raise ConfigError(f"{name}: {next(iter(settings))!r:.60}; valid: size, seed")
    kinds.check_kind(kind)
    _checked(name, lambda: kinds.task(kind, seed, 0))
    return partial(kinds.task, kind, seed)


def _checked(name: str, make: Callable[[], Task]) -> None:
    """ConfigError where a generator makes no task, or its verifier is invalid."""
    try:
        task = make()
        if task.verifier:
            check_spec(task.verifier)
    except CannotJudge as error:
        raise ConfigError(f"{name}: {error}") from None


def _of_file(name: str, needs: _Needs = "verifier") -> tuple[list[Task], list[QueryProblem]]:
    """The lines that have the fields of `needs`, as tasks, and the problems of the others."""
    path = Path(name)
    if not path.is_file():
        raise ConfigError(
            f"{name}: no such file; valid: a file of JSON lines, {GYM}NAME or {OWN}KIND"
        )
    found, problems = queries.read([path], False)
    tasks = []
    for query in found:
        file, _, line = query.place.rpartition(":")
        try:
            _check(query, needs)
        except ConfigError as error:
            problems.append(QueryProblem(file, int(line), "verifier", str(error)))
            continue
        tasks.append(_task(query, path.name))
    return tasks, problems


def _check(query: Query, needs: _Needs) -> None:
    if query.verifier is not None:
        check_spec(query.verifier)
    elif needs == "verifier":
        raise ConfigError("no verifier")
    elif needs == "judgement" and not (query.gold or query.checklist):
        raise ConfigError("no verifier, no tests, and neither gold nor checklist for a judge")
    weights.check(query.rewards)


def _task(query: Query, name: str) -> Task:
    return Task(
        query.id,
        query.messages,
        query.verifier or {},
        name,
        query.tools,
        query.gold,
        query.checklist,
        query.domain,
        query.source,
        query.language,
        query.rewards,
    )


def _generated(name: str) -> list[Task]:
    """The tasks of `gym:NAME,size=…,seed=…,SETTING=…`."""
    dataset, settings, size, seed = _asked_of(name, GYM, _SIZE)
    size = size or _SIZE
    spec = {"kind": "reasoning_gym", "dataset": dataset, "seed": seed, "size": size}
    spec |= {"settings": settings} if settings else {}
    try:
        check_spec(spec | {"index": 0})
        texts = [gym.question(dataset, seed, size, index, settings) for index in range(size)]
    except CannotJudge as error:
        raise ConfigError(f"{name}: {error}") from None
    return [
        Task(
            f"{dataset}-{seed}-{index}",
            ({"role": "user", "content": text + kinds.ASKED},),
            spec | {"index": index},
            GYM + dataset,
        )
        for index, text in enumerate(texts)
    ]


def _asked_of(
    name: str, prefix: str, size: int | None
) -> tuple[str, dict[str, Any], int | None, int]:
    """(name, settings, size, seed) of `gym:NAME,…` and the like; size: the default."""
    generator, *given = name.removeprefix(prefix).split(",")
    settings = dict(_setting(name, one) for one in _joined(given))
    size, seed = settings.pop("size", size), settings.pop("seed", 0)
    if type(seed) is not int or (size is not None and (type(size) is not int or size < 1)):
        raise ConfigError(f"{name}: size and seed are whole numbers, size at least 1")
    return generator, settings, size, seed


def _joined(given: Iterable[str]) -> list[str]:
    """The settings, with values that are comma-separated lists joined again."""
    parts: list[str] = []
    for one in given:
        if parts and not re.match(r"\w+=", one):
            parts[-1] += f",{one}"
        else:
            parts.append(one)
    return parts


def _setting(name: str, text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"{name}: {text!r:.60} is no setting; write NAME=VALUE")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value
