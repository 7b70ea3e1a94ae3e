"""Evaluates held-out tasks: pass rate and reward of each source and each mode.

    results = evaluate(rollouts, goes_on)     # {"math": …, "mode thinking": …, "all": …}

Each held-out task, up to rollouts.eval_prompts per source, is answered once in each mode that its
source is trained in, with the sampling of training and a seed that is the same at every step. A
truncated answer counts as wrong, whatever rl.truncated says of training.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import fmean

from megatron_qwen3.parallel.first import of_first
from megatron_qwen3.posttrain.rewards.rewards import Reward
from megatron_qwen3.posttrain.rollouts import asking
from megatron_qwen3.posttrain.rollouts.asking import DrawnTask
from megatron_qwen3.posttrain.rollouts.batches import Group, rewarded
from megatron_qwen3.posttrain.rollouts.maker import Rollouts
from megatron_qwen3.posttrain.rollouts.record import passed
from megatron_qwen3.posttrain.rollouts.rollout import Ask, Rollout
from megatron_qwen3.training.metrics import TaskResult
from megatron_qwen3.training.metrics_file import ALL_SOURCES
from megatron_qwen3.training.stop import StopAsked

Scores = Sequence[float | None] | None  # from a reward model
_AT_ONCE = 4  # asks sampled at once, in multiples of rollouts.rows


def evaluate(
    rollouts: Rollouts, version: Callable[[], int], goes_on: Callable[[], bool]
) -> dict[str, TaskResult] | None:
    """Results by name, equal on all ranks; {} where nothing is held out.

    version: of the current weights. All ranks call `goes_on` now and then; None once it returns
    False.
    """
    drawn: list[DrawnTask] = []  # on the first rank
    groups: list[Group] = []

    def ask() -> list[Ask]:
        for source in rollouts.sources:
            drawn.extend(asking.held_out(rollouts.config, source, rollouts.encode))
        return [each.ask for each in drawn]

    def take(start: int, made: Sequence[Sequence[Rollout]], scores: Scores) -> None:
        assert rollouts.rewards is not None
        own = drawn[start : start + len(made)]
        groups.extend(rewarded(own, made, rollouts.decode, rollouts.rewards, scores))

    with rollouts.waiting():  # generators may take long to make the tasks
        asks = of_first(ask)
    size = _AT_ONCE * rollouts.config.rollouts.rows
    if asks:
        rollouts.engine.refit(version())
    for start in range(0, len(asks), size):
        if not goes_on():
            return None
        try:
            made = rollouts.engine.sample(asks[start : start + size])
        except StopAsked:
            return None
        scores = rollouts.scores(made)
        with rollouts.waiting():
            of_first(partial(take, start, made, scores))
    return of_first(lambda: dict(_results(groups)))


def _results(groups: Sequence[Group]) -> Iterator[tuple[str, TaskResult]]:
    of_names: dict[str, list[Group]] = defaultdict(list)
    for group in groups:
        of_names[group.drawn.source].append(group)
    for mode in (asking.THINKING, asking.NOT_THINKING):
        of_names[f"mode {mode}"] = [g for g in groups if g.drawn.name.mode == mode]
    for name, own in of_names.items():
        if own:
            yield name, _result(own)
    if groups:
        yield ALL_SOURCES, _result(groups)


def _result(groups: Sequence[Group]) -> TaskResult:
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    rewards = [reward for group in groups for reward in group.rewards]
    totals = [reward.total for reward in rewards if reward.total is not None]
    known = map(_passed, rollouts, rewards)
    passes = [is_right for is_right in known if is_right is not None]
    return TaskResult(
        fmean(totals) if totals else None,
        fmean(passes) if passes else None,
        fmean(len(rollout.tokens) for rollout in rollouts),
        fmean(rollout.is_truncated for rollout in rollouts),
        len(rollouts),
    )


def _passed(rollout: Rollout, reward: Reward) -> bool | None:
    """As `passed`, but a truncated answer, which training may leave out, is wrong here."""
    is_right = passed(reward.total, reward.parts)
    return False if is_right is None and rollout.is_truncated else is_right
