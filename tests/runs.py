"""Runs of tests in any mode: how one is started, read and cut off.

run_ranks(run, 2, arguments(settings, home))     # in home / "run"
rows(home / "run", "train")
run_ranks(power_cut, 2, arguments(settings, home), 4)
"""

import contextlib
import io
import json

from megatron_qwen3 import train
from megatron_qwen3.convert import load
from megatron_qwen3.training import engine
from megatron_qwen3.training.hang import Heartbeat


def arguments(settings, home, *more):
    """The command line of a run in a folder of its own."""
    return [*settings, f"run.dir={home}", "run.name=run", *more]


def run(arguments):
    return train.main(arguments)


def told_by(arguments):
    """The exit status of a run, and its messages, in one line."""
    with contextlib.redirect_stdout(io.StringIO()) as told, contextlib.redirect_stderr(told):
        try:
            status = train.main(arguments)
        except SystemExit as error:
            status = error.code
    return status, " ".join(told.getvalue().split())


def rows(run_dir, kind="train"):
    """The rows of a kind in the metrics of a run."""
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


def paused_loads(arguments):
    """Of each model that a run loads beside its own, whether a hang is looked for meanwhile."""
    hearts, looks, enter, fill = [], [], Heartbeat.__enter__, load.fill

    def noting(self):
        hearts.append(self)
        return enter(self)

    def looking(*args, **more):
        looks.extend(not heart._pauses for heart in hearts)
        return fill(*args, **more)

    Heartbeat.__enter__, load.fill = noting, looking
    assert train.main(arguments) == 0
    return looks


def power_cut(arguments, at_step):
    """Like a run that is killed in step `at_step`."""
    train_step, done = engine.Engine.train_step, []

    def stopping(self, *args):
        done.append(None)
        if len(done) == at_step:
            raise OSError("power cut")
        return train_step(self, *args)

    engine.Engine.train_step = stopping
    return train.main(arguments)
