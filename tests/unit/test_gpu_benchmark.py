"""benchmarks/gpu.py: results so far are on the disk, no case can end the others, aims are right."""

import inspect
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from ranks import forkserver

sys.path[:0] = [str(Path(__file__).resolve().parents[2] / "benchmarks")]

import gpu
from on_gpu import ours, page, plan, runner, wheels
from on_gpu.aims import DENSE_SHARE, FP8_TIMES, SPARSE_SHARE, aims
from on_gpu.cases import CPU, Case, LeftOut, Options, Report
from on_gpu.record import Record
from on_gpu.runner import Runner
from on_gpu.steps import slice_that_fits

from megatron_qwen3.config import load
from megatron_qwen3.model.flops import flops_per_token
from megatron_qwen3.planner.job import Job
from megatron_qwen3.planner.memory import Memory
from megatron_qwen3.settings import ConfigError


def finds(options, report, number):
    report.note(number=number, device=options.device)
    report.check("off", number, 2.0)


def raises(options, report):
    report.note(before=1)
    raise RuntimeError("a wrong turn")


def dies(options, report):
    report.note(before=1)
    os._exit(7)


def hangs(options, report):
    child = subprocess.Popen(["sleep", "1000"])
    report.note(before=1, child=child.pid)
    time.sleep(1000)


def is_left_out(options, report):
    raise LeftOut("not on this chip")


def sees(options, report):
    report.note(hidden=os.environ.get("CUDA_VISIBLE_DEVICES"), process=os.getpid())


def has_ended(pid):
    """Within the time that a busy machine needs; nobody may have asked how it ended."""
    try:
        process = psutil.Process(pid)
        if process.status() != psutil.STATUS_ZOMBIE:
            process.wait(60)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return False
    return True


def case(function, part="part", name="", **settings):
    seconds = settings.pop("seconds", 300)
    where = settings.pop("where", "gpu")
    after = settings.pop("after", ())
    run = f"{__name__}:{function.__name__}"
    return Case(part, name or function.__name__, run, settings, seconds, where=where, after=after)


@pytest.fixture
def ran(tmp_path):
    """Runs cases; (entries of the record's file by name, the order in which cases ended)."""

    def run(cases, seconds=600.0, how="one way"):
        record, ended = Record.begun(tmp_path / "out", {"how": how}), []
        told = lambda case, known: ended.append(case.name)  # noqa: E731
        options = Options("cpu", True, tmp_path)
        Runner(options, record, seconds, tmp_path / "log", forkserver, told).run(cases)
        return json.loads(record.path.read_text())["parts"].get("part", {}), ended

    return run


def test_what_a_case_found_is_on_the_disk_and_a_number_above_its_limit_fails(ran):
    found, ended = ran([case(finds, name="low", number=1.5), case(finds, name="high", number=3.0)])
    assert ended == ["low", "high"]
    assert found["low"]["values"] == {"number": 1.5, "device": "cpu"}
    assert found["low"]["status"] == "passed" and found["high"]["status"] == "failed"
    assert found["high"]["why"] == "off is 3, at most 2 was expected"
    nan, _ = ran([case(finds, name="nan", number=float("nan"))])
    assert nan["nan"]["status"] == "failed" and nan["nan"]["checks"]["off"]["value"] == "nan"


@pytest.mark.parametrize(
    ("function", "status", "why"),
    [
        (raises, "error", "RuntimeError: a wrong turn"),
        (dies, "died", "ended with status 7"),
        (hangs, "timed out", "its limit"),
    ],
)
def test_a_case_that_ends_badly_keeps_what_it_found_and_the_rest_goes_on(
    ran, function, status, why
):
    bad = case(function, seconds=0.3 if function is hangs else 300)
    found, ended = ran([bad, case(finds, name="next", number=1)])
    assert ended == [function.__name__, "next"] and found["next"]["status"] == "passed"
    known = found[function.__name__]
    assert known["status"] == status and why in known["why"] and known["values"]["before"] == 1
    if function is hangs:
        assert has_ended(known["values"]["child"]), "what it started lives on"


def test_a_case_that_is_left_out_says_why_and_keeps_its_process(ran):
    found, _ = ran([case(sees, name="a"), case(is_left_out), case(sees, name="b")])
    assert found["is_left_out"]["status"] == "left out"
    assert found["is_left_out"]["why"] == "not on this chip"
    assert found["a"]["values"]["process"] == found["b"]["values"]["process"] != os.getpid()


def test_a_case_of_the_cpu_sees_no_gpu_and_the_others_see_what_there_is(ran):
    spawned = [case(sees, name="hidden", where=CPU), case(sees)]
    found, _ = ran(spawned)
    assert found["hidden"]["values"]["process"] != found["sees"]["values"]["process"]
    before = dict(os.environ)
    with runner._environment({"CUDA_VISIBLE_DEVICES": ""}):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert dict(os.environ) == before


def test_a_case_waits_for_what_it_needs(ran):
    needing = case(finds, name="needing", number=1, after=("raises",))
    content = case(finds, name="content", number=1, after=("first",))
    found, _ = ran([case(finds, name="first", number=1), case(raises), needing, content])
    assert found["needing"]["status"] == "not begun" and "raises" in found["needing"]["why"]
    assert found["content"]["status"] == "passed"


def test_all_time_is_never_exceeded(ran, monkeypatch):
    monkeypatch.setattr(runner, "LEAST_SECONDS", 0.0)
    begin = time.monotonic()
    found, _ = ran([case(hangs), case(finds, name="later", number=1)], seconds=3.0)
    assert time.monotonic() - begin < 3.0 + runner._KILL_SECONDS
    assert found["hangs"]["status"] == "timed out" and "all time" in found["hangs"]["why"]
    assert found["later"]["status"] == "not begun"


def test_a_cpu_is_given_more_time_for_a_case_than_a_gpu(tmp_path):
    record = Record.begun(tmp_path, {})
    patience = {
        device: Runner(Options(device, True, tmp_path), record, 1.0, tmp_path, None, print).patience
        for device in ("cpu", "cuda")
    }
    assert patience == {"cpu": runner.PATIENCE_OF_CPU, "cuda": 1.0}


def test_what_is_not_worth_a_beginning_is_not_begun(ran):
    long = replace(case(finds, number=1), least_seconds=1e6)
    found, _ = ran([long])
    assert found["finds"]["status"] == "not begun"


def test_a_later_call_runs_what_is_not_over(ran, tmp_path):
    ran([case(finds, name="done", number=1), case(raises)])
    record = Record.begun(tmp_path / "out", {"how": "one way"})
    record.begin(case(finds, name="interrupted"))
    cases = [case(finds, name=name, number=1) for name in ("done", "interrupted", "new")]
    found, ended = ran([*cases, case(raises)])
    assert ended == ["interrupted", "new"]
    assert found["interrupted"]["status"] == "passed"


def test_what_a_later_case_needs_is_run_again(ran):
    needed, idle = case(finds, name="needed", number=1), case(finds, name="idle", number=1)
    ran([needed, idle])
    _, ended = ran([needed, idle, case(finds, name="new", number=1, after=("needed",))])
    assert ended == ["needed", "new"]


def test_a_record_of_other_options_is_refused(ran, tmp_path):
    ran([case(finds, number=1)])
    with pytest.raises(ConfigError, match="choose another --out"):
        ran([], how="another way")
    (tmp_path / "out" / "gpu.json").write_text('{"parts": 3}')
    with pytest.raises(ConfigError, match="no record of this program"):
        ran([])


def steps(**tflops):
    """Parts of a record: a bf16 ceiling of 800, and steps by name with _ for blanks."""
    made = {name.replace("_", " "): {"values": {"tflops": value}} for name, value in tflops.items()}
    return {"ceilings": {"bf16": {"values": {"best_tflops": 800.0}}}, "steps": made}


def of(parts):
    return [(aim["value"], aim["is_met"]) for aim in aims(parts)]


def test_aims_are_shares_of_the_ceiling_and_the_fastest_recipe_times_bf16():
    assert (DENSE_SHARE, SPARSE_SHARE, FP8_TIMES) == (0.60, 0.40, 1.3)
    parts = steps(**{
        "8b te bf16": 500.0, "8b torch bf16": 400.0, "8b te tensorwise": 600.0,
        "8b te delayed": 700.0, "30b-a3b torch bf16": 240.0,
    })  # fmt: skip
    assert of(parts) == [(0.625, True), (pytest.approx(0.3), False), (1.4, True)]
    assert [aim["of"] for aim in aims(parts)] == [
        "8b te bf16",
        "30b-a3b torch bf16",
        "8b te delayed / 8b te bf16",
    ]


def test_an_aim_that_was_not_measured_is_neither_met_nor_missed():
    assert of({}) == [(None, None)] * 3
    assert of(steps(**{"8b te tensorwise": 600.0})) == [(None, None)] * 3
    parts = steps(**{"8b te bf16": 480.0})
    assert of(parts) == [(0.6, True), (None, None), (None, None)]
    assert of({"steps": parts["steps"]}) == [(None, None)] * 3


def test_steps_whose_losses_are_not_finite_meet_no_aim():
    parts = steps(**{"8b te bf16": 500.0, "8b torch bf16": 400.0})
    parts["steps"]["8b te bf16"]["checks"] = {"losses that are not finite": {"passes": False}}
    assert of(parts)[0] == (0.5, False)


def test_the_plan_names_functions_that_are_there_and_tells_each_what_it_takes():
    cases = plan.cases(tuple(plan.PARTS))
    assert {case.part for case in cases} == set(plan.PARTS)
    assert len({(case.part, case.name) for case in cases}) == len(cases)
    for each in cases:
        inspect.signature(each.function).bind(None, None, **each.settings)
        before = [other.name for other in cases[: cases.index(each)] if other.part == each.part]
        assert set(each.after) <= set(before), each.name


def test_the_page_tells_what_was_found_and_what_went_wrong():
    parts = steps(**{"8b te bf16": 500.0})
    parts["steps"]["8b te bf16"]["values"] |= {
        "layers": 14, "of_layers": 36, "step_seconds": 0.5, "tokens_per_second": 12345.6,
        "peak_bytes": 3 << 30, "planned_bytes": 2 << 30,
    }  # fmt: skip
    parts["machine"] = {"machine": {"values": {"chip": "NVIDIA H200", "cores": 16}}}
    checks = {
        "near": {"value": 0.9, "at_most": 1.0, "passes": True},
        "far": {"value": "nan", "at_most": 1.0, "passes": False},
    }
    parts["correct"] = {
        "dense te bf16": {"status": "failed", "why": "far is nan", "checks": checks},
        "other": {"status": "left out", "why": "not installed"},
    }
    text = page.markdown(parts, aims(parts), "A machine")
    assert "| 8b te bf16 | 14 of 36 | 500 | 12,346 | 500 | 62% | 51% | 3.0 | 2.0 |  |" in text
    assert "| dense 8B, bf16: share of the measured product | 0.60 | 0.62 | pass |" in text
    assert "| correct: dense te bf16 | 2 | far | nan | 1 | failed |" in text
    assert text.index("| failed | far is nan") < text.index("| left out | not installed")
    assert "chip NVIDIA H200" in text and page.data_sheet(parts).name == "H200"


@pytest.mark.parametrize("preset", ["qwen3-8b", "qwen3-30b-a3b", "qwen3-0.6b"])
def test_a_part_of_a_model_fits_and_does_the_work_of_its_layers(preset):
    config = load([], [f"model.preset={preset}", "train.steps=1", "data.sequence_length=4096"])
    whole = flops_per_token(config.model, 4096)
    for most in (60e9, 120e9, 1e15):
        found = slice_that_fits(config, most)
        layers, vocabulary = found["model.num_layers"], found["model.vocab_size"]
        part = replace(config.model, num_layers=layers, vocab_size=vocabulary)
        assert Memory.of(Job.of(replace(config, model=part), 1)).total <= most
        share = layers / config.model.num_layers
        assert flops_per_token(part, 4096) == pytest.approx(share * whole, rel=2e-3)
    assert part == config.model, "all of it, where there is room"
    with pytest.raises(LeftOut, match="not one layer fits"):
        slice_that_fits(config, 1e8)


def wheel(folder, package, tag="py3-none-any"):
    """A wheel of one module."""
    path = folder / f"{package}-1.0-{tag}.whl"
    info = f"{package}-1.0.dist-info"
    files = {
        f"{package}/__init__.py": "HERE = True\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n",
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n",
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


def test_wheels_bring_what_is_missing_and_leave_what_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("PYTHONPATH", "first")
    for package in ("surely_missing_package", "pytest"):
        wheel(tmp_path, package)
    site = tmp_path / "site"
    assert wheels.provide(tmp_path, site) == ["surely_missing_package-1.0-py3-none-any.whl"]
    assert sys.path[-1] == str(site) and not (site / "pytest").exists()
    wheels.pass_on([str(site)])
    code = (
        "import surely_missing_package as p, pytest; assert p.HERE and not hasattr(pytest, 'HERE')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert wheels.provide(tmp_path, site) == []


def test_of_several_pythons_wheels_this_ones_are_taken_and_where_there_is_none_it_is_named(
    tmp_path,
):
    wheel(tmp_path, "surely_other", "cp27-cp27m-win32")
    with pytest.raises(ConfigError, match=r"surely_other-1.0-cp27-cp27m-win32.whl is for another"):
        wheels.provide(tmp_path, tmp_path / "site")
    wheel(tmp_path, "surely_other")
    assert wheels.provide(tmp_path, tmp_path / "site") == ["surely_other-1.0-py3-none-any.whl"]
    assert (tmp_path / "site/surely_other/__init__.py").is_file()


def test_what_cannot_be_asked_of_the_command_is_one_line_before_anything_runs(tmp_path, capsys):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "gpu.json").write_text("[]")
    (tmp_path / "file").touch()
    (tmp_path / "cut-1.0-py3-none-any.whl").write_text("cut short")
    tiny = ["--device", "cpu", "--tiny", "--parts", "machine", "--out", str(tmp_path / "out")]
    wrong = {
        "--minutes 0": "--minutes: 0 must be above 0",
        "--minutes nan": "nan must be above 0",
        "--parts machne": "no part 'machne'; valid: machine, kernels",
        "--only 9b": "--only '9b' is in the name of no case; cases: machine, transformer engine",
        "--device cuda --stand-in": "--stand-in is of --device cpu",
        f"--out {tmp_path}/file": "cannot be written to (File exists)",
        f"--out {tmp_path}/file/below": "cannot be written to (Not a directory)",
        f"--out {broken}": "is no record of this program",
        f"--wheels {tmp_path}/file": "is no folder",
        f"--wheels {tmp_path}/nowhere": "is no folder",
        f"--wheels {broken}": "there is no wheel in it",
        f"--wheels {tmp_path}": "cut-1.0-py3-none-any.whl is broken (File is not a zip file)",
    }
    for words, told in wrong.items():
        status = status_of([*tiny, *words.split()])
        said = capsys.readouterr().err
        assert status == 2 and said.startswith("error: ") and said.count("\n") == 1, said
        assert told in said
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/gpu.json").write_text(
        json.dumps({"how": {"device": "cpu", "tiny": False, "stand_in": False}, "parts": {}})
    )
    assert status_of(tiny) == 2
    assert "made with tiny False, now True; choose another --out" in capsys.readouterr().err


def status_of(words):
    """Of the command; its handler of SIGTERM goes with it."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        return gpu.main(words)
    except SystemExit as ended:
        return ended.code
    finally:
        signal.signal(signal.SIGTERM, before)


def test_without_a_gpu_the_command_says_so_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert status_of(["--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: no GPU can be used (") and "--device cpu --tiny" in said
    assert not (tmp_path / "out").exists()  # a record says what a GPU did


@pytest.mark.parametrize("count", [0, 3])
def test_a_case_of_graphs_fails_where_none_was_captured(count):
    report = Report(lambda message: None)
    graphs = SimpleNamespace(count=count, news=lambda: ["a line"] * bool(count))
    ours.check_captured(SimpleNamespace(graphs=graphs), report)
    assert bool(report.failed) is (count == 0)


def test_a_folder_without_wheels_and_a_broken_wheel_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no wheel in it"):
        wheels.provide(tmp_path, tmp_path / "site")
    with zipfile.ZipFile(tmp_path / "broken-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("surely_broken/__init__.py", "")
    with pytest.raises(ConfigError, match="pip refused"):
        wheels.provide(tmp_path, tmp_path / "site")


def test_what_stands_in_for_kernels_is_there():
    root = Path(__file__).resolve().parents[2]
    assert (root / f"{runner.STAND_IN.replace('.', '/')}.py").is_file()
