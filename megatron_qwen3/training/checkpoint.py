"""Saves and loads checkpoints, in any layout: `load(engine, path)`, `load_weights`, `save`.

The format is torch's distributed one, which megatron-core also reads: one folder per step under
{run folder}/checkpoints, with the run's settings, its progress and a manifest of checksums beside
the tensors. `saver.py` writes it while steps run; `storage/` defines the content of a folder.
"""

from operator import attrgetter
from pathlib import Path

import torch.distributed as dist

from megatron_qwen3 import config as settings
from megatron_qwen3.convert.load import (
    CHANGEABLE,
    begins_head,
    check_model,
    fill,
    find,
    read_weights,
)
from megatron_qwen3.convert.mapping import SCALAR_HEAD
from megatron_qwen3.settings import Config, ConfigError
from megatron_qwen3.storage import folder
from megatron_qwen3.storage.folder import checkpoints, newest, step_of
from megatron_qwen3.storage.load import faults
from megatron_qwen3.storage.load import load as filled
from megatron_qwen3.training import optim, shards
from megatron_qwen3.training.engine import Engine
from megatron_qwen3.training.progress import Progress

__all__ = ["begins_head", "check_same_model", "check_same_run", "checkpoints", "find", "load"]
__all__ += ["load_weights", "newest", "newest_intact", "step_of"]


def check_same_model(config: Config, source: Path) -> None:
    """ConfigError where a source's model has other shapes than the configuration's.

    A reward model may begin with a language model.
    """
    is_reward_model = config.model.head == "scalar"
    check_model(config, source, (*CHANGEABLE, "head") if is_reward_model else CHANGEABLE)


def check_same_run(config: Config, checkpoint: Path) -> None:
    """ConfigError where a resumed run has another mode, or other initial weights, than the
    checkpoint."""
    saved = settings.load([checkpoint / folder.SETTINGS_FILE])
    for name in ("run.mode", "train.precision"):
        before, now = (attrgetter(name)(c) for c in (saved, config))
        if before != now:
            raise ConfigError(
                f'{name} = "{now}", but {checkpoint} was saved with "{before}", which a run '
                "keeps; with another run.name, checkpoint.init_from = "
                f'"{checkpoint.parents[1]}" starts from its weights'
            )


def newest_intact(run_dir: Path, in_full: bool) -> tuple[Path | None, list[str]]:
    """The newest undamaged checkpoint of a run, and log lines on damaged ones.

    All ranks call it and get the same. With `in_full` they read every file, each rank its share;
    otherwise only sizes are checked. Damaged checkpoints are set aside. ConfigError where all are.
    """
    told: list[str] = []
    while candidate := _newest_of_first_rank(run_dir):
        found = faults(candidate, in_full)
        if not found:
            return candidate, told
        told.append(f"{candidate} is damaged and set aside: {'; '.join(found[:3])}")
        if dist.get_rank() == 0:
            folder.set_aside(candidate)
        dist.barrier()
    if told:
        raise ConfigError(
            "\n".join(told) + f"\nno checkpoint of {run_dir} is intact; to begin again, "
            "delete the folder or choose another run.name"
        )
    return None, told


def _newest_of_first_rank(run_dir: Path) -> Path | None:
    """The first rank's view, on all ranks: caches of a shared file system may lag behind."""
    seen = [next(reversed(checkpoints(run_dir)), None)]
    dist.broadcast_object_list(seen, src=0)
    return seen[0]


def load(engine: Engine, checkpoint: Path) -> Progress:
    """Load weights and optimizer into the layout of `engine`; returns the run's progress.

    ConfigError on all ranks where one finds it damaged, or finds a pickle that would run code.
    """
    template = engine.model.template() | {"optimizer": shards.optimizer_template(engine)}
    engine.model.take_weights(filled(template, checkpoint))
    progress = Progress.read(checkpoint)
    optim.set_step(engine.optimizer, progress.updates)
    _recast(engine)
    model = engine.model
    model.weights_version = max(model.weights_version, progress.updates)
    return progress


def load_weights(engine: Engine, source: Path) -> None:
    """Load only weights, from a checkpoint or Hugging Face's format; the optimizer starts fresh.

    A reward model takes everything but its head from a language model.
    Verified as checkpoint.verify says; ConfigError as in `load`. Weights are read in float32 where
    the source has them: a run in bf16 saves the optimizer's float32 weights beside the rounded ones
    that it computes with.
    """
    is_wide = engine.config.train.precision == "fp32"
    verify = engine.config.checkpoint.verify
    fresh_head = begins_head(engine.config.model, source)
    preferred = shards.MASTER if is_wide else ""
    fill(engine.model, source, verify, preferred, fresh_head, CHANGEABLE)
    optim.reload_weights(engine.optimizer)
    masters = shards.master_template(engine)
    if fresh_head:
        masters = {n: entry for n, entry in masters.items() if entry.key != SCALAR_HEAD}
    if masters:
        filled({"masters": masters}, source, preferred=shards.MASTER, read=read_weights)
    _recast(engine)


def _recast(engine: Engine) -> None:
    """Cast weights that are stored in FP8 from the float32 ones, as each step does."""
    if engine.config.fp8.gather:
        optim.recast(engine.optimizer)
        for replica in engine.model.replicas:
            replica.start_param_sync(force_sync=True)
            engine.model.finish_fp8(replica)
