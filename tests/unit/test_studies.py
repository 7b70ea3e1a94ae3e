"""Studies: files become points, points become runs or job arrays, runs become curves."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ended import told_to_end

from megatron_qwen3.cli import scaling_study
from megatron_qwen3.config import ConfigError, load, to_toml
from megatron_qwen3.model.flops import flops_per_token, parameter_count
from megatron_qwen3.planner import hardware
from megatron_qwen3.planner.calibration import load as load_constants
from megatron_qwen3.planner.job import Job
from megatron_qwen3.planner.step import Step
from megatron_qwen3.studies import efficiency, ladder, local, measurements, slurm, sweep
from megatron_qwen3.studies.files import read

LADDER = """
dir = "{dir}"
[models]
a = ["model.preset=tiny-dense"]
b = ["model.preset=tiny-dense", "model.hidden_size=128"]
[[stages]]
name = "one"
settings = ["data.sequence_length=32", "train.precision=fp32"]
grids = [
    {{ tokens = [4096], lr = [1e-3, 1e-2], global_batch = [4] }},
    {{ models = ["a"], compute = [1e9], lr = [1e-3], global_batch = [8] }},
]
[[stages]]
name = "two"
settings = ["data.sequence_length=32", "train.precision=fp32"]
grids = [{{ tokens = [2048], lr = [1e-4], global_batch = [4] }}]
after = "one"
"""
SWEEP = """
dir = "{dir}"
settings = ["data.sequence_length=32", "train.micro_batch=1"]
gpus = [1, 2, 4, 8]
sequences_per_gpu = 4
global_batch = 16
steps = 10
warm_up_steps = 2
[models]
dense = ["model.preset=tiny-dense"]
moe = ["model.preset=tiny-moe"]
[layouts]
data = []
expert4 = ["parallel.expert=4"]
"""


def study(tmp_path, text, kind, **changes):
    file = tmp_path / "study.toml"
    text = text.format(dir=tmp_path / "runs")
    for old, new in changes.items():
        text = text.replace(old, new)
    file.write_text(text)
    return read(file, kind)


def write_run(point, loss=3.0, seconds=0.1, steps=None):
    """The files of a run."""
    config = point.config
    config.run_dir.mkdir(parents=True, exist_ok=True)
    (config.run_dir / "config.toml").write_text(to_toml(config))
    rows = [
        {"kind": "train", "step": step, "tokens": step * config.step_tokens, "loss": loss}
        | {"step_seconds": seconds if step > 2 else 9.0, "lr": config.optim.lr}
        for step in range(1, (steps or config.steps) + 1)
    ]
    rows.append({"kind": "eval", "step": rows[-1]["step"], "source": "all", "loss": loss + 0.5})
    (config.run_dir / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


def test_a_ladder_is_every_model_length_rate_and_batch_of_its_grids(tmp_path):
    plan = study(tmp_path, LADDER, ladder.Ladder)
    points = ladder.points(plan, plan.stages[0])
    assert sorted(point.name for point in points) == [
        "a-1e+09FLOP-lr0.001-b8", "a-4.10k-lr0.001-b4", "a-4.10k-lr0.01-b4",
        "b-4.10k-lr0.001-b4", "b-4.10k-lr0.01-b4",
    ]  # fmt: skip
    for point in points:
        config = point.config
        assert config.optim.schedule == "cosine"
        assert config.optim.min_lr == pytest.approx(config.optim.lr / 10)
        assert config.run_dir == tmp_path / "runs" / "one" / point.name
        if "4.10k" in point.name:
            assert config.steps * config.step_tokens == 4096
        else:
            spent = flops_per_token(config.model, 32) * config.steps * config.step_tokens
            assert spent == pytest.approx(1e9, rel=0.1)
    assert [point.work for point in points] == sorted(point.work for point in points)


def test_a_later_stage_starts_from_the_best_run_of_the_same_model(tmp_path):
    plan = study(tmp_path, LADDER, ladder.Ladder)
    with pytest.raises(ConfigError, match="stage two: no run of a in stage one is done yet"):
        ladder.points(plan, plan.stages[1])
    for point in ladder.points(plan, plan.stages[0]):
        write_run(point, loss=2.0 if "lr0.01" in point.name else 3.0)
    for point in ladder.points(plan, plan.stages[1]):
        model = point.name[0]
        best = tmp_path / "runs" / "one" / f"{model}-4.10k-lr0.01-b4"
        assert point.config.checkpoint.init_from == str(best)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('models = ["a"]', 'models = ["z"]', "z is no model of the ladder; valid: a, b"),
        ("compute = [1e9]", "tokens = [1e4], compute = [1e9]", "either tokens or compute"),
        ("lr = [1e-3, 1e-2]", 'lr = "1e-3"', r"grids\[0\].lr = \"1e-3\" is not a list of number"),
        ("lr = [1e-4], ", "", r"stages\[1\].grids\[0\].lr is missing"),
        ("after =", "aftr =", "aftr is not known; did you mean after"),
        ("hidden_size=128", "hiden_size=128", "did you mean model.hidden_size"),
        ("tokens = [4096]", "tokens = [100096, 100352]", "two points are named a-100k"),
        ('name = "one"', 'name = "one two"', "is no name for a folder"),
    ],
)
def test_a_wrong_ladder_is_told_where_it_is_wrong(tmp_path, old, new, told):
    with pytest.raises(ConfigError, match=told):
        plan = study(tmp_path, LADDER, ladder.Ladder, **{old: new})
        ladder.points(plan, plan.stages[0])


def test_runs_are_measured_by_held_out_loss_and_by_the_weights_that_multiply(tmp_path):
    plan = study(tmp_path, LADDER, ladder.Ladder)
    for point in ladder.points(plan, plan.stages[0]):
        write_run(point)
    found, left_out = measurements.read([tmp_path / "runs"])
    assert left_out == []
    assert len(found) == 5
    run = next(run for run in found if run.name == "a-4.10k-lr0.01-b4")
    model = load([], ["model.preset=tiny-dense", "train.steps=1"]).model
    norms = 4 * (2 * 64 + 2 * 32) + 64
    assert run.parameters == parameter_count(model) - norms  # tied: the table is the output layer
    assert (run.stage, run.tokens, run.loss) == ("one", 4096, 3.5)
    assert (run.lr, run.batch_tokens) == (1e-2, 128)
    assert run.compute == flops_per_token(model, 32) * 4096


def test_an_unfinished_run_is_not_taken_for_a_whole_one(tmp_path):
    plan = study(tmp_path, LADDER, ladder.Ladder)
    first, second, *_ = ladder.points(plan, plan.stages[0])
    write_run(first, steps=first.config.steps - 1)
    assert not first.is_done
    with pytest.raises(ConfigError, match=r"\d of \d+ steps are done"):
        measurements.read([first.config.run_dir])
    write_run(second)
    runs, left_out = measurements.read([tmp_path / "runs"])
    assert [run.name for run in runs] == [second.name]
    assert left_out == [
        f"{first.config.run_dir}: {first.config.steps - 1} of {first.config.steps} steps are done"
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("parameters,tokens\n1,2\n", "no column loss"),
        ("parameters,tokens,loss\n1e6,x,3\n", "line 2: tokens = 'x' is not a number"),
        ("parameters,tokens,loss\n1e6,1e6,-3\n", "must be finite and above 0"),
        ("parameters,tokens,loss,lr\n1e6,1e6,3,0\n", "lr = 0 must be finite and above 0"),
        ("parameters,tokens,loss,batch_tokens\n1,1,3,inf\n", "batch_tokens = inf must be"),
    ],
)
def test_a_broken_csv_is_told_where_it_is_broken(tmp_path, text, told):
    file = tmp_path / "runs.csv"
    file.write_text(text)
    with pytest.raises(ConfigError, match=told):
        measurements.read([file])
    with pytest.raises(ConfigError, match="neither a CSV nor a folder with a run"):
        measurements.read([tmp_path / "nothing"])


def test_a_csv_of_any_program_is_read(tmp_path):
    file = tmp_path / "runs.CSV"
    file.write_text("parameters , tokens , loss\n1e6 , 1e7 , 3\n", encoding="utf-8-sig")
    ((run,), _) = measurements.read([file])
    assert (run.parameters, run.tokens, run.loss) == (1e6, 1e7, 3)


def test_a_sweep_leaves_out_what_does_not_fit_and_says_why(tmp_path):
    cases, left_out = sweep.plan(study(tmp_path, SWEEP, sweep.Sweep))
    assert len(cases) == 2 * (4 + 4 + 2)
    fitting = {(case.model, case.layout, case.gpus) for case in cases}
    assert ("moe", "expert4", 4) in fitting
    assert ("moe", "expert4", 2) not in fitting
    assert not any(model == "dense" and layout == "expert4" for model, layout, _ in fitting)
    (dense, *_) = [line for line in left_out if line.startswith("dense, expert4, weak")]
    assert dense.startswith("dense, expert4, weak on 1, 2, 4, 8 GPUs: parallel.expert = 4, but")
    assert any("moe, expert4, weak on 2 GPUs: a world of 2 ranks" in line for line in left_out)
    for case in cases:
        batch = 4 * case.gpus if case.scaling == "weak" else 16
        assert case.point.config.train.global_batch == batch
        assert case.point.ranks == case.gpus


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("sequences_per_gpu = 4", "", "sequences_per_gpu must be set for weak scaling"),
        ("global_batch = 16", 'scaling = ["week"]', 'scaling = "week" is not one of weak, strong'),
        ("warm_up_steps = 2", "warm_up_steps = 10", "leaves nothing of steps = 10"),
        ("[1, 2, 4, 8]", "[]", "gpus is empty"),
        ("[1, 2, 4, 8]", "[0]", "a run has at least 1"),
        ("micro_batch=1", "micro_batch=3", "no layout fits any GPU count"),
        ("data = []", '"$(rm)" = []', "is no name for a folder"),
        ("gpus =", 'hardware = "h101"\ngpus =', "did you mean h100"),
    ],
)
def test_a_wrong_sweep_is_told_what_is_wrong(tmp_path, old, new, told):
    with pytest.raises(ConfigError, match=told):
        sweep.plan(study(tmp_path, SWEEP, sweep.Sweep, **{old: new}))


def task_files(script, tasks):
    """The file that each task of an array hands on, by a train.sbatch that prints what it gets."""
    train = script.parent / "checkout/examples/slurm/train.sbatch"
    train.parent.mkdir(parents=True, exist_ok=True)
    train.write_text('printf "%s\\n" "$@"')
    there = {**os.environ, "QWEN3_CHECKOUT": str(script.parent / "checkout")}
    files = []
    for task in range(tasks):
        environment = {**there, "SLURM_ARRAY_TASK_ID": str(task)}
        given = {"env": environment, "cwd": script.parent, "capture_output": True, "text": True}
        files += subprocess.run(["bash", script], check=True, **given).stdout.splitlines()
    return files


def test_job_arrays_hold_each_point_that_is_not_done_once(tmp_path):
    cases, _ = sweep.plan(study(tmp_path, SWEEP, sweep.Sweep))
    done = next(case for case in cases if case.gpus == 8)
    write_run(done.point)
    points = [case.point for case in cases]
    scripts = slurm.write(tmp_path / "runs", points, gpus_per_node=4, options=["--qos=low"])
    listed = []
    for script in scripts:
        gpus = int(script.stem.partition("_")[2])
        text = script.read_text()
        files = task_files(script, text.count("study.toml"))
        assert f"--array=0-{len(files) - 1}\n" in text
        assert f"--nodes={max(1, gpus // 4)}\n" in text
        assert f"--gpus-per-node={min(gpus, 4)}\n" in text
        assert "#SBATCH --qos=low\nset -euo pipefail\n" in text
        listed += files
    assert len(listed) == len(set(listed)) == len({p.config.run_dir for p in points}) - 1
    assert str(done.point.config.run_dir) not in "".join(listed)
    for file in listed:
        assert str(load([file]).run_dir) == str(Path(file).parent)


def test_an_array_that_waits_keeps_its_points_when_it_is_written_again(tmp_path):
    points = [case.point for case in sweep.plan(study(tmp_path, SWEEP, sweep.Sweep))[0]]
    (waiting, *_) = slurm.write(tmp_path / "runs", points, gpus_per_node=4)
    kept = waiting.with_name("as_submitted")
    shutil.copy(waiting, kept)
    before = task_files(kept, 2)
    write_run(points[0])
    slurm.write(tmp_path / "runs", points, gpus_per_node=4)
    assert task_files(kept, 2) == before and len(set(before)) == 2


def test_an_option_that_would_become_a_line_of_the_script_is_refused(tmp_path):
    points = [case.point for case in sweep.plan(study(tmp_path, SWEEP, sweep.Sweep))[0]]
    with pytest.raises(ConfigError, match="is no option of sbatch"):
        slurm.write(tmp_path, points, gpus_per_node=4, options=["--qos=low\nrm"])
    with pytest.raises(ConfigError, match="gpus = 8 cannot be shared evenly by 3 nodes"):
        slurm.write(tmp_path, points, gpus_per_node=3)


def test_a_folders_name_is_never_run_by_a_job_script(tmp_path):
    plan = study(tmp_path, SWEEP, sweep.Sweep, **{'/runs"': '/my runs"'})
    points = [case.point for case in sweep.plan(plan)[0]]
    scripts = slurm.write(tmp_path / '$(touch ran) "', points, gpus_per_node=4)
    (file,) = task_files(scripts[0], 1)
    assert "/my runs/" in file and Path(file).exists()
    assert not list(tmp_path.rglob("ran"))
    with pytest.raises(ConfigError, match="a job script cannot name such a folder"):
        slurm.write(tmp_path / "a\nrm", points, gpus_per_node=4)


def test_a_ladder_is_submitted_stage_by_stage(tmp_path, monkeypatch):
    plan = study(tmp_path, LADDER, ladder.Ladder)
    submitted = []
    monkeypatch.setattr(slurm, "submit", submitted.append)
    command = ["laws", "run", str(tmp_path / "study.toml"), "--submit"]
    assert scaling_study.main(command) == 0
    assert submitted == [tmp_path / "runs" / "one" / "slurm" / "array_1.sbatch"]
    for point in ladder.points(plan, plan.stages[0]):
        write_run(point)
    assert scaling_study.main(command) == 0
    assert submitted[1:] == [tmp_path / "runs" / "two" / "slurm" / "array_1.sbatch"]


def test_a_ladder_that_is_not_to_be_fitted_needs_no_more_than_its_runs(tmp_path, capsys):
    plan = study(tmp_path, LADDER, ladder.Ladder)
    for stage in plan.stages:
        for point in ladder.points(plan, stage):
            write_run(point)
    command = ["laws", "run", str(tmp_path / "study.toml"), "--no-fit"]
    assert scaling_study.main(command) == 0
    assert not list(tmp_path.rglob("laws.html"))
    assert scaling_study.main([*command, "--model", "8b", "--tokens", "1e12"]) == 2
    assert "--no-fit and --model 8b" in capsys.readouterr().err


def test_a_point_that_is_done_is_not_run_again_and_one_that_fails_stops_no_other(
    tmp_path, monkeypatch, capsys
):
    cases, _ = sweep.plan(study(tmp_path, SWEEP, sweep.Sweep))
    points = [case.point for case in cases if case.curve == ("weak", "dense", "data")]
    started = tmp_path / "started"

    def command(point, file):
        broken = point.ranks == 2 and started.read_text().count("\n") < 2
        started.open("a").write(f"{point.name}\n")
        if broken:
            return [sys.executable, "-c", "print('boom'); raise SystemExit(1)"]
        write_run(point)
        return [sys.executable, "-c", ""]

    started.write_text("")
    monkeypatch.setattr(local, "command", command)
    failed = local.run_all(points, "sweep")
    assert [point.ranks for point in failed] == [2]
    assert "dense-data-2gpu-8 FAILED, exit status 1: boom" in capsys.readouterr().err
    assert local.run_all(points, "sweep") == []
    assert len(started.read_text().splitlines()) == len(points) + 1
    err = capsys.readouterr().err
    assert "4 points, 3 of them done before" in err
    assert "left 0:00" in err


def test_a_study_that_is_told_to_end_ends_its_runs(tmp_path, monkeypatch, capsys):
    cases, _ = sweep.plan(study(tmp_path, SWEEP, sweep.Sweep))
    pid = tmp_path / "pid"
    sleeps = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    monkeypatch.setattr(local, "command", lambda point, file: [sys.executable, "-c", sleeps])

    with told_to_end(when=pid), pytest.raises(SystemExit) as end:
        local.run_all([cases[0].point], "sweep")
    assert end.value.code == 143
    assert "stopped; the same command goes on" in capsys.readouterr().err
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_every_rank_of_a_study_has_the_threads_of_those_of_its_largest_point(tmp_path, monkeypatch):
    cases, _ = sweep.plan(study(tmp_path, SWEEP, sweep.Sweep))
    points = [case.point for case in cases if case.curve == ("weak", "dense", "data")]
    assert {point.ranks for point in points} == {1, 2, 4, 8}
    show = "import os; print(os.environ['OMP_NUM_THREADS']); raise SystemExit(1)"
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(local, "cores", lambda: 24)
    monkeypatch.setattr(local, "command", lambda point, file: [sys.executable, "-c", show])
    assert local.run_all(points, "sweep") == sorted(points, key=points.index)
    logs = [point.config.run_dir / "launch.log" for point in points]
    assert {log.read_text() for log in logs} == {"3\n"}


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_as_many_points_run_at_once_as_are_asked_for_and_all_are_run(
    tmp_path, monkeypatch, at_once
):
    cases, _ = sweep.plan(study(tmp_path, SWEEP, sweep.Sweep))
    points = list({case.point.name: case.point for case in cases}.values())
    alive, most, started = set(), [], []

    class Process:
        def __init__(self, point):
            self.point, self.left, self.returncode, self.pid = point, 3, None, 0
            alive.add(point.name)
            most.append(len(alive))
            started.append(point.name)

        def poll(self):
            self.left -= 1
            if not self.left:
                alive.discard(self.point.name)
                self.returncode = 1 if self.point is points[2] else 0
                write_run(self.point)
                (self.point.config.run_dir / "launch.log").write_text("error: a fault\n")
            return self.returncode

        def wait(self):
            return self.returncode

    def start(point, threads):
        assert threads == max(1, local.cores() // (at_once * 8))
        local.write_settings(point)
        return Process(point)

    monkeypatch.setattr(local, "_start", start)
    assert local.run_all(points, "sweep", at_once) == [points[2]]
    assert sorted(started) == sorted(point.name for point in points)
    assert max(most) == at_once


def test_a_run_of_an_older_version_that_lacks_a_setting_is_not_one_of_other_settings(tmp_path):
    (case, *_), _ = sweep.plan(study(tmp_path, SWEEP, sweep.Sweep))
    write_run(case.point)
    file = case.point.config.run_dir / "config.toml"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(line for line in lines if not line.startswith("by = ")))
    assert file.read_text() != "".join(lines)
    assert local.run_all([case.point], "sweep") == []


def test_a_folder_with_a_run_of_other_settings_is_not_overwritten(tmp_path):
    cases, _ = sweep.plan(study(tmp_path, SWEEP, sweep.Sweep))
    write_run(cases[0].point)
    others, _ = sweep.plan(study(tmp_path, SWEEP, sweep.Sweep, **{"length=32": "length=64"}))
    with pytest.raises(ConfigError, match="data.sequence_length: 32 → 64 in the study"):
        local.run_all([others[0].point], "sweep")


GPUS = [1, 2, 4, 8, 16]


@pytest.mark.parametrize(("sigma", "kappa"), [(0.0, 0.0), (0.05, 0.0), (0.02, 0.003)])
def test_the_scalability_law_is_recovered_and_predicts_the_largest_count(sigma, kappa):
    law = efficiency.ScalabilityLaw(1, 1000.0, sigma, kappa)
    rates = [law.tokens_per_second(n) for n in GPUS]
    found = efficiency.fit(GPUS, rates)
    assert (found.one, found.sigma, found.kappa) == pytest.approx((1000, sigma, kappa), abs=1e-6)
    assert efficiency.held_out_error(GPUS, rates) == pytest.approx(0, abs=1e-6)
    if kappa:
        n = found.most_gpus
        assert law.tokens_per_second(n) > max(map(law.tokens_per_second, (0.8 * n, 1.2 * n)))
    assert efficiency.fit(GPUS[:2], rates[:2]) is None


def test_efficiency_counts_the_median_step_after_the_warm_up(tmp_path):
    plan = study(tmp_path, SWEEP, sweep.Sweep)
    cases, _ = sweep.plan(plan)
    for case in cases:  # every further GPU costs a twentieth in weak scaling
        write_run(case.point, seconds=0.1 * (0.95 + 0.05 * case.gpus))
    curves = efficiency.read(cases, plan.warm_up_steps, price_per_gpu_hour=3.6)
    weak = next(c for c in curves if (c.scaling, c.model, c.layout) == ("weak", "dense", "data"))
    expected = [1 / (0.95 + 0.05 * n) for n in (1, 2, 4, 8)]
    assert [row.efficiency for row in weak.rows] == pytest.approx(expected)
    tokens_per_second = 4 * 32 / 0.1
    assert weak.rows[0].tokens_per_second == pytest.approx(tokens_per_second)
    per_token = 3.6 / 3600 / tokens_per_second
    assert weak.rows[0].cost_per_million_tokens == pytest.approx(1e6 * per_token)
    assert weak.law.sigma == pytest.approx(0.05)
    assert weak.held_out_error == pytest.approx(0, abs=1e-6)


def test_the_report_of_a_sweep_has_its_curves_and_what_they_were_measured_on(tmp_path, capsys):
    named = {"steps = 10": 'steps = 10\nhardware = "h100"\nprice_per_gpu_hour = 2.5'}
    plan = study(tmp_path, SWEEP, sweep.Sweep, **named)
    expected = {}
    for case in sweep.plan(plan)[0]:
        write_run(case.point, seconds=0.1 * case.gpus)
        step = Step.of(
            Job.of(case.point.config, case.gpus), hardware.load("h100"), load_constants()
        )
        expected[case.point.name] = step.seconds
    about = {"cores": 2, "processor": "A <b>", "system": "s", "load": 3.14}
    (tmp_path / "runs" / "machine.json").write_text(json.dumps(about))
    file = str(tmp_path / "study.toml")
    assert scaling_study.main(["sweep", file, "--report", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {curve["scaling"] for curve in report["curves"]} == {"weak", "strong"}
    for row in (row for curve in report["curves"] for row in curve["rows"]):
        assert row["predicted_seconds"] == expected[row["name"]]
    page = (tmp_path / "runs" / "scaling.html").read_text()
    assert "Up to 8 ranks shared 2 cores" in page
    assert "A &lt;b&gt;, s; load average 3.1 before the first point" in page
    assert {path.name for path in (tmp_path / "runs" / "scaling").iterdir()} >= {
        "weak_efficiency.png", "strong_efficiency.png", "weak_throughput.png", "cost.png",
        "predicted.png",
    }  # fmt: skip


def test_laws_fit_reads_a_csv_and_writes_a_page_and_an_overlay_that_trains(tmp_path, capsys):
    lines = ["parameters,tokens,loss,lr,batch_tokens"]
    for n in (1e6, 2e6, 4e6, 8e6):
        for d in (2e7, 4e7, 8e7):
            loss = 1.5 + 300 / n**0.4 + 200 / d**0.3
            for factor in (0.5, 1, 2):
                for share in (0.25, 1, 4):
                    worse = 0.01 * np.log(factor) ** 2 + 0.01 * np.log(share) ** 2
                    rate, batch = 30 * n**-0.6 * factor, 0.5 * d**0.6 * share
                    lines.append(f"{n},{d},{loss + worse},{rate},{batch}")
    table, overlay = tmp_path / "runs.csv", tmp_path / "tuned.toml"
    table.write_text("\n".join(lines))
    status = scaling_study.main(
        ["laws", "fit", str(table), "--json", "--model", "0.6b", "--tokens", "1e12"]
        + ["--overlay", str(overlay), "--draws", "5"]
    )
    assert status == 0
    (stage,) = (report := json.loads(capsys.readouterr().out))["stages"]
    assert stage["loss_law"]["alpha"] == pytest.approx(0.4, abs=0.02)
    (advice,) = report["advice"]
    config = load([overlay], ["model.preset=qwen3-0.6b", "train.tokens=1e12"])
    assert config.optim.lr == pytest.approx(30 * advice["parameters"] ** -0.6, rel=0.02)
    assert config.train.global_batch == 2 ** round(np.log2(0.5 * 1e12**0.6 / 4096))
    page = table.with_suffix(".html").read_text()
    assert page.count("<svg") == 7
    assert "times the compute of the largest run; DeepSeek" in page
    assert scaling_study.main(["laws", "fit", str(table), "--json", "--min-tokens", "3e7"]) == 0
    captured = capsys.readouterr()
    (shorter,) = json.loads(captured.out)["stages"]
    assert {run["tokens"] for run in shorter["runs"]} == {4e7, 8e7}
    assert shorter["loss_law"] is None  # two token counts do not determine it
    assert captured.err.count("left out: ") == 4 * 9


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--tokens", "1e9"], "has a --model and --tokens"),
        (["--model", "9b", "--tokens", "1e9"], "neither a size (0.6b"),
        (["--model", "8b", "--tokens", "-1"], "must be above 0"),
        (["--out", "page.pdf"], "ends in .html"),
        ([], "no law can be read from these runs"),
    ],
)
def test_laws_fit_says_what_is_wrong(tmp_path, capsys, arguments, told):
    table = tmp_path / "runs.csv"
    table.write_text("parameters,tokens,loss\n1e6,1e7,3.5\n")
    assert scaling_study.main(["laws", "fit", str(table), *arguments]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("file", sorted(Path("examples/studies").glob("*.toml")), ids=str)
def test_every_study_in_the_examples_can_be_read(file):
    if "data" in file.stem:
        load([file], ["model.preset=tiny-dense", "train.steps=1"])
    elif file.stem.startswith("sweep"):
        assert len(sweep.plan(read(file, sweep.Sweep))[0]) > 8
    else:
        plan = read(file, ladder.Ladder)
        assert len(ladder.points(plan, plan.stages[0])) > 8


def test_studies_and_their_commands_load_no_torch():
    modules = "files local slurm sweep efficiency ladder measurements parametric isoflop tuning"
    code = "import sys, megatron_qwen3.cli.scaling_study\n"
    code += "".join(
        f"import megatron_qwen3.studies.{name}\n" for name in [*modules.split(), "laws"]
    )
    code += "sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
