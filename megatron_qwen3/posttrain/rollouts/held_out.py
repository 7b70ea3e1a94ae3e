"""Tasks that are never trained on, answered: pass rate and reward of each source and each mode.

    results = evaluate(rollouts, goes_on)     # {"math": …, "mode thinking": …, "all": …}

Each held-out task, rl.eval_prompts of a source, is answered once in each mode that its source is
trained in, sampled as in training, with seeds of its own that no step changes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from megatron_qwen3.parallel.first import of_first
from megatron_qwen3.posttrain.rollouts import asking
from megatron_qwen3.posttrain.rollouts.asking import Drawn
from megatron_qwen3.posttrain.rollouts.batches import Group, rewarded
from megatron_qwen3.posttrain.rollouts.maker import Rollouts
from megatron_qwen3.posttrain.rollouts.record import passed
from megatron_qwen3.posttrain.rollouts.rollout import Ask
from megatron_qwen3.training.metrics import EvalResult
from megatron_qwen3.training.metrics_file import ALL_SOURCES

_AT_ONCE = 4  # times rollouts.rows


def evaluate(
    rollouts: Rollouts, version: Callable[[], int], goes_on: Callable[[], bool]
) -> dict[str, EvalResult] | None:
    """Results by name, equal on all ranks; {} where nothing is held out.

    version: of the weights of now. `goes_on` is asked on all ranks now and then; None where it
    says no.
    """
    drawn: list[Drawn] = []  # on the first rank
    groups: list[Group] = []

    def ask() -> list[Ask]:
        for source in rollouts.sources:
            drawn.extend(asking.held_out(rollouts.config, source, rollouts.encode))
        return [each.ask for each in drawn]

    asks, size = of_first(ask), _AT_ONCE * rollouts.config.rollouts.rows
    if asks:
        rollouts.engine.refit(version())
    for start in range(0, len(asks), size):
        if not goes_on():
            return None
        made = rollouts.engine.sample(asks[start : start + size])
        scores = rollouts.scores(made)

        def take(start: int = start) -> None:
            assert rollouts.rewards is not None
            own = drawn[start : start + size]
            groups.extend(rewarded(own, made, rollouts.decode, rollouts.rewards, scores))

        of_first(take)
    return of_first(lambda: dict(_results(groups)))


def _results(groups: Sequence[Group]) -> Iterator[tuple[str, EvalResult]]:
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


def _result(groups: Sequence[Group]) -> EvalResult:
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    rewards = [reward for group in groups for reward in group.rewards]
    log_probs = [p for r in rollouts for p, own in zip(r.log_probs, r.sampled, strict=True) if own]
    totals = [reward.total for reward in rewards if reward.total is not None]
    passes = [p for reward in rewards if (p := passed(reward.total, reward.parts)) is not None]
    return EvalResult(
        -float(np.sum(log_probs)) / max(len(log_probs), 1),
        None,
        sum(len(rollout.tokens) for rollout in rollouts),
        pass_rate=float(np.mean(passes)) if passes else None,
        reward=float(np.mean(totals)) if totals else None,
        answers=len(rollouts),
    )
