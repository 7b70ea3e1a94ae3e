"""The kinds of tasks by name: `task("countdown", seed=0, number=17)`.

A kind is one generator or several, of ours or of reasoning-gym, with settings that small models can
learn from; task n comes from generator n modulo their number. A task is a function of kind, seed
and number, and numbers have no end. Only a judge can score `roles` and `writing`.
"""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from data_prep.languages import code_of
from megatron_qwen3.config import ConfigError
from megatron_qwen3.posttrain.evaluation.task import Task
from megatron_qwen3.posttrain.rewards.tasks import (
    calls,
    choices,
    code,
    countdown,
    instructions,
    retrieval,
    schemas,
    stories,
    translation,
    writing,
)
from megatron_qwen3.posttrain.rewards.tasks.made import ENGLISH, Made, TaskDraw, tagged
from megatron_qwen3.posttrain.verifiers import gym
from megatron_qwen3.posttrain.verifiers.final import CannotJudge
from megatron_qwen3.toml import did_you_mean

OWN = "own:"
ASKED = tagged(ENGLISH)  # instruction on the form of an answer to reasoning-gym's questions
_BLOCK = 256  # tasks per seed of a reasoning-gym generator, which draws task k from (seed + k)
_ATTEMPTS = 20  # to make a task
Generator = Callable[[TaskDraw], Made]


class Gym:
    """A generator of reasoning-gym with settings."""

    def __init__(self, dataset: str, **settings: Any) -> None:
        self.dataset, self.settings = dataset, settings


KINDS: dict[str, tuple[Generator | Gym, ...]] = {
    "arithmetic": (
        Gym("chain_sum", min_terms=2, max_terms=4, max_digits=2),
        Gym("basic_arithmetic", max_terms=3, max_digits=2),
        Gym("products", max_digits=2),
        Gym("gcd", max_value=100),
        Gym("fraction_simplification", max_value=50, max_factor=10),
    ),
    "algebra": (
        Gym("simple_equations", max_terms=3, max_value=20),
        Gym("number_sequence", max_complexity=2),
    ),
    "counting": (
        Gym("letter_counting", max_words=8),
        Gym("count_primes", max_n=100),
        Gym("leg_counting", max_animals=4, max_instances=5),
    ),
    "sorting": (
        Gym("number_sorting", max_numbers=5, max_decimals=0),
        Gym("word_sorting", max_words=5),
        Gym("number_filtering", max_numbers=5, max_decimals=0),
    ),
    "spelling": (
        Gym("spell_backward", max_word_len=6),
        Gym("word_sequence_reversal", max_words=5),
    ),
    "ciphers": (
        Gym("caesar_cipher", max_words=4, max_rotation=5),
        Gym("base_conversion", max_value=255),
    ),
    "logic": (
        Gym("syllogism"),
        Gym("knights_knaves"),
        Gym("family_relationships", max_family_size=6),
    ),
    "calendar": (
        Gym("calendar_arithmetic", offset_upper_bound=30),
        Gym("time_intervals"),
    ),
    "geometry": (Gym("simple_geometry"), Gym("rotate_matrix", max_n=4, max_rotations=3)),
    "countdown": (countdown.countdown,),
    "games": (
        Gym("mini_sudoku", min_empty=4, max_empty=8),
        Gym("maze", max_dist=6, max_grid_size=6),
        Gym("tower_of_hanoi", max_disks=3),
    ),
    "word_problems": (Gym("gsm_symbolic"), stories.story),
    "multiple_choice": (choices.choice,),
    "code": (code.code,),
    "functions": (calls.calls,),
    "json": (schemas.schema,),
    "instructions": (instructions.instructions,),
    "translation": (translation.translation,),
    "retrieval": (retrieval.retrieval,),
    "roles": (writing.role,),
    "writing": (writing.writing,),
}


def check_kind(kind: str) -> None:
    """ConfigError, with a suggestion, for an unknown kind."""
    if kind not in KINDS:
        guess = did_you_mean(kind, KINDS) or f"; valid: {', '.join(KINDS)}"
        raise ConfigError(f"{OWN}{kind}: no kind of task{guess}")


def task(kind: str, seed: int, number: int) -> Task:
    """Task `number`, from 0. CannotJudge where reasoning-gym is needed and not installed."""
    generators = KINDS[kind]
    made_by = generators[number % len(generators)]
    if isinstance(made_by, Gym):
        found = gym_task(made_by.dataset, made_by.settings, seed, number // len(generators))
        name = f"{kind}-{seed}-{number}"
        return Task(
            name,
            found.messages,
            found.verifier,
            OWN + kind,
            gold=found.gold,
            domain=kind,
            language=found.language,
        )
    return _of_made(kind, seed, number, made_by(TaskDraw(kind, seed, number)))


def _of_made(kind: str, seed: int, number: int, made: Made) -> Task:
    system = [{"role": "system", "content": made.system}] if made.system else []
    return Task(
        f"{kind}-{seed}-{number}",
        (*system, {"role": "user", "content": made.text}),
        made.verifier,
        OWN + kind,
        made.tools,
        made.gold,
        made.checklist,
        kind,
        language=code_of(made.language),
    )


def gym_task(dataset: str, settings: Mapping[str, Any], seed: int, number: int) -> Task:
    """Task `number` of a generator of reasoning-gym, as an endless source.

    It draws task k of a seed from (seed + k), so that neighbouring seeds share tasks: here each
    block of tasks has a seed of its own, far from the others. CannotJudge where there is no such
    generator, or it has no such setting.
    """
    gym.check_name(dataset)
    drawn, entry = _drawn(dataset, settings, seed, number)
    spec = {
        "kind": "reasoning_gym",
        "dataset": dataset,
        "seed": drawn,
        "size": _BLOCK,
        "index": number % _BLOCK,
    }
    spec |= {"settings": dict(settings)} if settings else {}
    answer = entry.get("answer")
    return Task(
        f"{dataset}-{seed}-{number}",
        ({"role": "user", "content": f"{entry['question']}{ASKED}"},),
        spec,
        f"gym:{dataset}",
        gold=f"<answer>{answer}</answer>" if isinstance(answer, str) else "",
        domain=dataset,
        language=code_of(ENGLISH),
    )


def _drawn(
    dataset: str, settings: Mapping[str, Any], seed: int, number: int
) -> tuple[int, dict[str, Any]]:
    """(the generator's seed, its entry). Some generators occasionally find no task, or one whose
    answer is an empty text, which no answer can match: those are drawn again with another seed."""
    block, index = divmod(number, _BLOCK)
    for attempt in range(_ATTEMPTS):
        drawn = _seed_of(seed, block, attempt)
        try:
            entry = gym.task(dataset, drawn, _BLOCK, index, dict(settings))[1]
        except CannotJudge:
            raise
        except Exception as error:  # a generator may raise anything
            found = f"{type(error).__name__}: {error}"
            continue
        if entry.get("answer") != "":
            return drawn, entry
        found = "its answer is an empty text"
    raise CannotJudge(f"{dataset} makes no task {number} in {_ATTEMPTS} attempts: {found}")


def _seed_of(*numbers: int) -> int:
    """A seed of 31 bits from several numbers."""
    digest = hashlib.sha256(repr(numbers).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
