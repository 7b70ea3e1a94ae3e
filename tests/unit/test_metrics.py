"""A run's reports; and a run killed at any byte leaves a record that the next one mends."""

import contextlib
import json
import math
import os
import pty
import statistics
import subprocess
import sys
import types

import pytest

from megatron_qwen3.bar import duration
from megatron_qwen3.config import ConfigError, load
from megatron_qwen3.model.flops import flops_per_token
from megatron_qwen3.parallel.layout import Layout
from megatron_qwen3.training import boards, row_file
from megatron_qwen3.training.console import Clock, count
from megatron_qwen3.training.history import RunHistory
from megatron_qwen3.training.metrics import EvalResult, RunLog, TaskResult, combine, speed
from megatron_qwen3.training.metrics_file import MetricsError

STEP = {"loss": 2.5, "grad_norm": 0.8}


@pytest.fixture
def config_of(tmp_path):
    def build(*overrides):
        base = ["model.preset=tiny-dense", "train.steps=20", "data.sequence_length=128"]
        is_rl = "run.mode=rl" in overrides
        base.append("rollouts.max_new_tokens=64" if is_rl else 'data.sources=[{name="a",path="a"}]')
        return load([], [*base, f"run.dir={tmp_path}", "log.tensorboard=false", *overrides])

    return build


def open_log(config, first_step=0, is_writer=True):
    return RunLog(config, Layout.of(config, 1), first_step, is_writer)


def rows_of(config):
    return [json.loads(line) for line in (config.run_dir / "metrics.jsonl").open()]


def train_steps(config, steps, first_step=0):
    with open_log(config, first_step) as log:
        for step in range(first_step + 1, steps + 1):
            log.train(step, STEP | {"loss": 10.0 - step}, 1e-3, 0.5)


def test_a_step_is_on_disk_with_all_its_numbers_before_the_log_is_closed(config_of):
    config = config_of("train.global_batch=4")
    log = open_log(config)
    log.train(3, STEP, 1e-3, seconds=0.25)
    (row,) = rows_of(config)
    log.close()
    assert row["kind"] == "train"
    assert row["step"] == 3
    assert row["tokens"] == 3 * 4 * 128
    assert row["loss"] == 2.5
    assert row["lr"] == 1e-3
    assert row["step_seconds"] == 0.25
    assert row["tokens_per_second"] == 4 * 128 / 0.25
    assert "mfu" not in row


def test_ranks_that_do_not_write_leave_no_trace(config_of, capsys):
    config = config_of()
    with open_log(config, is_writer=False) as log:
        log.train(1, STEP, 1e-3, 0.5)
        log.evaluation(1, {"a": EvalResult(2.0, None, 10)})
        log.note("hello")
    assert not config.run_dir.exists()
    assert capsys.readouterr().out == ""


def test_mfu_is_the_work_of_one_rank_over_its_peak(config_of):
    config = config_of("log.peak_tflops=100", "train.global_batch=16")
    row = speed(config, world_size=4, seconds=2.0)
    tokens_of_a_rank_per_second = 16 * 128 / 2.0 / 4
    flops = flops_per_token(config.model, 128) * tokens_of_a_rank_per_second
    assert row["tflops_per_rank"] == pytest.approx(flops / 1e12)
    assert row["mfu"] == pytest.approx(flops / 100e12)


def test_a_resumed_run_keeps_the_steps_of_its_checkpoint_and_repeats_none(config_of):
    config = config_of()
    train_steps(config, 9)
    with open_log(config, first_step=6) as log:
        log.evaluation(6, {"a": EvalResult(2.0, None, 10)})
    train_steps(config, 8, first_step=6)
    rows = rows_of(config)
    assert [row["step"] for row in rows if row["kind"] == "train"] == list(range(1, 9))
    assert {row["source"] for row in rows if row["kind"] == "eval"} == {"a", "all"}


def test_a_run_that_starts_afresh_keeps_nothing_of_an_earlier_one(config_of):
    config = config_of()
    train_steps(config, 5)
    train_steps(config, 2)
    assert [row["step"] for row in rows_of(config)] == [1, 2]


@pytest.mark.parametrize("torn", [1, 40, 10_000])
def test_a_last_line_torn_by_a_crash_is_dropped_wherever_it_tears(config_of, torn):
    config = config_of()
    train_steps(config, 5)
    path = config.run_dir / "metrics.jsonl"
    whole = path.read_bytes()
    start_of_last = whole[:-1].rindex(b"\n") + 1
    path.write_bytes(whole[: min(start_of_last + torn, len(whole) - 2)])
    assert RunHistory.read(config.run_dir).steps == 4
    train_steps(config, 6, first_step=5)
    assert [row["step"] for row in rows_of(config)] == [1, 2, 3, 4, 6]


def test_a_line_that_is_no_row_inside_the_file_is_an_error_and_leaves_the_file(config_of):
    config = config_of()
    train_steps(config, 3)
    path = config.run_dir / "metrics.jsonl"
    damaged = path.read_text().replace('{"kind"', "{kind", 1)
    path.write_text(damaged)
    with pytest.raises(MetricsError, match=r"metrics\.jsonl, line 1"):
        open_log(config, first_step=2)
    assert path.read_text() == damaged


def test_all_sources_together_are_scored_as_one_text():
    """Two texts of known bytes: 100 tokens, 500 bytes, 1 nat each; 300 tokens, 600 bytes, 3."""
    parts = [
        EvalResult(1.0, 100 * 1.0 / math.log(2) / 500, 100),
        EvalResult(3.0, 300 * 3.0 / math.log(2) / 600, 300),
    ]
    whole = combine(parts)
    assert whole.tokens == 400
    assert whole.loss == pytest.approx(1000 / 400)
    assert whole.bits_per_byte == pytest.approx(1000 / math.log(2) / 1100)
    assert combine([parts[0], EvalResult(1.0, None, 5)]).bits_per_byte is None


def test_the_time_left_ignores_the_first_step_and_a_single_slow_one():
    clock = Clock(steps=100)
    clock.tick(60.0)
    assert clock.left(1) is None
    for seconds in (1.0, 1.2, 30.0, 1.1, 0.9):
        clock.tick(seconds)
    assert clock.left(6) == pytest.approx(94 * statistics.median([1.0, 1.2, 30.0, 1.1, 0.9]))
    assert clock.left(100) == 0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "–"), (0, "0:00"), (59.6, "1:00"), (222, "3:42"), (3723, "1:02:03"), (1e5, "1d 03h")],
)
def test_durations_read_like_a_clock(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(7, "7"), (999.4, "999"), (999.6, "1.00k"), (12_345, "12.3k"), (999_600, "1.00M")]
    + [(36e12, "36.0T"), (99_960, "100k")],
)
def test_counts_have_three_digits(number, text):
    assert count(number) == text


def test_a_log_file_gets_the_first_the_last_and_every_nth_step(config_of, capsys):
    config = config_of("log.every_steps=8", "log.peak_tflops=1")
    with open_log(config) as log:
        for step in range(1, 21):
            metrics = STEP | {"expert_balance": 1.31, "grad_norm": 0.83}
            log.train(step, metrics, 3e-4, 9.0 if step == 1 else 2.0)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["1/20", "2/20", "8/20", "16/20", "20/20"]
    assert "\x1b" not in "".join(lines)
    for part in ("loss 2.5000", "grad 0.83", "lr 3.0e-04", "512 tok/s", "MFU", "experts 1.31×"):
        assert part in lines[2]
    assert lines[1].endswith("left 0:36") and lines[2].endswith("left 0:24")
    assert len({line.index("loss") for line in lines}) == 1


def test_held_out_losses_are_shown_by_source_and_together(config_of, capsys):
    with open_log(config_of()) as log:
        log.evaluation(20, {"web [b]": EvalResult(2.0, 1.25, 10), "code": EvalResult(1.0, 0.5, 30)})
        log.evaluation(20, {})
    header, web, code, both = capsys.readouterr().out.splitlines()
    assert "step 20" in header
    assert web.split()[:3] == ["web", "[b]", "2.0000"]
    assert "1.2500 bits/byte" in web
    assert "1.0000" in code
    assert both.split()[:2] == ["all", "1.2500"]


def test_a_terminal_gets_a_bar_with_lines_above_it_and_its_cursor_back(config_of, monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    reader, writer = pty.openpty()
    with os.fdopen(writer, "w") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        with open_log(config_of()) as log:
            log.train(1, STEP, 1e-3, 1.0)
            log.train(2, STEP, 1e-3, 3.0)
            log.note("checkpoint [bold] of step 2 saved")
        monkeypatch.undo()
    written = b""
    with contextlib.suppress(OSError):  # the terminal is closed: all of it was read
        while piece := os.read(reader, 1 << 16):
            written += piece
    os.close(reader)
    shown = written.decode()
    assert "━" in shown
    assert "2/20" in shown
    assert "left 0:54" in shown
    assert "checkpoint [bold] of step 2 saved\r\n" in shown
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")


def test_a_file_soon_has_a_line_with_the_time_left(config_of, capsys):
    with open_log(config_of("log.every_steps=10")) as log:
        for step in range(1, 13):
            log.train(step, STEP, 1e-3, 3.0)
    lines = [line for line in capsys.readouterr().out.splitlines() if "step" in line]
    assert [line.split()[1] for line in lines] == ["1/20", "2/20", "10/20"]
    assert "left –" in lines[0] and "left 0:54" in lines[1]


def test_tensorboard_shows_the_scalars_of_steps_and_evaluations(config_of):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = config_of("log.tensorboard=true")
    with open_log(config) as log:
        log.train(1, STEP, 1e-3, 0.5)
        log.evaluation(1, {"a": EvalResult(2.0, None, 10)})
    events = EventAccumulator(str(config.run_dir / "tensorboard"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {"train/loss", "train/lr", "train/tokens_per_second", "eval/a/loss"} <= tags
    assert "eval/a/bits_per_byte" not in tags
    assert events.Scalars("train/loss")[0].value == 2.5


@pytest.mark.parametrize(
    ("package", "setting"), [("wandb", "wandb_project=qwen"), ("tensorboard", "tensorboard=true")]
)
def test_a_log_without_its_package_is_told_before_any_rank_starts(
    config_of, monkeypatch, package, setting
):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setenv("WANDB_MODE", "offline")
    told = rf"log\.{setting.split('=')[0]} = .* pip install {package}, or set log\."
    with pytest.raises(ConfigError, match=told):
        boards.check(config_of(f"log.{setting}"))
    boards.check(config_of())


def test_a_resumed_run_goes_on_in_the_same_wandb_run(config_of, monkeypatch):
    started, logged = [], []

    def init(**settings):
        started.append(settings)
        run = types.SimpleNamespace(id=settings["id"] or f"id{len(started)}", log=logged.append)
        run.define_metric, run.finish = (lambda *names, **axis: None), (lambda: None)
        return run

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    config = config_of("log.wandb_project=qwen")
    train_steps(config, 2)
    train_steps(config, 3, first_step=2)
    train_steps(config, 1)
    assert [settings["id"] for settings in started] == [None, "id1", None]
    assert [row["step"] for row in logged] == [1, 2, 3, 1]
    assert logged[0]["train/loss"] == 9.0


@pytest.fixture
def no_wandb_account(monkeypatch, tmp_path):
    """wandb is installed, and nobody has logged in."""
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(__spec__="found"))
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return tmp_path / "netrc"


def test_wandb_without_a_key_is_told_before_any_rank_starts(
    config_of, monkeypatch, no_wandb_account
):
    config = config_of("log.wandb_project=qwen")
    with pytest.raises(ConfigError, match=r'wandb_project = "qwen", but W&B has no key here'):
        boards.check(config)
    no_wandb_account.write_text("machine elsewhere.org login user password abc\n")
    with pytest.raises(ConfigError, match="no key here"):
        boards.check(config)
    no_wandb_account.write_text("machine api.wandb.ai login user password abc\n")
    boards.check(config)
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.here.org")
    with pytest.raises(ConfigError, match="no key here"):
        boards.check(config)
    monkeypatch.setenv("WANDB_API_KEY", "abc")
    boards.check(config)
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("WANDB_MODE", "offline")
    boards.check(config)
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("RANK", "3")  # it does not log, and its node need not know the key
    boards.check(config)


def test_wandb_that_cannot_be_reached_is_logged_offline_and_never_ends_a_run(
    config_of, monkeypatch, capsys
):
    asked = []

    def init(**settings):
        asked.append(settings.get("mode"))
        if "mode" not in settings:
            raise ConnectionError("timed out\nafter 90 s")
        log = lambda row: 1 / (2 - row["step"])  # noqa: E731
        run = types.SimpleNamespace(id="a", log=log, finish=lambda: None)
        run.define_metric = lambda *names, **axis: None
        return run

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    config = config_of("log.wandb_project=qwen")
    train_steps(config, 3)
    told = capsys.readouterr().out
    assert asked == [None, "offline"]
    assert "W&B: timed out after 90 s; the run is logged offline" in told
    assert told.count("the run goes on without it") == 1
    assert len(rows_of(config)) == 3


@pytest.fixture
def small_disk(tmp_path):
    """A full tmpfs of 64 KiB as a run folder, and the file that fills it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk needs the right to mount a tmpfs")
    try:
        yield disk, disk / "ballast"
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_is_said_once_and_costs_no_row(small_disk):
    disk, ballast = small_disk
    told = []
    rows = row_file.RowFile(disk / "rows", told.append)
    for number in range(1500):  # more than the disk takes, in steps that its pages do not divide
        rows.write(json.dumps({"row": number, "text": "x" * 60}))
    assert len(told) == 1 and "No space left on device" in told[0] and "the run goes on" in told[0]
    written = (disk / "rows").read_bytes()
    assert written.endswith(b"\n")
    assert [row["row"] for row in map(json.loads, written.splitlines())] == list(
        range(written.count(b"\n"))
    )
    subprocess.run(["mount", "-o", "remount,size=1m", str(disk)], check=True)
    rows.write("{}")
    assert told[1:] == [f"{disk / 'rows'} is written again"]
    rows.close()
    assert (disk / "rows").read_bytes().count(b"\n") == 1501


def test_rows_that_no_memory_keeps_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(row_file, "_MOST_KEPT_BYTES", 10)
    told = []
    rows = row_file.RowFile(tmp_path / "rows", told.append)

    def full(data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rows, "_append", full)
    for row in ("aaaa", "bbbb", "cccc"):
        rows.write(row)
    rows.close()
    assert told[-1] == f"{tmp_path / 'rows'}: 3 rows are lost, they could not be written"


def test_tensorboard_whose_disk_is_full_is_told_and_tried_again(config_of, monkeypatch, capsys):
    opened = []

    class Writer:
        def __init__(self, folder, purge_step):
            opened.append(purge_step)

        def add_scalar(self, name, value, step):
            if step == 2:
                raise OSError(28, "No space left on device")

        def close(self):
            raise OSError(28, "No space left on device")

    import torch.utils.tensorboard

    monkeypatch.setattr(torch.utils.tensorboard, "SummaryWriter", Writer)
    monkeypatch.setattr(boards, "_RETRY_SECONDS", 0.0)
    config = config_of("log.tensorboard=true")
    train_steps(config, 4)
    assert opened == [1, 3] and len(rows_of(config)) == 4
    assert "TensorBoard: [Errno 28] No space left on device; tried" in capsys.readouterr().out


ROLLOUTS = {
    **{"batch": 2, "reward": 0.25, "pass_rate": 0.5, "length": 90.0, "truncated": 0.125},
    **{"zero_groups": 0.25, "age": 0.0, "rollout_tokens_per_second": 1200.0, "seconds": 8.0},
}


def rl_config(config_of, *overrides):
    tasks = "rollouts.tasks=[{name='sums', path='gym:chain_sum'}]"
    own = ["run.mode=rl", tasks, "rl.updates=2"]
    return config_of(*own, *overrides)


def test_a_batch_of_rollouts_is_a_row_and_a_line_of_its_own(config_of, capsys):
    config = rl_config(config_of)
    with open_log(config) as log:
        log.rollouts(5, ROLLOUTS)
        log.train(5, STEP | {"entropy": 0.5, "clip_share": 0.02}, 1e-3, 0.5, tokens=100)
    batch, step = rows_of(config)
    assert batch == {"kind": "rollouts", "step": 5, **ROLLOUTS}
    assert step["tokens_per_second"] == 200
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("batch  3/10  reward 0.2500  right 50.0 %  cut 12.5 %  alike 25.0 %")
    assert "entropy 0.50  clipped 2.0 %" in told[1]
    run = RunHistory.read(config.run_dir)
    assert run.rollouts["reward"].tolist() == [0.25] and run.column("loss").tolist() == [2.5]


def test_a_batch_that_servers_sampled_is_told_with_what_their_weights_took(config_of, capsys):
    servers = {"refit/seconds": 0.25, "refit/restarts": 2.0, "refit/difference": 3e-6}
    config = rl_config(config_of)
    with open_log(config) as log:
        log.rollouts(5, ROLLOUTS | servers)
    assert rows_of(config)[0]["refit/difference"] == 3e-6
    assert capsys.readouterr().out.rstrip().endswith("weights in 0.25 s  servers started again 2")


def test_a_batch_of_which_nothing_is_known_is_told_without_it(config_of, capsys):
    config = rl_config(config_of)
    with open_log(config) as log:
        log.rollouts(1, dict.fromkeys(ROLLOUTS) | {"batch": 0, "seconds": 1.0})
    (row,) = rows_of(config)
    assert row["reward"] is None and row["length"] is None
    told = capsys.readouterr().out.strip()
    assert told == "batch  1/10  0 tok/s  sampled in 0:01"


def test_a_resumed_run_drops_batches_of_which_no_update_is_saved(config_of):
    config = rl_config(config_of)
    with open_log(config) as log:
        for step in range(1, 7):
            if step % 2:
                log.rollouts(step, ROLLOUTS | {"batch": step // 2})
            log.train(step, STEP, 1e-3, 0.5)
    with open_log(config, first_step=4):
        pass
    rows = [(row["kind"], row["step"]) for row in rows_of(config)]
    assert rows == [
        (k, s) for s in range(1, 5) for k in ("rollouts", "train") if k == "train" or s % 2
    ]


def test_lines_of_batches_come_as_seldom_as_those_of_their_steps(config_of, capsys):
    config = rl_config(config_of, "log.every_steps=4")
    with open_log(config) as log:
        for step in range(1, 13):
            if step % 2:
                log.rollouts(step, ROLLOUTS | {"batch": step // 2})
            log.train(step, STEP, 1e-3, 0.5)
    told = [" ".join(line.split()[:2]) for line in capsys.readouterr().out.splitlines()]
    assert told == [
        *("batch 1/10", "step 1/20", "step 2/20", "batch 2/10", "step 4/20"),
        *("batch 4/10", "step 8/20", "batch 6/10", "step 12/20"),
    ]


def test_the_time_left_knows_batches_and_updates_apart():
    """7 of 20 steps done, two on each batch: 13 updates of 1 s, and 6 batches of 60 s."""
    clock = Clock(20, updates=2)
    for step in range(1, 8):
        if step % 2:
            clock.sampled(600.0 if step == 1 else 60.0)
        assert (clock.left(step - 1) is None) == (step < 3)
        clock.tick(100.0 if step == 1 else 1.0)
    assert clock.left(7) == 13 + 6 * 60
    assert clock.left(8) == 12 + 6 * 60
    assert clock.left(20) == 0


def test_held_out_tasks_are_told_and_put_together_by_their_answers(config_of, capsys):
    config = rl_config(config_of)
    with open_log(config) as log:
        log.evaluation(
            4,
            {
                "sums": TaskResult(0.5, 0.5, 100.0, 0.0, 30),
                "chats": TaskResult(1.5, None, 300.0, 0.4, 10),
            },
        )
    whole = rows_of(config)[-1]
    assert whole["source"] == "all" and whole["answers"] == 40
    assert whole["reward"] == 0.75 and whole["pass_rate"] == 0.5
    assert whole["length"] == 150 and whole["truncated"] == pytest.approx(0.1)
    told = capsys.readouterr().out
    assert "right 50.0 %" in told and "over 40 answers" in told
