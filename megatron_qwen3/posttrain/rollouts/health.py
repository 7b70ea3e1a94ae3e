"""Warns of faults in a batch of rollouts, and stops a run whose batches leave nothing to train.

    for line in lines(config, record): run.log.note(line)
    check(config, record)            # BadBatch where batch after batch leaves nothing to train

Truncated answers, answers without a reward and groups of equal rewards teach nothing, and a run
whose rewards are 0 for such a reason looks as if it learned slowly. No torch here.
"""

from collections.abc import Iterator

import numpy as np

from megatron_qwen3.posttrain.rollouts.record import RolloutRecord
from megatron_qwen3.posttrain.watching.summary import ZERO
from megatron_qwen3.settings import Config
from megatron_qwen3.training.bad_batch import BadBatch

_WAYS_OUT = "easier or harder tasks, more rollouts.samples or rl.refills"
TRUNCATED, UNSCORED, FAILED = 0.05, 0.01, 0.01  # shares of answers above which a line warns


def lines(config: Config, record: RolloutRecord) -> Iterator[str]:
    """Warnings about the batch for the log."""
    counts, answers, batch = record.counts, len(record), f"batch {record.batch}"
    limit = config.rollouts.max_new_tokens
    needs_rewards = config.run.mode == "rl"
    if counts["truncated"] > TRUNCATED * answers:
        then = "they are trained as others are"
        if needs_rewards:
            then = f'rl.truncated = "{config.rl.truncated}"'
        yield (
            f"{batch}: {counts['truncated']:,} of {answers:,} answers reached "
            f"rollouts.max_new_tokens = {limit}; {then}"
        )
    unscored = counts["unscored"] - counts["unscored_truncated"]
    if needs_rewards and unscored > UNSCORED * answers:
        yield f"{batch}: {unscored:,} of {answers:,} answers have no reward: samples.jsonl says why"
    if counts["errors"] > FAILED * answers:
        yield f"{batch}: {counts['errors']:,} of {answers:,} answers failed"
    if unknown := counts.get("unknown_ids"):
        yield f"{batch}: {unknown:,} of {answers:,} answers have ids that the teacher does not know"
    if counts["too_long"]:
        yield f"{batch}: {counts['too_long']:,} tasks were passed over: they have no room in a row"
    if record.state["empty"]:
        yield f"{batch}: nothing to train: {_why(record)}"
    if needs_rewards and record.state.get("idle") == 1:  # the first of several in a row
        idle, updates = record.state["update_tokens"].count(0), config.batch_updates
        yield (
            f"{batch}: {idle:,} of its {updates:,} updates train nothing, since so few of "
            f"{counts['asked']:,} tasks have answers of different rewards: {_WAYS_OUT}, or fewer "
            "rl.updates help"
        )
    if needs_rewards and _is_all_alike(config, record):
        yield f"{batch}: no answer has an advantage, so rewards teach nothing: {_why(record)}"


def check(config: Config, record: RolloutRecord) -> None:
    """BadBatch where this is the last of more than rl.most_empty useless batches. Truncated
    answers are useless unless they are scored like others."""
    most, state = config.rl.most_empty, record.state
    is_lost = config.run.mode == "rl" and config.rl.truncated != "scored"
    if state["truncated_alone"] > most and is_lost:
        raise BadBatch(
            f"batch {record.batch}: nearly all answers of {state['truncated_alone']} batches in a "
            f"row reached rollouts.max_new_tokens = {config.rollouts.max_new_tokens}; raise it "
            "(with data.sequence_length), or set rollouts.thinking_budget"
        )
    if state["empty"] > most:
        raise BadBatch(
            f"batch {record.batch}: {state['empty']} batches in a row left nothing to train, the "
            f"last since {_why(record)}; rl.most_empty = {most}"
        )


def _why(record: RolloutRecord) -> str:
    counts = record.counts
    asked, unscored = counts["asked"], counts["unscored_groups"]
    if not asked:
        return "no task was asked"
    if unscored == asked:
        return "no answer has a reward"
    passed = record.passed_N[record.passed_N == record.passed_N]
    rate = f", {passed.mean():.0%} of them right" if len(passed) else ""
    return f"the answers of each of {asked:,} tasks were rewarded alike{rate}: {_WAYS_OUT} help"


def _is_all_alike(config: Config, record: RolloutRecord) -> bool:
    """Whether answers are trained but none has an advantage, nor will get one by its divergence
    from the reference."""
    if config.rl.kl.coefficient and config.rl.kl.place == "reward":
        return False
    advantage_N = record.advantage_N[record.is_trained_N]
    return bool(len(advantage_N)) and bool((np.abs(advantage_N) <= ZERO).all())
