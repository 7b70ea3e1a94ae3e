"""Verifies tasks of reasoning-gym: generated from name, seed and settings, judged by its scorers.

    spec = {"kind": "reasoning_gym", "dataset": "chain_sum", "seed": 1, "size": 50, "index": 3}
    question("chain_sum", 1, 50, 3, {})       # the text of that task

The answer is the text between the last <answer> tags, else in the last box, else the whole text.
Only a score of 1.0 counts: its scorers give partial scores to texts that merely contain the answer.
If a scorer raises on an answer but accepts the task's own, the answer is unreadable and so wrong;
if it does not accept its own either, the score is unknown.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

from megatron_qwen3.posttrain.verifiers import final
from megatron_qwen3.posttrain.verifiers.final import CannotJudge
from megatron_qwen3.toml import did_you_mean

_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.S)


def reasoning_gym(
    answer: str,
    *,
    dataset: str,
    index: int,
    seed: int,
    size: int,
    settings: dict[str, Any] | None = None,
) -> str:
    """The answer solves task `index` of `size` that the generator makes from seed and settings."""
    if not 0 <= index < size:
        raise CannotJudge(f"index = {index}; valid: 0 to {size - 1}")
    check_name(dataset)
    key = dataset, seed, size, json.dumps(settings or {}, sort_keys=True)
    made = _generator(*key)
    if not answer.strip():
        return "the answer is empty"
    entry = _entry(*key, index)
    given = final_part(answer)
    try:
        score = float(made.score_answer(given, entry))
    except Exception as error:
        gold = entry.get("answer")
        if not isinstance(gold, str) or _score_of(made, gold, entry) != 1:
            raise
        return f"the scorer cannot read it: {type(error).__name__}: {error}"[:200]
    return "" if score == 1 else f"scored {score:g}, not 1"


def _score_of(made: Any, answer: str, entry: dict[str, Any]) -> float:
    try:
        return float(made.score_answer(answer, entry))
    except Exception:
        return 0.0


def final_part(answer: str) -> str:
    """The part of an answer that is scored."""
    tagged = _TAGGED.findall(answer) or final.boxes(answer)
    return str(tagged[-1]).strip() if tagged else answer.strip()


def question(dataset: str, seed: int, size: int, index: int, settings: dict[str, Any]) -> str:
    """The text of a task."""
    return str(task(dataset, seed, size, index, settings)[1]["question"])


def task(
    dataset: str, seed: int, size: int, index: int, settings: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """(generator, the entry of one task). CannotJudge where there is no such generator."""
    key = dataset, seed, size, json.dumps(settings, sort_keys=True)
    return _generator(*key), _entry(*key, index)


def check_name(dataset: str) -> None:
    """CannotJudge where reasoning-gym is missing or has no generator of that name."""
    names = load()
    if dataset not in names:
        near = ", ".join(get_close_matches(dataset, names, 3, 0.0))
        guess = did_you_mean(dataset, names) or f"; it has {len(names)}, the nearest are {near}"
        raise CannotJudge(f"reasoning-gym has no generator {dataset!r:.60}{guess}")


@lru_cache(1)
def load() -> list[str]:
    """The names of all generators; the first call imports them, which takes seconds."""
    try:
        from reasoning_gym.factory import DATASETS
    except ImportError:
        raise CannotJudge(
            "tasks of reasoning-gym need it, and it is not installed: "
            "pip install 'megatron_qwen3[eval]'"
        ) from None
    return sorted(set(DATASETS) - {"composite"})  # a mixture of other generators


@lru_cache(64)
def _generator(dataset: str, seed: int, size: int, settings: str) -> Any:
    from reasoning_gym.factory import create_dataset

    _check_settings(dataset, json.loads(settings))
    try:
        return create_dataset(dataset, seed=seed, size=size, **json.loads(settings))
    except (TypeError, AssertionError, ValueError) as error:
        raise CannotJudge(f"{dataset} with {settings}: {error}"[:300]) from None


def _check_settings(dataset: str, given: Mapping[str, Any]) -> None:
    """CannotJudge, with the valid names, where the generator lacks a setting."""
    from reasoning_gym.factory import DATASETS

    names = [row.name for row in fields(DATASETS[dataset][1])]
    names = [name for name in names if name not in ("seed", "size")]
    for name in given:
        if name not in names:
            guess = did_you_mean(name, names)
            raise CannotJudge(
                f"{dataset} has no setting {name!r:.60}{guess}; valid: size, seed, "
                f"{', '.join(names)}"
            )


@lru_cache(4096)
def _entry(dataset: str, seed: int, size: int, settings: str, index: int) -> dict[str, Any]:
    entry: dict[str, Any] = _generator(dataset, seed, size, settings)[index]
    return entry
