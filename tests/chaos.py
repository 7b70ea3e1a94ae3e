"""Break runs in every way that can be had here, and look whether anything is lost.

    python tests/chaos.py                      # 60 rounds; a table at the end, status 0 if all held
    python tests/chaos.py --rounds 10 --seed 3 --ranks 4 --at-once 1
    python tests/chaos.py --mode sft           # runs that train on dialogs

Every round starts a small real run of its own (ranks over gloo, a save every second step, written
while steps run), breaks it at a random moment, and starts it again until it is done. It holds if
every step is there once with the loss of an undisturbed run, if the weights and moments of the last
checkpoint are those that the undisturbed run had in memory when it ended, all to the bit, and if no
checkpoint that the run called saved was lost. A round counts only if it broke something while the
run was alive; else it is played again. The ways:

    kill       -9 for one rank, at any moment
    kill all   -9 for all, as when the machine goes
    in save    -9 for one rank while a checkpoint is being written or renamed
    cut        kill, then cut a file of the newest of two checkpoints or more at a random byte
    flip       kill, then turn over a random bit of it
    full       the disk fills up at a random moment and is emptied later (a tmpfs; needs root)
    full logs  it stays full until its log of metrics cannot be written (needs root)
    two runs   a second run is started in the same folder
    stopped    a rank is stopped, as by a debugger or a dying disk; the hang guard must end the run
    in rollout, in reward, in record
               -9 for one rank while a batch of rollouts is sampled, rewarded, written
    power      kill all, and lose what was not synced, or what was not by an earlier moment
    names      kill all; names stay as they are, but of files only what was synced
"""

import argparse
import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

import power
from broken import MODES, MOMENT_SECONDS, STEPS, Launch, differences, losses, memory_of, saved_state

from megatron_qwen3.storage import folder, manifest
from megatron_qwen3.training.hang import HUNG

EVERY = 2
WAYS = (
    *("kill", "kill all", "in save", "cut", "flip", "full", "full logs", "two runs", "stopped"),
    *("power", "names", "in rollout", "in reward", "in record"),
)
OF_ROLLOUTS = ("in rollout", "in reward", "in record")  # of modes whose model samples answers
ON_SMALL_DISK = ("full", "full logs")
# Those that each mode comes to: nothing is rewarded in distillation.
MOMENTS = {"rl": OF_ROLLOUTS, "distill": ("in rollout", "in record")}
TRIES = 8  # at breaking something, before a round is given up
HANG_SECONDS = 5
MIB = 1 << 20


@dataclass
class Told:
    """The messages of a round. broke: it broke something while the run was alive.

    announced: the steps that were said to be saved, of which the last must be gone on from.
    """

    broke: bool
    text: str
    announced: list[int] = field(default_factory=list)


class Result(NamedTuple):
    """A round that is over. lost: "" or the loss; broke: as in `Told`."""

    way: str
    broke: bool
    lost: str
    text: str
    starts: int = 0


class Round:
    """One run that is broken in one way."""

    def __init__(self, way, seed, settings, ranks, home, mutant=""):
        self.way, self.random, self.ranks = way, random.Random(f"{seed} {way}"), ranks
        self.home, self.mutant = home, mutant
        self.run_dir, self.log = home / "run", home.with_suffix(".txt")  # not on the small disk
        self.journal = home.with_suffix(".journal")
        self.arguments = [*settings, f"run.dir={home}", "run.name=run"]
        if way == "stopped":
            self.arguments.append(f"guard.hang_seconds={HANG_SECONDS}")

    def start(self, **options):
        return Launch(self.arguments, self.ranks, self.log, **{"change": self.mutant, **options})

    def play(self):
        """Break it; Told."""
        ways = {
            "in save": self._kill_in_save,
            **dict.fromkeys(OF_ROLLOUTS, self._kill_in_rollouts),
            "full": self._fill,
            "full logs": self._fill,
            "two runs": self._start_another,
            "stopped": self._stop,
            "power": self._cut_power,
            "names": self._cut_power,
        }
        return ways.get(self.way, self._kill)()

    def finish(self):
        """Start it until it is done; how often that took."""
        for attempt in range(1, 5):
            if self.start().wait() == [0] * self.ranks:
                return attempt
        raise AssertionError(f"does not end; see {self.log}")

    def _said(self, beginning):
        """Steps that the log names in lines that begin so."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        found = [line.rpartition("step_")[2][:8] for line in lines if line.startswith(beginning)]
        return [int(step) for step in found if step.isdigit()]

    def _steps_done(self):
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return max(map(int, re.findall(rf"^step +(\d+)/{STEPS} ", text, re.M)), default=0)

    def _wait(self, launch, until, seconds=90.0):
        """Whether it came to that while all ranks were alive."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and launch.is_alive():
            if until():
                return True
            time.sleep(0.001)
        return False

    def _any_moment(self, launch, first=0):
        """Wait for some step and a moment more."""
        step = self.random.randrange(first, STEPS - 1)
        self._wait(launch, lambda: self._steps_done() >= step)
        time.sleep(self.random.uniform(0, 0.1 if step else 2.0))

    def _kill(self):
        launch = self.start()
        damages = self.way in ("cut", "flip")
        if damages:
            self._wait(launch, lambda: len(folder.checkpoints(self.run_dir)) > 1)
        self._any_moment(launch)
        whole = range(self.ranks) if self.way == "kill all" else [self._any_rank()]
        broke = launch.is_alive()
        for rank in whole:
            launch.signal(rank)
        broke = broke and -signal.SIGKILL in launch.wait()
        told = f"rank {', '.join(map(str, whole))} after step {self._steps_done()}"
        announced = self._said("saved ")
        if damages and broke:
            damage = self._damage()
            return Told(bool(damage), f"{told}; {damage}", announced[:-1])
        return Told(broke, told, announced)

    def _any_rank(self):
        return self.random.randrange(self.ranks)

    def _kill_in_save(self):
        """Wait for some save to begin, then kill within the time that one takes."""
        launch = self.start()
        left = self.random.randrange(STEPS // EVERY)
        seen, there = set(), []

        def begins():
            names = {p.name for p in (self.run_dir / "checkpoints").glob("*.partial")}
            is_new = len(seen | names) > left and names - seen
            seen.update(names)
            return is_new

        self._wait(launch, begins)
        time.sleep(self.random.uniform(0, 0.03))
        rank, broke = self._any_rank(), launch.is_alive()
        launch.signal(rank)
        there = [p.name for p in (self.run_dir / "checkpoints").glob("*.partial")]
        broke = broke and -signal.SIGKILL in launch.wait()
        return Told(broke, f"rank {rank}, {(there or ['just renamed'])[0]}", self._said("saved "))

    def _kill_in_rollouts(self):
        """Wait for some batch of rollouts to come to that moment, then kill within it."""
        launch, moment = self.start(change="telling"), f"moment: {self.way.removeprefix('in ')}"
        nth = self.random.randrange(1, STEPS // 2)  # two updates on each

        def met():
            text = self.log.read_text(errors="replace") if self.log.exists() else ""
            return text.count(f"{moment}\n") >= nth

        self._wait(launch, met)
        time.sleep(self.random.uniform(0, MOMENT_SECONDS))
        rank, broke = self._any_rank(), launch.is_alive() and met()
        launch.signal(rank)
        broke = broke and -signal.SIGKILL in launch.wait()
        text = f"rank {rank}, batch {nth}, after step {self._steps_done()}"
        return Told(broke, text, self._said("saved "))

    def _damage(self):
        """Cut or turn over something of the newest checkpoint; "" where it is the only one."""
        checkpoints = folder.checkpoints(self.run_dir)
        if len(checkpoints) < 2:
            return ""
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

    def _fill(self):
        """Fill the disk; for the logs from before a block of theirs is full until after it is."""
        launch, logs = self.start(), self.way == "full logs"
        if logs:
            begin = self.random.randrange(1, STEPS // 2)
            self._wait(launch, lambda: self._steps_done() >= begin)
        else:
            self._any_moment(launch)
        ballast, step = self.home / "ballast", self._steps_done()
        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(MIB // 64))
        if logs:
            self._wait(launch, lambda: self._steps_done() >= STEPS - 2)
        else:
            time.sleep(self.random.uniform(0.1, 1.0))
        done, alive = self._steps_done(), launch.is_alive()
        ballast.unlink(missing_ok=True)
        launch.wait()
        text = self.log.read_text(errors="replace")
        broke = ("metrics.jsonl" in text if logs else True) and "No space left" in text
        end = "went on" if alive else "ended"
        return Told(broke, f"from step {step} to {done}; the run {end}", self._said("saved "))

    def _start_another(self):
        """One run is held while another of the same folder begins."""
        launch, log = self.start(), self.home.with_suffix(".second.txt")
        self._any_moment(launch, first=1)
        broke = launch.is_alive()
        for rank in range(self.ranks):
            launch.signal(rank, signal.SIGSTOP)
        second = Launch(self.arguments, self.ranks, log, change="impatient").wait()
        heard = log.read_text()
        for rank in range(self.ranks):
            launch.signal(rank, signal.SIGCONT)
        first = launch.wait()
        broke = broke and self._steps_done() >= 1
        told = f"the first {first}, the second {second}"
        if broke:
            assert 0 not in second, f"a second run was let in: {told}"
            assert "stopped: another run" in heard, f"it was not told why: {heard[-300:]}"
            assert set(first) == {0}, f"a second run ended the first: {told}"
        return Told(broke, told, self._said("saved "))

    def _stop(self):
        launch = self.start()
        self._any_moment(launch, first=1)
        rank, broke = self._any_rank(), launch.is_alive()
        launch.signal(rank, signal.SIGSTOP)
        statuses = launch.wait()
        broke = broke and statuses[rank] == -signal.SIGKILL
        if broke:
            others = [status for n, status in enumerate(statuses) if n != rank]
            assert HUNG in others, f"rank {rank} was stopped, the others ended with {others}"
        return Told(broke, f"rank {rank} after step {self._steps_done()}", self._said("saved "))

    def _cut_power(self):
        launch = self.start(journal=self.journal)
        self._wait(launch, lambda: self._said("saved "))
        self._any_moment(launch)
        broke = launch.is_alive()
        for rank in range(self.ranks):
            launch.signal(rank)
        broke = broke and set(launch.wait()) == {-signal.SIGKILL}
        events = power.read(self.journal)
        if not (broke and events):
            return Told(False, "too late: the run was done")
        if self.way == "names":
            power.keep_names(self.home, events)
            kept = events
        else:
            kept = events[: self.random.randrange(1, len(events) + 1)]
            power.cut(self.home, kept)
        said = [event["said"] for event in kept if "said" in event]
        steps = [int(line[-8:]) for line in said if line.startswith("saved ")]
        return Told(True, f"{len(kept)} of {len(events)} events", steps)


def check(game, reference, told):
    """AssertionError names the loss. reference: the result of `undisturbed`."""
    expected, state = reference
    assert losses(game.run_dir) == expected, "losses differ from those of the undisturbed run"
    newest = folder.newest(game.run_dir)
    assert newest and folder.step_of(newest) == STEPS, "the last step is not saved"
    assert manifest.faults(newest, share=(0, 1)) == [], "the last checkpoint is damaged"
    assert not (wrong := differences(saved_state(newest), state)), f"other values: {wrong}"
    rest = [p.name for p in newest.parent.iterdir() if p.name.endswith(".partial")]
    assert not rest, f"left behind: {rest}"
    sampled = sorted(game.run_dir.glob("rollouts/*"))
    assert not [p for p in sampled if p.name.endswith(".partial")], f"left behind: {sampled}"
    resumed, kept = game._said("resumed from "), told.announced[-1:]
    if game.way == "two runs":  # it was never broken off
        return
    for step in kept:
        assert resumed, f"step {step} was saved, but the run began again"
        assert resumed[0] >= step, f"step {step} was saved, but {resumed[0]} resumed from"


def undisturbed(home, settings, ranks, mutant=""):
    """(losses, weights and moments as they were in memory at the end) of a run left alone."""
    whole = Round("whole", 0, settings, ranks, home / "whole", mutant)
    whole.home.mkdir()
    memory = home / "memory"
    assert whole.start(memory=memory).wait() == [0] * ranks, whole.log.read_text()
    reference = losses(whole.run_dir), memory_of(memory)
    assert [step for step, _ in reference[0]] == list(range(1, STEPS + 1))
    check(whole, reference, Told(False, ""))
    return reference


@contextlib.contextmanager
def disk(path, mib=0):
    """A folder; with `mib` on a small tmpfs. False where this user may not mount one."""
    path.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(path)]
    mounted = (
        mib and os.geteuid() == 0 and not subprocess.run(mount, capture_output=True).returncode
    )
    try:
        yield bool(mounted) or not mib
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(path)], check=True)


def play(
    home,
    rounds,
    seed,
    ranks,
    ways=WAYS,
    at_once=1,
    say=print,
    reference=None,
    mutant="",
    mode="pretrain",
):
    """Play; a Result for each round.

    mode: of the runs, one of broken.MODES. reference: of `undisturbed` in the same home;
    else it is trained first. mutant: a fault of `broken.py` that the runs shall have.
    """
    settings = MODES[mode](home)
    reference = reference or undisturbed(home, settings, ranks)
    with disk(home / "probe", mib=1) as can_mount:
        ways = [way for way in ways if can_mount or way not in ON_SMALL_DISK]
    ways = [way for way in ways if way not in OF_ROLLOUTS or way in MOMENTS.get(mode, ())]

    def play_round(number):
        way = ways[number % len(ways)]
        for attempt in range(TRIES):
            luck, own = f"{seed} {number} {attempt}", home / f"round_{number}_{attempt}"
            with disk(own, 40 if way in ON_SMALL_DISK else 0):
                result = _result(Round(way, luck, settings, ranks, own, mutant), reference)
            if result.broke or result.lost:
                break
        state = result.lost or (f"held, {result.starts} restart" if result.broke else "not broken")
        say(f"{number + 1:>3}  {way:<9} {state:<18} {result.text}")
        if not result.lost:
            shutil.rmtree(own, ignore_errors=True)
        return result

    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(play_round, range(rounds if ways else 0)))


def _result(game, reference):
    told = Told(True, "")
    try:
        told = game.play()
        starts = game.finish()
        check(game, reference, told)
    except Exception as error:
        return Result(game.way, told.broke, f"{type(error).__name__}: {error}", told.text)
    return Result(game.way, told.broke, "", told.text, starts)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--at-once", type=int, default=2, help="rounds played at a time")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, metavar="WAY")
    parser.add_argument("--mode", choices=MODES, default="pretrain", help="of the runs")
    given = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="chaos_"))
    try:
        results = play(
            *(home, given.rounds, given.seed, given.ranks, given.ways, given.at_once, _say),
            mode=given.mode,
        )
    except AssertionError as error:
        print(f"an undisturbed run, of which {home} has the log, loses work: {error}")
        return 1
    broke = Counter(result.way for result in results if result.broke)
    held = Counter(result.way for result in results if result.broke and not result.lost)
    print(f"\n{'way':<9} {'rounds':>6} {'broke':>6} {'held':>5}")
    for way, count in Counter(result.way for result in results).items():
        print(f"{way:<9} {count:>6} {broke[way]:>6} {held[way]:>5}")
    print(f"{'all':<9} {len(results):>6} {broke.total():>6} {held.total():>5}")
    if any(result.lost for result in results) or held.total() < given.rounds:
        print(f"logs of what was lost: {home}")
        return 1
    shutil.rmtree(home)
    return 0


def _say(line):
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
