"""What a model is asked: the user's JSON lines with verifiers, and generators of reasoning-gym.

    tasks, problems = read(["math.jsonl", "gym:chain_sum,size=50,seed=1,min_terms=3"])

A line is a query (posttrain/building/queries.py) with a verifier. After `gym:` stand a generator's
name and its settings; `size` tasks are made from `seed` (50 and 0). The set that a task belongs to
is its file's name or `gym:NAME`; results are told for each.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_qwen3.config import ConfigError
from megatron_qwen3.posttrain.building import queries
from megatron_qwen3.posttrain.building.queries import Problem
from megatron_qwen3.posttrain.verifiers import check_spec, gym
from megatron_qwen3.posttrain.verifiers.final import CannotJudge

GYM = "gym:"
ALL = "all"  # what results of every set together are called
_ASKED = "\n\nGive the final answer, and nothing else, between <answer> and </answer>."


@dataclass(frozen=True)
class Task:
    """One task. set: the file or generator that it comes from."""

    id: str
    messages: tuple[Mapping[str, Any], ...]
    verifier: Mapping[str, Any]
    set: str
    tools: tuple[Mapping[str, Any], ...] = ()


def read(
    names: Sequence[str], most: int | None = None, stop_at_problem: bool = False
) -> tuple[list[Task], list[Problem]]:
    """All tasks of files and generators, and lines that are none; `most` of each set.

    ConfigError where a name is neither, two sets have one name, or there is no task at all.
    """
    if most is not None and most < 1:
        raise ConfigError(f"--most {most}; valid: at least 1")
    if again := [name for n, name in enumerate(names) if name in names[:n]]:
        raise ConfigError(f"--tasks {again[0]} is named twice")
    tasks: list[Task] = []
    problems: list[Problem] = []
    sets: dict[str, str] = {}
    for name in names:
        found, faults = (_generated(name), []) if name.startswith(GYM) else _of_file(name)
        if stop_at_problem and faults:
            raise ConfigError(f"{faults[0].file}:{faults[0].line}: {faults[0].detail}")
        problems += faults
        for task in found[:most]:
            if task.set == ALL:
                raise ConfigError(f"--tasks {name}: {ALL} is what all sets together are called")
            if sets.setdefault(task.set, name) != name:
                raise ConfigError(f"--tasks {name} and {sets[task.set]} are both called {task.set}")
            tasks.append(task)
    if not tasks:
        raise ConfigError(f"--tasks {' '.join(names)}: not one task that can be verified")
    return tasks, problems


def _of_file(name: str) -> tuple[list[Task], list[Problem]]:
    """The lines with a verifier that is one."""
    path = Path(name)
    if not path.is_file():
        raise ConfigError(
            f"--tasks {name}: no such file; valid: a file of JSON lines, or {GYM}NAME"
        )
    found, problems = queries.read([path], False)
    tasks = []
    for query in found:
        file, _, line = query.place.rpartition(":")
        try:
            if query.verifier is None:
                raise ConfigError("no verifier")
            check_spec(query.verifier)
        except ConfigError as error:
            problems.append(Problem(file, int(line), "verifier", str(error)))
            continue
        tasks.append(Task(query.id, query.messages, query.verifier, path.name, query.tools))
    return tasks, problems


def _generated(name: str) -> list[Task]:
    """The tasks that `gym:NAME,size=…,seed=…,SETTING=…` asks for."""
    dataset, *given = name.removeprefix(GYM).split(",")
    settings = dict(_setting(name, one) for one in _joined(given))
    size, seed = settings.pop("size", 50), settings.pop("seed", 0)
    if type(size) is not int or type(seed) is not int or size < 1:
        raise ConfigError(f"--tasks {name}: size and seed are whole numbers, size at least 1")
    spec = {"kind": "reasoning_gym", "dataset": dataset, "seed": seed, "size": size}
    spec |= {"settings": settings} if settings else {}
    try:
        check_spec(spec | {"index": 0})
        texts = [gym.question(dataset, seed, size, index, settings) for index in range(size)]
    except CannotJudge as error:
        raise ConfigError(f"--tasks {name}: {error}") from None
    return [
        Task(
            f"{dataset}-{seed}-{index}",
            ({"role": "user", "content": text + _ASKED},),
            spec | {"index": index},
            GYM + dataset,
        )
        for index, text in enumerate(texts)
    ]


def _joined(given: Iterable[str]) -> list[str]:
    """Settings again, of which some are lists with commas in them."""
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
        raise ConfigError(f"--tasks {name}: {text!r:.60} is no setting; write NAME=VALUE")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value
