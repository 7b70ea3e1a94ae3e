"""On-policy distillation: a student learns from its teacher on the student's own answers.

    python -m megatron_qwen3.train examples/stages/distill_2_on_policy.toml MODEL.toml

A batch flows as in reinforcement learning (`rl.py`), with thinking or without: the student answers
tasks, the answers are written into the run folder, each update trains its share of them. In place
of a reward the teacher gives its distribution over each sampled token (`scorers.py`), and the
student moves towards it (`policy/towards.py`). Answers that reached their limit are trained as
others are, and no group is left out. Verifiers, of tasks that have them, measure how often answers
are right and do not enter the loss.
"""

from dataclasses import dataclass
from functools import partial

from megatron_qwen3 import launcher
from megatron_qwen3.convert import load
from megatron_qwen3.parallel.first import of_first
from megatron_qwen3.parallel.layout import Layout
from megatron_qwen3.posttrain import kept_models
from megatron_qwen3.posttrain.generators.settings import EndpointLimits
from megatron_qwen3.posttrain.rl import opened, rows_of, sources_of, told
from megatron_qwen3.posttrain.rollouts import health, resume
from megatron_qwen3.posttrain.rollouts.asking import SplitTasks
from megatron_qwen3.posttrain.rollouts.held_out import evaluate
from megatron_qwen3.posttrain.rollouts.maker import Rollouts
from megatron_qwen3.posttrain.rollouts.record import RolloutRecord
from megatron_qwen3.posttrain.rollouts.rows import RolloutRows
from megatron_qwen3.posttrain.scorers import Scorer, scorer_of, served_teacher, without_unknown
from megatron_qwen3.posttrain.teachers import teacher_settings
from megatron_qwen3.settings import Config
from megatron_qwen3.training.bad_batch import BadBatch
from megatron_qwen3.training.run import Run

_OF_REWARDS = ("reward", "reward_deviation", "advantage", "zero_groups")  # unused here
_AT_START = EndpointLimits(tries=2, seconds=60.0)  # for the first request to a served teacher


def check(config: Config) -> list[SplitTasks]:
    """The tasks that a run answers. ConfigError, before any rank starts, for every fault of the
    tasks and of the teacher."""
    sources = sources_of(config)
    if config.distill.teacher.path:
        own = teacher_settings.tokenizer_sha256(config.data.tokenizer)
        tokenizers = {f"data.tokenizer = {config.data.tokenizer}": own}
        teacher_settings.check(config, launcher.world_size(), tokenizers)
        load.check_there("distill.teacher.path", config.distill.teacher.path)
    return sources


def _ask_teacher(config: Config) -> None:
    """ConfigError, in a line, where a served teacher does not return log-probabilities."""
    with served_teacher(config, _AT_START) as teacher:
        teacher.check()


def run(config: Config, layout: Layout, inputs: list[SplitTasks]) -> bool:
    """Train a stage on this rank; False where it stopped early, to be continued.

    Raises ConfigError where no checkpoint or record is intact, or a served teacher does not answer;
    BadBatch, SaveFailed, EvaluationFailed: the run stopped and needs a person to look.
    """
    if config.distill.teacher.url:
        of_first(partial(_ask_teacher, config))  # before a model is built
    with Run(config, layout) as run, opened(run, inputs) as rollouts, run.stopping():
        of_first(partial(kept_models.write, config))
        beat = partial(run.go_on, "teacher")
        with run.waiting():  # loading a teacher takes long: it grows with its files
            scorer = scorer_of(config, layout, run.engine, beat, run.waiting)
        of_first(lambda: resume.begin(run))
        batch: _Batch | None = None
        for step in run.steps(partial(evaluate, rollouts, lambda: run.step)):
            number, update = divmod(step, config.batch_updates)
            if batch is None or batch.record.batch != number:
                batch = _next(run, rollouts, scorer, number, step)
            rows = batch.rows[update]
            if rows is None:
                run.log.note(f"step {step + 1}: no answer is left to train")
                continue
            try:
                _train(run, scorer, batch.record, rows, step)
            except BadBatch as error:
                batch = None  # after a rollback it may be another
                run.leave_out(step, f"{error}; its answers are of batch {number}")
                of_first(partial(resume.roll_back, run, step))
    return run.is_done


@dataclass(frozen=True)
class _Batch:
    """A record, and the rows of each of its updates; None for an update without answers."""

    record: RolloutRecord
    rows: list[RolloutRows | None]


def _next(run: Run, rollouts: Rollouts, scorer: Scorer, number: int, step: int) -> _Batch:
    """The batch of a step, read or made; with lag, this makes the next one too."""
    config, updates = run.config, run.config.batch_updates
    record = rollouts.batch(number, step)
    if config.rollouts.lag and (number + 1) * updates < config.steps:
        rollouts.batch(number + 1, step)
    for line in health.lines(config, record):
        run.log.note(line)
    health.check(config, record)
    if step == record.first_step:
        row = told(record, 0.0)
        run.sampled(step, {name: row[name] for name in row if name not in _OF_REWARDS})
    of_first(lambda: resume.forget(config, step))
    known = without_unknown(record, scorer.known)
    shares = known.updates(updates, config.run.seed)
    return _Batch(known, rows_of(run, known, shares, scorer.unit))


def _train(run: Run, scorer: Scorer, record: RolloutRecord, rows: RolloutRows, step: int) -> None:
    """One update."""
    batch = scorer.batch(record, rows)
    run.train(step, batch, scorer.objective, *resume.counted(run, record, rows, step))
