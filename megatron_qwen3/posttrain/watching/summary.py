"""The metrics of a batch of rollouts: its row of metrics.jsonl, curves and log line.

    run.sampled(step, summary(record))          # before the batch's first update

Everything follows from the record, so that a resumed run writes the same row again. Names with a
slash belong to a part of the batch: `reward/SOURCE/MODE`, `pass_rate/SOURCE/MODE`, `part/NAME`,
`seconds/ACTIVITY`, `count/KIND`, `refit/NAME` of sending weights to servers, and `hacking/SIGN` of
posttrain/rewards/hacking.py. Values are None where unknown: no answer was scored, or nothing tells
which are right. Legend: N rollouts, T their tokens, G groups.
"""

from collections.abc import Iterator

import numpy as np

from megatron_qwen3.posttrain.rewards import hacking
from megatron_qwen3.posttrain.rollouts.record import FINISHES, Array, RolloutRecord
from megatron_qwen3.posttrain.rollouts.rollout import ABORT, ERROR

Row = dict[str, float | None]
ZERO = 1e-8  # a smaller float32 advantage is 0 up to rounding


def summary(record: RolloutRecord) -> Row:
    """The metrics of a batch, by name."""
    tokens_N, scored_N, passed_N = record.lengths_N, ~np.isnan(record.reward_N), record.passed_N
    row: Row = {
        "batch": record.batch,
        "answers": len(record),
        "groups": len(np.unique(record.group_N)),
        "reward": _mean(record.reward_N),
        "reward_deviation": _deviation(record.reward_N),
        "pass_rate": _mean(passed_N),
        "advantage": _mean(np.abs(record.advantage_N[record.is_trained_N])),
        "zero_groups": _zero_groups(record),
        "trained": _mean(record.is_trained_N),
        "scored": _mean(scored_N),
        "length": _mean(tokens_N),
        "length_most": float(tokens_N.max(initial=0)),
        "length_right": _mean(tokens_N[passed_N == 1]),
        "length_wrong": _mean(tokens_N[passed_N == 0]),
        "prompt_length": _mean(record.prompt_lengths_N),
        "truncated": _mean(record.is_truncated_N),
        "failed": _mean(np.isin(record.finish_N, [FINISHES.index(ABORT), FINISHES.index(ERROR)])),
        "thinking": _mean(record.thinking_N),
        "turns": _mean(record.turns_N),
        "forced": _mean(~record.sampled),
        "age": _mean(record.first_step - record.versions_N2[:, 0]),
        "age_most": float((record.first_step - record.versions_N2[:, 0]).max(initial=0)),
    }
    row |= hacking.numbers(record)
    row |= {f"refit/{name}": float(value) for name, value in record.refit.items()}
    return row | dict(_of_sources(record)) | dict(_of_parts(record)) | _of_time(record)


def _zero_groups(record: RolloutRecord) -> float | None:
    """The share of groups whose answers all have equal advantages; None without rewards, as in
    distillation."""
    if np.isnan(record.reward_N).all():
        return None
    is_zero_N = np.abs(record.advantage_N) <= ZERO
    _, group_N = np.unique(record.group_N, return_inverse=True)
    others_G = np.bincount(group_N, weights=~is_zero_N)
    return _mean(others_G == 0)


def _of_sources(record: RolloutRecord) -> Iterator[tuple[str, float | None]]:
    """Means over the answers of each source and mode."""
    places = dict.fromkeys((task.source, task.mode) for task in record.tasks)
    passed_N = record.passed_N
    of_tasks = np.array([list(places).index((t.source, t.mode)) for t in record.tasks], np.int64)
    for place, (source, mode) in enumerate(places):
        mine_N = of_tasks[record.task_N] == place
        if not mine_N.any():
            continue
        name = f"{source}/{mode}"
        yield f"reward/{name}", _mean(record.reward_N[mine_N])
        yield f"pass_rate/{name}", _mean(passed_N[mine_N])
        yield f"length/{name}", _mean(record.lengths_N[mine_N])
        yield f"truncated/{name}", _mean(record.is_truncated_N[mine_N])


def _of_parts(record: RolloutRecord) -> Iterator[tuple[str, float | None]]:
    """The mean of each part that scored an answer."""
    for place, part in enumerate(record.parts):
        score = _mean(record.parts_NP[:, place])
        if score is not None:
            yield f"part/{part}", score


def _of_time(record: RolloutRecord) -> Row:
    """Seconds by activity, their sum, counts, and the speed of sampling."""
    row: Row = {f"seconds/{name}": float(value) for name, value in record.seconds.items()}
    if (coefficient := record.state.get("entropy_coefficient")) is not None:
        row["entropy_coefficient"] = float(coefficient)
    row |= {f"count/{name}": float(value) for name, value in record.counts.items()}
    rollout = float(record.seconds.get("rollout", 0.0))
    row["seconds"] = float(sum(record.seconds.values()))
    row["rollout_tokens_per_second"] = len(record.log_probs) / rollout if rollout else 0.0
    return row


def _mean(values: Array) -> float | None:
    """The mean of the known values; None where there is none."""
    known = _known(values)
    return float(known.mean()) if len(known) else None


def _deviation(values: Array) -> float | None:
    known = _known(values)
    return float(known.std()) if len(known) else None


def _known(values: Array) -> Array:
    numbers: Array = values.astype(np.float64)
    return numbers[~np.isnan(numbers)]
