"""Finds the start of a run: its newest checkpoint, another run's weights, or its seed.

begins = check(config)                      # in every mode, before any rank starts
progress, told = load_origin(engine, config)
prepare_folder(config, progress)            # one rank, before the first step
"""

from pathlib import Path
from typing import NamedTuple

from megatron_qwen3.config import Config, ConfigError, changes, to_toml
from megatron_qwen3.config import load as load_settings
from megatron_qwen3.convert.load import changed
from megatron_qwen3.storage import folder
from megatron_qwen3.training import boards, checkpoint, stop
from megatron_qwen3.training.engine import Engine
from megatron_qwen3.training.guard import FILE_NAME as LEFT_OUT_FILE
from megatron_qwen3.training.optim import learning_rate
from megatron_qwen3.training.progress import Progress


class Beginning(NamedTuple):
    """step: steps done, by the run's newest checkpoint; before: run folder and steps done of the
    stage that a new run continues, if it does."""

    step: int
    before: tuple[Path, int] | None


def check(config: Config) -> Beginning:
    """Check the run folder and the weights that the run starts from.

    ConfigError, before any rank starts. Damage may show only when a checkpoint is read: then
    `Run.start.step` differs from the step found here.
    """
    folder.check_writable(config.run_dir)
    stop.check(config)
    boards.check(config)
    saved, before = checkpoint.newest(config.run_dir), None
    if config.checkpoint.init_from and not saved:  # a resumed run does not need it
        source = checkpoint.find(config.checkpoint.init_from)
        checkpoint.check_same_model(config, source)
        source = source.resolve()  # "." has neither a name nor parents
        if source.name.startswith("step_") and not folder.is_hf(source):
            before = (source.parents[1], checkpoint.step_of(source))
    if saved and not config.checkpoint.resume:
        raise ConfigError(
            f"checkpoint.resume = false, but {config.run_dir} holds {saved.name}; "
            "delete the folder or choose another run.name"
        )
    if saved:
        checkpoint.check_same_model(config, saved)
        checkpoint.check_same_run(config, saved)
    return Beginning(checkpoint.step_of(saved) if saved else 0, before)


def load_origin(engine: Engine, config: Config) -> tuple[Progress, list[str]]:
    """Load the start of the run; returns its progress, and log lines on its source."""
    in_full = config.checkpoint.verify == "full"
    saved, told = checkpoint.newest_intact(config.run_dir, in_full)
    if saved:
        progress = checkpoint.load(engine, saved)
        changed_lines = _changes(config, saved, progress.step)
        told += [f"resumed from {saved}", *changed_lines]
        if progress.step >= config.steps:
            told.append(
                f"this run is done: all of its {config.steps:,} steps are trained"
                + (f"; its {folder.SETTINGS_FILE} stays as it was" if changed_lines else "")
            )
        return progress, told
    if config.checkpoint.init_from:
        source = checkpoint.find(config.checkpoint.init_from)
        checkpoint.load_weights(engine, source)
        head = ""
        if checkpoint.begins_head(config.model, source):
            head = f", a language model's; the scalar head is fresh, from seed {config.run.seed}"
        told += [f"changed: {line}" for line in changed(config, source)]
        return Progress(), [*told, f"weights from {source}{head}"]
    return Progress(), [f"fresh weights from seed {config.run.seed}"]


def prepare_folder(config: Config, progress: Progress) -> None:
    """Write and clean the run folder before the first step, on one rank.

    It stores the run's settings; a finished run keeps its old ones.
    """
    config.run_dir.mkdir(parents=True, exist_ok=True)
    folder.clean(config.run_dir)
    for name in (LEFT_OUT_FILE, boards.ID_FILE) if not progress.step else ():
        (config.run_dir / name).unlink(missing_ok=True)  # left by another run
    file = config.run_dir / folder.SETTINGS_FILE
    if progress.step < config.steps or not file.is_file():
        file.write_text(to_toml(config), encoding="utf-8")


def _changes(config: Config, saved: Path, step: int) -> list[str]:
    """Settings that a resumed run changes, as log lines."""
    before = load_settings([saved / folder.SETTINGS_FILE])
    lines = [
        line
        for line in changes(before, config)
        if not line.startswith(("run.name:", "run.dir:", "checkpoint.init_from:"))
    ]
    rates = [f"{learning_rate(c, step):.4g}" for c in (before, config)]
    if step < config.steps and rates[0] != rates[1]:
        lines.append(f"learning rate of step {step + 1}: {' → '.join(rates)}")
    return [f"changed: {line}" for line in lines]
