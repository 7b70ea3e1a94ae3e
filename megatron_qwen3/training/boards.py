"""Sends a run's metrics to TensorBoard and Weights & Biases, as set in log.*.

    check(config)                          # before any rank starts: packages, a key
    boards = Boards(config, first_step, tell)
    boards.plot(step, {"train/loss": 2.3})
    boards.close()

Neither may end a run, since metrics.jsonl has the same numbers: failures are logged and, for
TensorBoard, tried again later. Without a connection to W&B a run logs offline; `wandb sync` uploads
it later.
"""

import contextlib
import importlib.util
import netrc
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any
from urllib.parse import urlsplit

from megatron_qwen3 import launcher
from megatron_qwen3.settings import Config, ConfigError
from megatron_qwen3.storage.whole import write_whole

ID_FILE = "wandb_id"  # in the run folder, the id of the W&B run
_RETRY_SECONDS = 60.0
_NO_ACCOUNT = ("offline", "disabled", "dryrun")  # of WANDB_MODE


def check(config: Config) -> None:
    """ConfigError where the settings need a package, or a key, that is missing."""
    ways_out = {}
    if config.log.tensorboard:
        ways_out["tensorboard"] = "log.tensorboard = true", "log.tensorboard = false"
    asked = f'log.wandb_project = "{config.log.wandb_project}"'
    if config.log.wandb_project:
        ways_out["wandb"] = asked, 'log.wandb_project = ""'
    for package, (what, without) in ways_out.items():
        if importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"{what}, but the package {package} is not installed: pip install {package}, or "
                f"set {without}"
            )
    if config.log.wandb_project and launcher.rank() == 0 and not _has_wandb_key():
        raise ConfigError(
            f"{asked}, but W&B has no key here: `wandb login`, or WANDB_API_KEY=…, or "
            'WANDB_MODE=offline, or set log.wandb_project = ""'
        )


def _has_wandb_key() -> bool:
    """Whether wandb would find a key without asking at a terminal."""
    if os.environ.get("WANDB_MODE", "").lower() in _NO_ACCOUNT:
        return True
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").netloc
    for path in (os.environ.get("NETRC"), "~/.netrc", "~/_netrc"):
        if path:
            with contextlib.suppress(OSError, netrc.NetrcParseError):
                return netrc.netrc(os.path.expanduser(path)).authenticators(host) is not None
    return False


class Boards:
    """The boards of one run, on the rank that writes. `tell` logs a line."""

    def __init__(self, config: Config, first_step: int, tell: Callable[[str], None]) -> None:
        self.config, self.tell = config, tell
        self._tensorboard = self._wandb = None
        self._tensorboard_from = 0.0 if config.log.tensorboard else float("inf")
        self._plot_tensorboard(first_step + 1, {})
        if config.log.wandb_project:
            self._wandb = _open_wandb(config, first_step, tell)

    def plot(self, step: int, scalars: Mapping[str, float]) -> None:
        self._plot_tensorboard(step, scalars)
        if self._wandb:
            try:
                self._wandb.log({"step": step, **scalars})
            except Exception as error:
                self.tell(f"W&B: {error}; the run goes on without it, metrics.jsonl has it all")
                self._wandb = None

    def close(self) -> None:
        for board, end in ((self._tensorboard, "close"), (self._wandb, "finish")):
            if board:
                try:
                    getattr(board, end)()
                except Exception as error:
                    self.tell(f"{end} of a log: {error}; metrics.jsonl has it all")

    def _plot_tensorboard(self, step: int, scalars: Mapping[str, float]) -> None:
        if time.monotonic() < self._tensorboard_from:
            return
        try:
            self._tensorboard = self._tensorboard or _open_tensorboard(self.config, step)
            for name, value in scalars.items():
                self._tensorboard.add_scalar(name, value, step)
        except OSError as error:  # its thread has failed; the writer is of no more use
            self.tell(
                f"TensorBoard: {error}; tried again in {_RETRY_SECONDS:g} s, metrics.jsonl has it "
                "all; the run goes on"
            )
            self._tensorboard = None
            self._tensorboard_from = time.monotonic() + _RETRY_SECONDS


def _open_tensorboard(config: Config, next_step: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(config.run_dir / "tensorboard"), purge_step=next_step)


def _open_wandb(config: Config, first_step: int, tell: Callable[[str], None]) -> Any:
    """The W&B run; a resumed run continues the one whose id is in the run folder."""
    wandb: Any = importlib.import_module("wandb")
    id_file = config.run_dir / ID_FILE
    asked = {
        "project": config.log.wandb_project,
        "name": config.run.name,
        "dir": str(config.run_dir),
        "id": id_file.read_text() if first_step and id_file.exists() else None,
        "resume": "allow",
        "config": asdict(config),
    }
    try:
        run = wandb.init(**asked)
    except Exception as error:
        reason = " ".join(str(error).split())
        tell(f"W&B: {reason}; the run is logged offline, `wandb sync` sends it later")
        run = wandb.init(**asked, mode="offline")
    write_whole(id_file, [run.id.encode()])
    # W&B's own step only grows; steps repeated after a resume need an axis of ours.
    run.define_metric("*", step_metric="step")
    return run
