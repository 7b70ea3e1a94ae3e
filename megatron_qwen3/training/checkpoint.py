"""Checkpoints that any layout can load: `save(engine, config, step)` and `load(engine, path)`.

megatron-core's distributed checkpoint, one folder per step under {run folder}/checkpoints, with
the run's settings beside the tensors. A checkpoint is written under a name that nothing reads and
gets its real one by a rename, once every rank has finished: what has the real name is whole.
"""

import queue
import shutil
from pathlib import Path
from typing import Any

from megatron_qwen3.parallel import cpu  # noqa: F401  isort: skip  (before megatron-core)
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.process_groups_config import ProcessGroupCollection

from megatron_qwen3 import config as settings
from megatron_qwen3.config import Config, ConfigError
from megatron_qwen3.training import optim
from megatron_qwen3.training.engine import Engine

# megatron-core passes a save's results through a manager process, which it spawns and which imports
# the whole program. A save that is done before the next step needs no more than this.
filesystem_async._results_queue = queue.SimpleQueue()

_SETTINGS_FILE = "config.toml"
# Settings of the model that say how weights are used or made, not which shapes they have.
_FREE = ("preset", "rope_theta", "norm_eps", "init_std", "router_aux_loss")


def checkpoints(run_dir: Path) -> list[Path]:
    """The whole checkpoints of a run folder, oldest first."""
    return sorted((run_dir / "checkpoints").glob("step_" + "[0-9]" * 8))


def step_of(checkpoint: Path) -> int:
    """Optimizer steps that were done when it was saved."""
    return int(checkpoint.name.removeprefix("step_"))


def find(path: str) -> Path:
    """The checkpoint that `path` means: itself, or the newest of a run folder."""
    folder = Path(path)
    if (folder / _SETTINGS_FILE).exists() and (folder / "metadata.json").exists():
        return folder
    found = checkpoints(folder)
    if not found:
        raise ConfigError(
            f'checkpoint.init_from = "{path}" is neither a checkpoint nor a run folder with one; '
            "train the stage before it first, or set checkpoint.init_from="
        )
    return found[-1]


def check_same_model(config: Config, checkpoint: Path) -> None:
    """ConfigError where the checkpoint's model has other shapes than the configuration's."""
    saved, wanted = settings.load([checkpoint / _SETTINGS_FILE]).model, config.model
    for name, value in vars(wanted).items():
        if name not in _FREE and value != getattr(saved, name):
            raise ConfigError(
                f"model.{name} = {value}, but {checkpoint} was saved with {getattr(saved, name)}; "
                "a stage goes on with the model of the stage before"
            )


def save(engine: Engine, config: Config, step: int) -> Path:
    """Write weights and optimizer after `step` steps; afterwards only the newest ones are kept.

    All ranks call it. Needs room for one checkpoint more than checkpoint.keep.
    """
    engine.synchronize_weights()
    final = config.run_dir / "checkpoints" / f"step_{step:08d}"
    partial = final.with_name(f"{final.name}.partial")
    if dist.get_rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    dist.barrier()
    dist_checkpointing.save(_state(engine, is_loading=False) | {"step": step}, str(partial))
    if dist.get_rank() == 0:
        (partial / _SETTINGS_FILE).write_text(settings.to_toml(config), encoding="utf-8")
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        for old in checkpoints(config.run_dir)[: -config.checkpoint.keep]:
            shutil.rmtree(old)
    dist.barrier()
    return final


def load(engine: Engine, checkpoint: Path) -> int:
    """Weights and optimizer, into whatever layout `engine` has; the steps done until then."""
    loaded = dist_checkpointing.load(_state(engine, is_loading=True), str(checkpoint))
    _load_weights(engine, loaded)
    optim.load_state(engine.optimizer, loaded["optimizer"])
    return step_of(checkpoint)


def load_weights(engine: Engine, checkpoint: Path) -> None:
    """Weights alone: a new stage starts with a fresh optimizer."""
    _load_weights(engine, dist_checkpointing.load(_weights(engine), str(checkpoint)))
    engine.optimizer.reload_model_params()


def _state(engine: Engine, is_loading: bool) -> dict[str, Any]:
    weights = _weights(engine)
    optim.allocate_state(engine.optimizer)
    # Without is_loading the template of a load has no moments and they are silently dropped.
    optimizer = engine.optimizer.sharded_state_dict(
        weights, is_loading=is_loading, metadata=_metadata()
    )
    return weights | {"optimizer": optimizer}


def _weights(engine: Engine) -> dict[str, Any]:
    return {
        f"chunk{index}": model.sharded_state_dict(metadata=_metadata())
        for index, model in enumerate(engine.models)
    }


def _load_weights(engine: Engine, loaded: dict[str, Any]) -> None:
    for index, model in enumerate(engine.models):
        model.load_state_dict(loaded[f"chunk{index}"])


def _metadata() -> dict[str, Any]:
    """The optimizer format that can change every size; megatron-core's default cannot be saved."""
    return {
        "distrib_optim_sharding_type": "fully_reshardable",
        "distrib_optim_fully_reshardable_mem_efficient": False,
        "dp_cp_group": ProcessGroupCollection.use_mpu_process_groups().dp_cp,
    }
