"""Saves checkpoints while training goes on.

    saver = Saver(engine, config)
    saver.start(Progress(step))             # copies to host memory, and returns
    saver.observe(states_of_all_ranks)      # between steps, with every rank's `saver.state`
    saver.wait(alive)                       # until the started save is whole, or has failed

A save stops training for one copy of the rank's share into host memory, which is reused for the
next save. A thread then writes it, at low priority; writing and checksums release Python's lock.
When every rank's part is on disk the first rank writes the table and the manifest, and renames the
folder: before that no reader takes it for a checkpoint. Ranks tell each other their `state`, one
small number per step, so no rank waits for another. A waiting caller hears of bytes written by any
rank: a slow disk is no hang. A failed save leaves the run going and all older checkpoints as they
were.
"""

import contextlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_qwen3 import config as settings
from megatron_qwen3.cpu import memory
from megatron_qwen3.settings import Config
from megatron_qwen3.storage import folder, manifest, torch_dist
from megatron_qwen3.storage.manifest import Seal, write_durably
from megatron_qwen3.storage.torch_dist import ArchiveEntry
from megatron_qwen3.storage.whole import make
from megatron_qwen3.training import progress as progress_file
from megatron_qwen3.training import shards
from megatron_qwen3.training.engine import Engine
from megatron_qwen3.training.progress import Progress

IDLE, WRITING, WRITTEN, PUBLISHED, FAILED = range(5)
_NICE = 10  # niceness of the writing thread: steps go first


class SaveFailed(RuntimeError):
    """A checkpoint could not be written; the text has the rank, the reason and what is left."""


class Saver:
    """Writes one checkpoint of an engine at a time. Every rank has one and calls it alike.

    sync_log: called before a checkpoint counts; flushes the run's reports up to it to disk.
    """

    def __init__(
        self, engine: Engine, config: Config, sync_log: Callable[[], None] = lambda: None
    ) -> None:
        self.engine, self.config, self.sync_log = engine, config, sync_log
        self.state = IDLE
        self._parts: list[shards.TensorChunk] = []
        self._objects: dict[str, bytes] = {}
        self._copies: list[Tensor] = []
        self._thread: threading.Thread | None = None
        self._all_written = threading.Event()
        self._error = ""
        self._written_bytes = 0
        self._progress = Progress()

    def start(self, progress: Progress) -> None:
        """Start to save the engine's present state. No other save may be running."""
        assert self.state == IDLE, "one save at a time"
        if not self._parts:
            self._parts = shards.owned(self.engine)
        # A module's extra state, such as FP8's scales, is made anew at each request.
        self._objects = {k: torch_dist.packed(v) for k, v in shards.objects(self.engine).items()}
        tensors = [part.tensor for part in self._parts]
        if self.config.checkpoint.asynchronous:
            tensors = self._copy(tensors)
        self._progress, self._error, self._written_bytes = progress, "", 0
        self._all_written.clear()
        self.state = WRITING
        self._thread = threading.Thread(target=self._work, args=(tensors,), daemon=True)
        self._thread.start()

    def observe(self, states: Sequence[int]) -> Path | None:
        """Take in every rank's `state`, in rank order; returns the checkpoint once it is whole.

        SaveFailed on every rank where one could not write.
        """
        if self.state == IDLE:
            return None
        if FAILED in states:
            self._give_up()
        if states[0] == PUBLISHED:
            self._end()
            return folder.named(self.config.run_dir, self._progress.step)
        if all(state == WRITTEN for state in states):
            self._all_written.set()
        return None

    def wait(self, alive: Callable[[str], None]) -> Path | None:
        """Observe until no save is running; returns its checkpoint. SaveFailed as `observe`.

        alive: called whenever some rank has written more, or reached the next state.
        """
        before: tuple[list[int], int] = ([], 0)
        while self.state != IDLE:
            states, written_bytes = now = self._states()
            if now != before:
                alive(f"{written_bytes:,} bytes of a save")
            if path := self.observe(states):
                return path
            before = now
            time.sleep(0.005)
        return None

    def _states(self) -> tuple[list[int], int]:
        """Every rank's state, in rank order, and the number of bytes written by all."""
        mine = torch.tensor([self.state, self._written_bytes], device=self.engine.device)
        everyone = mine.new_empty(2 * dist.get_world_size())
        dist.all_gather_into_tensor(everyone, mine)
        states, written = everyone.view(-1, 2).t().tolist()
        return states, sum(written)

    def _copy(self, tensors: list[Tensor]) -> list[Tensor]:
        """The same values in host memory, allocated once, and pinned where that helps."""
        if not self._copies:
            sizes = [-(-tensor.nbytes // 64) * 64 for tensor in tensors]
            whole = memory.host_copy(sum(sizes))
            places = zip(whole.split(sizes), tensors, strict=True)
            self._copies = [
                place[: tensor.nbytes].view(tensor.dtype).view(tensor.shape)
                for place, tensor in places
            ]
        for copy, tensor in zip(self._copies, tensors, strict=True):
            copy.copy_(tensor, non_blocking=True)
        torch.cuda.synchronize()
        return self._copies

    def _work(self, tensors: list[Tensor]) -> None:
        """Body of the thread."""
        try:
            _step_back()
            partial = folder.partial(self.config.run_dir, self._progress.step)
            self._write(partial, tensors)
            self.state = WRITTEN
            if self.engine.is_first_rank:
                self._all_written.wait()
                if not self._error:
                    self._publish(partial)
                    self.state = PUBLISHED
        except Exception as error:
            self._error = f"{type(error).__name__}: {error}"
            self.state = FAILED

    def _write(self, partial: Path, tensors: list[Tensor]) -> None:
        """Write this rank's file, and its table of content as a small file for the first rank."""
        make(partial)
        rank = dist.get_rank()
        with torch_dist.ChunkFile(partial / f"__{rank}_0.distcp") as file:
            for part, tensor in zip(self._parts, tensors, strict=True):
                file.add_tensor(part.place, tensor.detach().cpu().contiguous())
                self._written_bytes += tensor.nbytes
            for key, data in self._objects.items():
                file.add_packed(key, data)
        text = json.dumps({"seal": file.seal, "rows": file.rows})
        write_durably(partial / _rows_file(rank), text)

    def _publish(self, partial: Path) -> None:
        """Make the parts of all ranks one checkpoint."""
        rows: list[ArchiveEntry] = []
        seals: dict[str, Seal] = {}
        for rank in range(dist.get_world_size()):
            part = json.loads((partial / _rows_file(rank)).read_text(encoding="utf-8"))
            rows += [ArchiveEntry(*map(_hashable, row)) for row in part["rows"]]
            seals[f"__{rank}_0.distcp"] = Seal(*part["seal"])
            (partial / _rows_file(rank)).unlink()
        write_durably(partial / folder.SETTINGS_FILE, settings.to_toml(self.config))
        write_durably(partial / progress_file.FILE_NAME, self._progress.to_json())
        names = [*torch_dist.finish(partial, rows), folder.SETTINGS_FILE, progress_file.FILE_NAME]
        seals |= {name: manifest.seal(partial / name) for name in names}
        manifest.write(partial, seals)
        if faults := manifest.faults(partial):
            raise OSError("files differ from the written bytes: " + "; ".join(faults[:3]))
        self.sync_log()
        folder.publish(partial)
        kept = self.config.checkpoint
        with contextlib.suppress(OSError):  # tried again after the next save
            folder.retain(self.config.run_dir, kept.keep, kept.keep_every_steps)

    def _give_up(self) -> None:
        """Remove the files of a failed save, on every rank at the same time, and raise
        SaveFailed."""
        errors = [""] * dist.get_world_size()
        if self.state != FAILED:
            self._error = " "  # tells the first rank's thread, if it waits, that all is lost
        self._all_written.set()
        if self._thread:
            self._thread.join()
        dist.all_gather_object(errors, self._error.strip())
        partial = folder.partial(self.config.run_dir, self._progress.step)
        if self.engine.is_first_rank:
            shutil.rmtree(partial, ignore_errors=True)
        self._end()
        dist.barrier()
        reasons = [f"rank {rank}: {error}" for rank, error in enumerate(errors) if error]
        left = folder.newest(self.config.run_dir)
        raise SaveFailed(
            f"step {self._progress.step} could not be saved ({reasons[0]}); "
            + (f"{left} is intact" if left else "there is no checkpoint yet")
        )

    def _end(self) -> None:
        if self._thread:
            self._thread.join()
        self._thread, self.state = None, IDLE


def save(engine: Engine, config: Config, step: int) -> Path:
    """Write one checkpoint and wait for it. SaveFailed, on every rank."""
    saver = Saver(engine, config)
    saver.start(Progress(step))
    path = saver.wait(lambda done: None)
    assert path is not None
    return path


def _step_back() -> None:
    """Lower this thread's priority; a lower one is left, since it may not be raised."""
    thread = threading.get_native_id()
    if os.getpriority(os.PRIO_PROCESS, thread) < _NICE:
        with contextlib.suppress(OSError):  # some sandboxes forbid it; a save matters more
            os.setpriority(os.PRIO_PROCESS, thread, _NICE)


def _rows_file(rank: int) -> str:
    return f"rows_{rank}.json"


def _hashable(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value
