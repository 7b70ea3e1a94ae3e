"""Keeps a run's records of rollouts consistent when it starts, rolls back, or goes on.

check(config)                       # before any rank starts
entropies = begin(run)              # once, on the first rank
roll_back(run, step)                # after a bad batch
forget(config, step)                # removes arrays that no resume needs any more
"""

from collections.abc import Iterable
from functools import partial

from megatron_qwen3.parallel.first import of_first
from megatron_qwen3.posttrain.rollouts import record as records
from megatron_qwen3.posttrain.rollouts.forgetting import forget as forget_old
from megatron_qwen3.posttrain.rollouts.record import RolloutRecord, folder_of
from megatron_qwen3.posttrain.rollouts.rows import RolloutRows
from megatron_qwen3.settings import Config, ConfigError
from megatron_qwen3.storage.folder import checkpoints, step_of
from megatron_qwen3.training.metrics_file import FILE_NAME, read_rows
from megatron_qwen3.training.run import Run


def begin(run: Run) -> dict[int, float]:
    """Remove batches that later weights sampled than those of the run's start. Returns the entropy
    of earlier updates by step, from 0, which the next entropy coefficient depends on.

    A newest batch with nothing to train that the current weights sampled is removed as well: with
    changed settings it may come out differently, otherwise it is made again the same.
    """
    step, run_dir = run.start.step, run.config.run_dir
    gone = records.clean(run_dir, step)
    if step and gone:
        run.log.note(f"rollouts after step {step} are sampled again: batch {gone[0]}")
    newest = records.batches(run_dir)[-1:]
    for batch in newest:
        about = records.read_about(folder_of(run_dir, batch))
        if about["state"]["empty"] and about["sampled_step"] == step:
            records.remove(folder_of(run_dir, batch))
    return _entropies(run, step) if step else {}


def _entropies(run: Run, step: int) -> dict[int, float]:
    first, left_out = step - 2 * run.config.batch_updates, set(_steps(run))
    found = {}
    for row in read_rows(run.config.run_dir / FILE_NAME):
        done = row["step"] - 1
        if row["kind"] == "train" and "entropy" in row and first <= done < step:
            found[done] = row["entropy"]
    return {done: entropy for done, entropy in found.items() if done not in left_out}


def check(config: Config) -> None:
    """ConfigError where the number of updates per batch changed: a step would then belong to
    another batch, with older rollouts."""
    batches = records.batches(config.run_dir) if checkpoints(config.run_dir) else []
    for batch in batches[-1:]:
        folder = folder_of(config.run_dir, batch)
        try:
            before = len(records.read_about(folder)["state"]["update_tokens"])
        except (ConfigError, LookupError, TypeError):
            continue  # the run removes it when it begins
        if before != config.batch_updates:
            raise ConfigError(
                f"{config.run.mode}.updates = {config.batch_updates}, but {folder} was made for "
                f"{before}, which a run keeps; with another run.name, checkpoint.init_from = "
                f'"{config.run_dir}" starts from its weights'
            )


def roll_back(run: Run, step: int) -> int:
    """After `step` was left out: remove the batches sampled since the point that the run went back
    to. Returns the first step that does not count."""
    first = min(entry.first for entry in run.left_out if entry.last == step)
    if run.config.guard.bad_batch == "rollback":
        records.clean(run.config.run_dir, first)
    return first


def left_out_tokens(run: Run) -> int:
    """Tokens of the updates that the run left out so far."""
    updates, total = run.config.batch_updates, 0
    for step in _steps(run):
        batch, update = divmod(step, updates)
        folder = folder_of(run.config.run_dir, batch)
        if step < run.step and folder.exists():
            total += records.read_about(folder)["state"]["update_tokens"][update]
    return total


def counted(run: Run, record: RolloutRecord, rows: RolloutRows, step: int) -> tuple[int, int]:
    """Tokens trained up to the end of an update, and positions of the update; all ranks call it."""
    state = record.state
    tokens = state["tokens"] + sum(state["update_tokens"][: step - record.first_step + 1])
    left_out = of_first(partial(left_out_tokens, run)) if run.left_out else 0
    positions = int((record.lengths_N + record.prompt_lengths_N)[rows.rollouts].sum())
    return tokens - left_out, positions


def forget(config: Config, step: int) -> None:
    """Remove the arrays of batches that neither a checkpoint nor the run at `step` needs."""
    steps = [*map(step_of, checkpoints(config.run_dir)), step]
    first = min(steps) // config.batch_updates
    forget_old(config.run_dir, first, not config.rollouts.keep_arrays)


def _steps(run: Run) -> Iterable[int]:
    return (step for first, last, _ in run.left_out for step in range(first, last + 1))
