"""Keeps a run alive between its steps: saves, stop requests, heartbeat, slow ranks.

    with Keeper(engine, config, log, request, saved_step) as keeper:
        ...
        keeper.save(progress)                 # starts to save; steps go on
        if keeper.check(step, seconds): ...   # after every step, on all ranks: stop now?
        while keeper.goes_on(): ...           # between two batches of an evaluation, likewise
    keeper.go_on("rollouts")              # between two parts of a step: StopAsked
        keeper.finish(progress)               # the last save, and waits for it

What there is to tell goes to the log. `saver.py`, `stop.py`, `watch.py` and `hang.py` do the work.
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
    """One per rank, called alike on all. saved_step: that of the checkpoint it was resumed from."""

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
        """Before each batch of something long between two steps: whether no stop was asked for.

        What is being saved meanwhile is finished.
        """
        return not self._asked("a batch of held-out text")

    def go_on(self, at: str) -> None:
        """Before each part of something long within a step. StopAsked, on all ranks alike."""
        if reason := self._asked(at):
            raise StopAsked(f"{stop.told(reason)} in {at}")

    def _asked(self, at: str) -> int:
        self.heartbeat.beat(at)
        roll = self.watch.roll_call(self.request.reason(0.0), self.saver.state, 0.0)
        self._observe(roll.saves)
        return roll.stop

    def save(self, progress: Progress) -> None:
        """Begin to save; a save that is still under way is waited for. A failed one is told.

        Weights that are not finite are not saved: older checkpoints would make way for them.
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
        """Wait for what is being saved; a failure is told."""
        try:
            self._tell(self.saver.wait(self.heartbeat.beat))
        except SaveFailed as error:
            self.log.note(f"{error}; the run goes on")
        self.heartbeat.beat("a save")

    def finish(self, progress: Progress) -> None:
        """Have this very step saved. SaveFailed, on every rank, where it cannot be.

        Nothing else is under way.
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
        """That a step is saved, as the end of a sentence; "" where it is not."""
        path = folder.named(self.config.run_dir, step)
        return f"; step {step} is saved in {path}" if self.saved_step == step else ""

    def _is_sound(self) -> bool:
        """Every rank looks at its share, which is that of this step also where gathers overlap."""
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
