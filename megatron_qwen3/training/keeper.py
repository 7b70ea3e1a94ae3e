"""Work between steps that keeps a run alive: saves, requests to stop, heartbeat, slow ranks.

    with Keeper(engine, config, log, request, saved_step) as keeper:
        ...
        keeper.save(progress)                 # starts to save; steps go on
        if keeper.check(step, seconds): ...   # after every step, on all ranks: stop now?
        while keeper.goes_on(): ...           # between two batches of an evaluation
    keeper.go_on("rollouts")              # between two parts of a step: StopAsked
        keeper.finish(progress)               # the last save, and waits for it

Messages go to the log. `saver.py`, `stop.py`, `watch.py` and `hang.py` do the work.
"""

from pathlib import Path
from typing import Self

import torch.distributed as dist

from megatron_qwen3.settings import Config
from megatron_qwen3.storage import folder
from megatron_qwen3.training import stop
from megatron_qwen3.training.engine import Engine
from megatron_qwen3.training.hang import Heartbeat
from megatron_qwen3.training.metrics import RunLog
from megatron_qwen3.training.progress import Progress
from megatron_qwen3.training.saver import IDLE, SaveFailed, Saver
from megatron_qwen3.training.stop import StopAsked, StopRequest
from megatron_qwen3.training.watch import Watch, hosts_of_ranks


class Keeper:
    """One per rank, called alike on all. saved_step: of the checkpoint that was resumed."""

    def __init__(
        self, engine: Engine, config: Config, log: RunLog, request: StopRequest, saved_step: int
    ) -> None:
        self.engine, self.config, self.log, self.request = engine, config, log, request
        self.saved_step = saved_step
        self.saver = Saver(engine, config, log.sync)
        self.watch = Watch(hosts_of_ranks(), engine.layout.pipeline, config.guard.slow_rank)
        seconds, rank = config.guard.hang_seconds, dist.get_rank()
        self.heartbeat = Heartbeat(seconds, config.run_dir, rank)

    def check(self, step: int, seconds: float) -> bool:
        """After a step that took `seconds`: whether the run stops now, to be continued."""
        self.heartbeat.beat(f"step {step}")
        busy = self.engine.clock.seconds()
        roll = self.watch.roll_call(self.request.reason(seconds), self.saver.state, busy)
        self._observe(roll.saves)
        if slow := self.watch.slow_ranks(roll.busy_seconds):
            self.log.note(slow)
        if roll.stop:
            self.log.note(f"{stop.told(roll.stop)} after step {step}: saving, to be continued")
        return bool(roll.stop)

    def goes_on(self) -> bool:
        """Called before each batch of long work between two steps: False once a stop is requested.

        A save that is running is finished meanwhile.
        """
        return not self._asked("a batch of held-out text")

    def go_on(self, at: str) -> None:
        """Called before each part of long work within a step. StopAsked, on all ranks alike."""
        if reason := self._asked(at):
            raise StopAsked(f"{stop.told(reason)} in {at}")

    def _asked(self, at: str) -> int:
        self.heartbeat.beat(at)
        roll = self.watch.roll_call(self.request.reason(0.0), self.saver.state, 0.0)
        self._observe(roll.saves)
        return roll.stop

    def save(self, progress: Progress) -> None:
        """Start a save, after waiting for one that is running. Failures are logged.

        Weights that are not finite are not saved, since they would replace older checkpoints.
        """
        if not self._is_sound():
            self.log.note(f"{_unsound(progress.step)}; the run goes on")
            return
        if self.saver.state != IDLE:
            self.log.note(
                f"step {progress.step} is to be saved while the save before it is still under "
                "way: waiting; a faster disk or a larger checkpoint.every_steps helps"
            )
            self.settle()
        self.saver.start(progress)
        if not self.config.checkpoint.asynchronous:
            self.settle()

    def settle(self) -> None:
        """Wait for a running save; a failure is logged."""
        try:
            self._tell(self.saver.wait(self.heartbeat.beat))
        except SaveFailed as error:
            self.log.note(f"{error}; the run goes on")
        self.heartbeat.beat("a save")

    def finish(self, progress: Progress) -> None:
        """Save this step and wait. SaveFailed, on every rank, where it cannot be saved.

        No other save may be running.
        """
        if self.saved_step == progress.step:
            return
        if not self._is_sound():
            left = folder.newest(self.config.run_dir)
            raise SaveFailed(
                f"{_unsound(progress.step)}; "
                + (f"the last checkpoint is {left}" if left else "there is no checkpoint yet")
            )
        self.saver.start(progress)
        self._tell(self.saver.wait(self.heartbeat.beat))

    def has(self, step: int) -> str:
        """The end of a sentence on where a step is saved; "" if it is not."""
        path = folder.named(self.config.run_dir, step)
        return f"; step {step} is saved in {path}" if self.saved_step == step else ""

    def _is_sound(self) -> bool:
        """Whether weights are finite; each rank checks its share, even if gathers overlap."""
        return self.engine.model.weights_are_finite()

    def _observe(self, saves: list[int]) -> None:
        try:
            self._tell(self.saver.observe(saves))
        except SaveFailed as error:
            self.log.note(f"{error}; the run goes on")

    def _tell(self, saved: Path | None) -> None:
        if saved:
            self.saved_step = folder.step_of(saved)
            self.log.note(f"saved {saved}")

    def __enter__(self) -> Self:
        self.heartbeat.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.heartbeat.__exit__()


def _unsound(step: int) -> str:
    return f"step {step} is not saved: its weights are not finite"
