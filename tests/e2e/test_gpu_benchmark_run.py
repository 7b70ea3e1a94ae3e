"""benchmarks/gpu.py runs its parts for real, at the sizes of a test on a CPU."""

import argparse
import json
import sys
from pathlib import Path

import pytest
from ranks import forkserver

sys.path[:0] = [str(Path(__file__).resolve().parents[2] / "benchmarks")]

import gpu
from on_gpu import plan


def run(folder, *arguments):
    """(exit status, record, page) of the command, whose children are forked."""
    out = folder / "out"
    given = gpu.parser().parse_args(["--device=cpu", "--tiny", f"--out={out}", *arguments])
    status = gpu.run(given, folder, forkserver)
    return status, json.loads((out / "gpu.json").read_text()), (out / "gpu.md").read_text()


@pytest.fixture
def environment(monkeypatch):
    """As it is; the command tells its children more."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("PYTHONPATH", "")


def statuses(record):
    return {
        f"{part}: {name}": (case["status"], case.get("why"))
        for part, cases in record["parts"].items()
        for name, case in cases.items()
    }


def test_a_small_model_is_held_to_a_reference_and_a_second_call_has_nothing_to_do(
    environment, tmp_path
):
    arguments = "--parts=correct,ceilings", "--only=dense torch bf16"
    status, record, page = run(tmp_path, *arguments)
    found = statuses(record)
    names = "correct: dense reference", "correct: dense torch bf16"
    assert status == 0 and found == dict.fromkeys(names, ("passed", None)), found
    checks = record["parts"]["correct"]["dense torch bf16"]["checks"]
    assert {"scores, rows", "scores, documents", "gradients", "losses"} <= checks.keys()
    assert "| correct: dense torch bf16 |" in page
    assert [aim["is_met"] for aim in record["aims"]] == [None] * 3
    again = run(tmp_path, *arguments)
    assert again[0] == 0 and again[1] == record


def test_what_a_machine_cannot_is_left_out_with_the_reason(environment, tmp_path):
    status, record, page = run(tmp_path, "--parts=kernels,steps", "--only=te bf16")
    found = statuses(record)
    assert status == 0 and {told for told, _ in found.values()} == {"left out"}
    assert 'model.kind = "te", but torch sees no GPU' in found["steps: 8b te bf16"][1]
    assert "| steps: 8b te bf16 | left out |" in page


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_part_runs(environment, tmp_path):
    status, record, page = run(tmp_path, f"--parts={','.join(plan.PARTS)}", "--minutes=20")
    found = statuses(record)
    assert status == 0, found
    assert {name for name, (told, _) in found.items() if told == "passed"} == {
        *("machine: machine", "ceilings: bf16", "ceilings: fp8", "ceilings: copies"),
        *(f"correct: {model} reference" for model in ("dense", "moe")),
        *(f"correct: {model} torch {p}" for model in ("dense", "moe") for p in ("bf16", "fp32")),
        *(f"steps: {size} {way} bf16" for size in plan.SHAPES for way in ("torch", "transformers")
          if f"steps: {size} {way} bf16" in found),
        "tests: tests/gpu",
    }  # fmt: skip
    assert {told for told, _ in found.values()} == {"passed", "left out"}
    assert record["aims"][0]["value"] is not None and "| 8b torch bf16 |" in page


def test_the_command_line_refuses_what_it_does_not_know(capsys):
    with pytest.raises(SystemExit):
        gpu.parser().parse_args(["--parts=machine,nothing"])
    assert "no part 'nothing'; valid: machine, kernels" in capsys.readouterr().err
    assert isinstance(gpu.parser().parse_args([]), argparse.Namespace)
