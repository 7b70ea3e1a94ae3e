"""The parts of the reproduction run when those that they need are done, once, and go on."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from ended import told_to_end

from data_prep.lifetime import Stopped
from examples.reproduce import parts as declared
from examples.reproduce.plan import SIZES, Plan
from examples.reproduce.running import Children, Part, done, run
from megatron_qwen3.config import ConfigError


def touch(path):
    return ("python", "-c", f"open({str(path)!r}, 'x').close()")


def part(name, path, *needs):
    return Part(name, name, needs, (touch(path),), 1.0)


def test_a_part_runs_after_those_that_it_needs_and_not_again(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    copies = f"open({str(second)!r}, 'x').write(open({str(first)!r}).read())"
    every = [
        Part("b", "b", ("a",), (("python", "-c", copies),), 1.0),
        part("a", first),
    ]
    said = []
    assert run(every, tmp_path / "out", 2, said.append) == []
    assert second.exists() and any("minutes left" in line for line in said)
    assert run(every, tmp_path / "out", 2, said.append) == []  # "x" would fail


def test_a_part_that_fails_holds_up_those_that_need_it_alone(tmp_path):
    bad = Part("bad", "bad", (), (("python", "-c", "raise SystemExit('no such thing')"),), 1.0)
    every = [bad, part("after", tmp_path / "after", "bad"), part("other", tmp_path / "other")]
    said = []
    assert run(every, tmp_path / "out", 1, said.append) == ["bad", "after"]
    assert (tmp_path / "other").exists() and not (tmp_path / "after").exists()
    assert any("failed" in line and "no such thing" in line for line in said)
    good = [part("bad", tmp_path / "bad"), *every[1:]]
    assert run(good, tmp_path / "out", 1, said.append) == []


def test_a_part_that_was_stopped_goes_on_with_the_command_that_failed(tmp_path):
    bad = ("python", "-c", f"open({str(tmp_path / 'second')!r}).close()")
    two = Part("two", "two", (), (touch(tmp_path / "first"), bad), 1.0)
    assert run([two], tmp_path / "out", 1, print) == ["two"]
    assert done(tmp_path / "out", two) is None
    (tmp_path / "second").touch()
    assert run([two], tmp_path / "out", 1, print) == []  # "x" of the first would fail
    assert len(done(tmp_path / "out", two)["cpu_seconds"]) == 2


def run_until_it_is_there(pid, part, out):
    """A run that is told to stop as soon as the file has something in it."""
    with told_to_end(when=pid), pytest.raises(Stopped):
        run([part], out, 1, print)


def test_a_stop_ends_what_runs_and_the_next_start_goes_on(tmp_path):
    pid = tmp_path / "pid"
    sleeps = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    part = Part("a", "a", (), (touch(tmp_path / "x"), ("python", "-c", sleeps)), 1.0)

    run_until_it_is_there(pid, part, tmp_path / "out")
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    assert len(json.loads((tmp_path / "out/parts/a.json").read_text())["cpu_seconds"]) == 1


def ends(pid, within):
    """Whether the process is gone in that many seconds; a zombie is: nobody may wait for it."""
    state, deadline = Path(f"/proc/{pid}/stat"), time.monotonic() + within
    while time.monotonic() < deadline:
        try:
            if state.read_text().split()[2] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.02)
    return False


def test_a_stop_ends_what_a_command_has_started(tmp_path):
    """As examples.reproduce.until starts trainings."""
    pid = tmp_path / "pid"
    starts = (
        "import subprocess; child = subprocess.Popen(['sleep', '60']); "
        f"open({str(pid)!r}, 'w').write(str(child.pid)); child.wait()"
    )
    part = Part("a", "a", (), (("python", "-c", starts),), 1.0)

    run_until_it_is_there(pid, part, tmp_path / "out")
    assert ends(int(pid.read_text()), within=10)


def test_a_command_that_begins_after_a_stop_is_ended(tmp_path):
    children = Children()
    with pytest.raises(KeyboardInterrupt), children.ended_by_signals():
        raise KeyboardInterrupt
    child = subprocess.Popen(["sleep", "60"], start_new_session=True)
    children.add(child)
    assert child.wait(10) == -signal.SIGTERM


def test_a_part_made_by_other_commands_is_refused(tmp_path):
    run([part("a", tmp_path / "x")], tmp_path, 1, print)
    with pytest.raises(ConfigError, match="a was made by other commands"):
        run([part("a", tmp_path / "y")], tmp_path, 1, print)


def test_a_note_that_is_no_note_is_refused(tmp_path):
    run([part("a", tmp_path / "x")], tmp_path, 1, print)
    (tmp_path / "parts" / "a.json").write_text("{}")
    with pytest.raises(ConfigError, match="delete it"):
        done(tmp_path, part("a", tmp_path / "x"))


def test_notes_have_times_of_every_command(tmp_path):
    burn = ("python", "-c", "sum(i * i for i in range(10 ** 6))")
    run([Part("a", "a", (), (burn, burn), 1.0)], tmp_path, 1, print)
    note = json.loads((tmp_path / "parts" / "a.json").read_text())
    assert len(note["cpu_seconds"]) == 2 and all(seconds > 0 for seconds in note["cpu_seconds"])


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_every_part_needs_parts_that_stand_before_it(tmp_path, size):
    every = declared.parts(size, tmp_path, (1, 2))
    names = [each.name for each in every]
    assert len(set(names)) == len(names)
    for place, each in enumerate(every):
        assert set(each.needs) <= set(names[:place]), each.name


def test_a_stage_that_warms_up_for_less_than_a_tenth_does_so(tmp_path):
    plan = Plan(SIZES["full"], tmp_path, seed=1)
    assert "optim.warmup_steps=5" in plan.train("student", "distill_2_on_policy", 320)
    assert "optim.warmup_steps=24" in plan.train("teacher", "base_1_facts", 240)


def test_every_stage_is_of_settings_that_there_are(tmp_path):
    """Each training of every part is what the trainer takes, at every size."""
    from megatron_qwen3.config import load

    for size in SIZES.values():
        for each in declared.parts(size, tmp_path, (1,)):
            for command in each.commands:
                if command[:2] == ("mq3", "train"):
                    files = [word for word in command[2:] if "=" not in word]
                    load(files, [word for word in command[2:] if "=" in word])
