"""Break runs in every way that can be had here, and look whether anything is lost.

    python tests/chaos.py                      # 50 rounds; a table at the end, status 0 if all held
    python tests/chaos.py --rounds 10 --seed 3 --ranks 4

Every round starts a small real run of its own (ranks over gloo, a save every second step, written
while steps run), breaks it at a random moment, and starts it again until it is done. It holds if
every step is there once with the loss of an undisturbed run, to the bit, if no checkpoint that the
run called saved was lost, and if the last one is intact. The ways:

    kill      -9 for one rank, at any moment
    kill all  -9 for all, as when the machine goes
    in save   -9 for one rank while a checkpoint is being written or renamed
    cut       kill, then cut a file of the newest checkpoint at a random byte
    flip      kill, then turn over a random bit of it
    full      the disk fills up at a random moment and is emptied later (a tmpfs; needs root)
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch.distributed as dist

from data_prep.indexed import IndexedWriter
from megatron_qwen3.storage import folder, manifest

STEPS, EVERY, VOCABULARY, LENGTH, BATCH = 16, 2, 512, 32, 4
WAYS = ("kill", "kill all", "in save", "cut", "flip", "full")
MIB = 1 << 20
_forkserver = multiprocessing.get_context("forkserver")
_forkserver.set_forkserver_preload(["megatron_qwen3.train", "megatron_qwen3.pretrain.loop"])


class Launch:
    """The ranks of a run, started."""

    def __init__(self, arguments, ranks, log):
        self.store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
        self.log = log
        self.processes = [
            _forkserver.Process(target=_rank, args=(rank, ranks, self.store.port, arguments, log))
            for rank in range(ranks)
        ]
        for process in self.processes:
            process.start()

    def kill(self, rank, number=signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.processes[rank].pid, number)

    def wait(self, seconds=120.0):
        """The exit statuses; what outlives another rank's death by long is killed."""
        deadline = time.monotonic() + seconds
        while any(p.is_alive() for p in self.processes) and time.monotonic() < deadline:
            if any(p.exitcode for p in self.processes):  # as a launcher does
                deadline = min(deadline, time.monotonic() + 20)
            time.sleep(0.02)
        for process in self.processes:
            process.kill()
            process.join()
        return [process.exitcode for process in self.processes]


def _rank(rank, ranks, port, arguments, log):
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    import torch

    from megatron_qwen3 import train

    torch.set_num_threads(1)
    sys.exit(train.main(arguments))


def corpus(path):
    """Token files of two sources; what to pass to a run that trains on them."""
    numbers = np.random.default_rng(0)
    for name in ("a", "b"):
        with IndexedWriter(path / name, np.uint16) as writer:
            for _ in range(40):
                writer.add_document(numbers.integers(0, VOCABULARY, 200))
    sources = ", ".join(f'{{name = "{name}", path = "{path / name}"}}' for name in ("a", "b"))
    return [
        "model.preset=tiny-moe",
        f"model.vocab_size={VOCABULARY}",
        "train.precision=fp32",
        f"train.steps={STEPS}",
        f"train.global_batch={BATCH}",
        f"data.sequence_length={LENGTH}",
        "data.held_out=0.0",
        f"data.sources=[{sources}]",
        f"checkpoint.every_steps={EVERY}",
        "optim.schedule=constant",
        "log.tensorboard=false",
        "run.device=cpu",
    ]


def losses(run_dir):
    """[(step, loss)] as the run wrote them down."""
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [(row["step"], row["loss"]) for row in map(json.loads, lines)]


class Round:
    """One run that is broken in one way."""

    def __init__(self, way, seed, settings, ranks, home):
        self.way, self.random, self.ranks = way, random.Random(f"{seed} {way}"), ranks
        self.home = home
        self.run_dir, self.log = home / "run", home.with_suffix(".txt")  # not on the small disk
        self.arguments = [*settings, f"run.dir={home}", "run.name=run"]

    def start(self):
        return Launch(self.arguments, self.ranks, str(self.log))

    def play(self):
        """Break it; what is to be said about it."""
        launch = self.start()
        if self.way == "full":
            told = self._fill(launch)
        elif self.way == "in save":
            told = self._kill_in_save(launch)
        else:
            self._wait_for_any_moment(launch)
            whole = range(self.ranks) if self.way == "kill all" else [self._any_rank()]
            told = f"rank {', '.join(map(str, whole))} after step {self._steps_done()}"
            for rank in whole:
                launch.kill(rank)
        launch.wait()
        if self.way in ("cut", "flip"):
            told += f"; {self._damage()}"
        return told

    def finish(self):
        """Start it until it is done; how often that took."""
        for attempt in range(1, 5):
            if self.start().wait() == [0] * self.ranks:
                return attempt
        raise AssertionError(f"does not end; see {self.log}")

    def saved(self):
        """Steps that the run said it had saved."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return [int(line.rpartition("step_")[2][:8]) for line in lines if line.startswith("saved ")]

    def _wait_for_any_moment(self, launch):
        """Until some step is done, the first launch included, and a moment more."""
        step = self.random.randrange(STEPS)
        while self._steps_done() < step and all(p.is_alive() for p in launch.processes):
            time.sleep(0.001)
        time.sleep(self.random.uniform(0, 0.2 if step else 2.0))

    def _any_rank(self):
        return self.random.randrange(self.ranks)

    def _steps_done(self):
        with contextlib.suppress(OSError, ValueError):
            return len(losses(self.run_dir))
        return 0

    def _kill_in_save(self, launch):
        """Wait for some save to begin, then kill within the time that one takes."""
        left = self.random.randrange(STEPS // EVERY)
        seen, deadline = set(), time.monotonic() + 60
        while time.monotonic() < deadline and any(p.is_alive() for p in launch.processes):
            names = {p.name for p in (self.run_dir / "checkpoints").glob("*.partial")}
            if len(seen | names) > left and names - seen:
                time.sleep(self.random.uniform(0, 0.03))
                rank = self._any_rank()
                launch.kill(rank)
                there = [p.name for p in (self.run_dir / "checkpoints").glob("*.partial")]
                return f"rank {rank}, {(there or ['just renamed'])[0]}"
            seen |= names
            time.sleep(0.0005)
        return "too late: the run was done"

    def _damage(self):
        """Cut or turn over something of the newest checkpoint, unless it is the only one."""
        checkpoints = folder.checkpoints(self.run_dir)
        if len(checkpoints) < 2:
            return f"nothing to {self.way} yet"
        path = self.random.choice(sorted(p for p in checkpoints[-1].iterdir() if p.stat().st_size))
        place = self.random.randrange(path.stat().st_size)
        if self.way == "cut":
            os.truncate(path, place)
        else:
            with path.open("r+b") as file:
                file.seek(place)
                (byte,) = file.read(1)
                file.seek(place)
                file.write(bytes([byte ^ 1 << self.random.randrange(8)]))
        return f"{checkpoints[-1].name}/{path.name} at byte {place:,}"

    def _fill(self, launch):
        self._wait_for_any_moment(launch)
        ballast, step = self.home / "ballast", self._steps_done()
        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(MIB // 4))
        time.sleep(self.random.uniform(0.1, 1.0))
        done = self._steps_done()
        alive = all(p.is_alive() for p in launch.processes)
        ballast.unlink(missing_ok=True)
        return f"from step {step} to {done}; the run {'went on' if alive else 'ended'}"


def check(game, reference, announced):
    """AssertionError says what was lost."""
    assert losses(game.run_dir) == reference, "losses differ from those of the undisturbed run"
    newest = folder.newest(game.run_dir)
    assert newest and folder.step_of(newest) == STEPS, "the last step is not saved"
    assert manifest.faults(newest, share=(0, 1)) == [], "the last checkpoint is damaged"
    rest = [p.name for p in newest.parent.iterdir() if p.name.endswith(".partial")]
    assert not rest, f"left behind: {rest}"
    resumed = [
        int(line.rpartition("step_")[2][:8])
        for line in game.log.read_text(errors="replace").splitlines()
        if line.startswith("resumed from ")
    ]
    kept = announced[-2:-1] if game.way in ("cut", "flip") else announced[-1:]
    if kept and resumed:
        assert resumed[0] >= kept[0], f"step {kept[0]} was saved, but {resumed[0]} resumed from"
    assert resumed or not kept, f"step {kept} was saved, but the run began again"


@contextlib.contextmanager
def small_disk(path, mib=40):
    """A tmpfs at `path`; False where this user may not mount one."""
    path.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(path)]
    mounted = os.geteuid() == 0 and not subprocess.run(mount, capture_output=True).returncode
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(path)], check=True)


def play(home, rounds, seed, ranks, ways=WAYS, say=print):
    """Play; [(way, "" or what was lost)]."""
    settings = corpus(home)
    whole = Round("whole", seed, settings, ranks, home / "whole")
    whole.home.mkdir()
    assert whole.finish() == 1, whole.log.read_text()
    reference = losses(whole.run_dir)
    assert [step for step, _ in reference] == list(range(1, STEPS + 1))
    results = []
    for number in range(rounds):
        way = ways[number % len(ways)]
        home_of_round = home / f"round_{number}"
        with small_disk(home_of_round) if way == "full" else _plain(home_of_round) as there:
            if not there:
                say(f"{number + 1:>3}  {way:<9} skipped: no right to mount a small disk")
                continue
            game = Round(way, f"{seed} {number}", settings, ranks, home_of_round)
            told = lost = ""
            try:
                told = game.play()
                announced = game.saved()
                again = game.finish()
                check(game, reference, announced)
            except Exception as error:
                lost, again = f"{type(error).__name__}: {error}", 0
            results.append((way, lost))
            say(f"{number + 1:>3}  {way:<9} {lost or f'held, {again} restart':<18} {told}")
        shutil.rmtree(home_of_round, ignore_errors=True)
    return results


@contextlib.contextmanager
def _plain(path):
    path.mkdir()
    yield True


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ranks", type=int, default=2)
    options = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="chaos_"))
    results = play(home, options.rounds, options.seed, options.ranks)
    held = Counter(way for way, lost in results if not lost)
    print(f"\n{'way':<9} {'rounds':>6} {'held':>5}")
    for way, count in Counter(way for way, _ in results).items():
        print(f"{way:<9} {count:>6} {held[way]:>5}")
    print(f"{'all':<9} {len(results):>6} {held.total():>5}")
    if held.total() < len(results):
        print(f"logs of what was lost: {home}")
        return 1
    shutil.rmtree(home)
    return 0


if __name__ == "__main__":
    sys.exit(main())
