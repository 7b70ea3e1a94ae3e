"""Published runs as jobs, errors of predictions, and the fit of the constants."""

import csv
import json
import math
from collections import ChainMap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from megatron_qwen3.cli import scaling_study
from megatron_qwen3.cli.scaling import fit as scaling_fit
from megatron_qwen3.planner import accuracy, calibration, fit, published, published_memory
from megatron_qwen3.planner.step import Step

COLUMNS = [
    "row_id",
    "source_repo",
    "release",
    "task",
    "model",
    "gpu",
    "n_gpus",
    "precision",
    "fp8_recipe",
    "gbs",
    "mbs",
    "seq_len",
    "tp",
    "pp",
    "vpp",
    "cp",
    "ep",
    "etp",
    "fsdp",
    "step_time_s",
    "peak_mem_gb",
    "recompute",
    "dispatcher",
    "comm_overlap",
    "cuda_graph",
    "routing",
    "layers_override",
    "notes",
]
BASE = {
    "row_id": "1",
    "source_repo": "NVIDIA-NeMo/Megatron-Bridge",
    "task": "pretrain",
    "model": "Qwen3_30B_a3B",
    "gpu": "H100",
    "n_gpus": "16",
    "precision": "BF16",
    "gbs": "1024",
    "mbs": "1",
    "seq_len": "4096",
    "tp": "1",
    "pp": "1",
    "ep": "16",
    "step_time_s": "20",
}


def row(**changes):
    return dict.fromkeys(COLUMNS, "") | BASE | changes


def write(path, rows):
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model": "Nemotron_3_Super"}, "Mamba layers"),
        ({"model": "Qwen3_Next_80B_a3B"}, "gated delta-rule layers"),
        ({"model": "SomethingElse-7B"}, "shape of SomethingElse-7B is not known"),
        ({"task": "lora"}, "trains adapters"),
        ({"task": "sft"}, "packed texts"),
        ({"notes": "PyTorch-native FSDP2/TP (not mcore)"}, "not by megatron-core"),
        ({"dispatcher": "deepep(config; container lacks DeepEP)"}, "known bad"),
        ({"step_time_s": ""}, "no step time"),
        ({"gbs": "1000"}, "gbs 1000 does not divide"),
        ({"pp": "3"}, "do not divide 16"),
        ({"gpu": "TPU"}, "no GPU named 'tpu'"),
        ({"precision": "MXFP8"}, "H100 does not compute in mxfp8"),
        ({"seq_len": ""}, "seq_len is not published"),
        ({"n_gpus": "-16"}, "n_gpus = -16 is not a whole number above 0"),
        ({"gbs": "inf"}, "gbs = inf is not a whole number"),
        ({"mbs": "1.5"}, "mbs = 1.5 is not a whole number"),
        ({"tp": "auto"}, "tp = auto is not a whole number"),
        ({"tp": "64", "n_gpus": "64", "ep": "1"}, "tp 64 does not divide 32 attention heads"),
        ({"ep": "3", "n_gpus": "48"}, "ep 3 does not divide 128 experts"),
        ({"layers_override": "1e9"}, "layers_override = 1000000000 exceeds"),
        (
            {"model": "DeepSeekV3", "pp": "63", "n_gpus": "63", "ep": "1"},
            "63 · 1 pipeline stages exceed 61 layers",
        ),
        ({"step_time_s": "nan"}, "no step time"),
        ({"step_time_s": "-3"}, "no step time"),
        ({"precision": ""}, "no precision is published"),
        ({"precision": "fp32"}, "precision fp32 is not described"),
        ({"gpu": "my_cluster.toml"}, "no GPU named 'my_cluster.toml'"),
        ({"gpu": "H100 PCIe"}, "no GPU named 'h100 pcie'"),
        ({"model": "Qwen3-Omni-30B-A3B"}, "encoders of images and sound"),
    ],
)
def test_what_cannot_be_compared_is_left_out_with_the_reason(changes, reason):
    run = published.run_of(row(**changes))
    assert run.job is None and reason in run.reason


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"dispatcher": "deepep", "graphs": "none", "overlap_exchange": False}),
        ({"gpu": "GB200", "precision": "MXFP8", "release": "26.06"}, {"graphs": "full"}),
        ({"gpu": "GB200", "precision": "MXFP8", "release": "26.04"}, {"graphs": "partial"}),
        ({"comm_overlap": "ep_a2a_1f1b_overlap+delay_wgrad"}, {"overlap_exchange": True}),
        ({"comm_overlap": "ep_a2a_overlap=False"}, {"overlap_exchange": False}),
        ({"routing": "natural"}, {"force_balanced": False}),
        ({"routing": "force_balanced_dropless"}, {"force_balanced": True}),
        ({"recompute": "selective:moe_act,layernorm"}, {"recompute": {"moe_act", "layernorm"}}),
        ({"recompute": "full"}, {"recompute": {"layer"}}),
        ({"precision": "FP8", "fp8_recipe": "delayed(TE hybrid)"}, {"precision": "fp8"}),
        ({"fsdp": "16"}, {"fully_sharded": True}),
        ({"fsdp": "0"}, {"fully_sharded": False}),
        ({"seq_len": "4,096", "mbs": "1.0"}, {"sequence_length": 4096, "micro_batch": 1}),
        ({"cuda_graph": "False"}, {"graphs": "none"}),
        ({"precision": "FP16"}, {"precision": "bf16"}),
        ({"routing": "tokendrop"}, {"capacity": 1.0}),
        ({"model": "Qwen3_30B_a3B (tokendrop)"}, {"capacity": 1.0}),
        ({"routing": "natural, capacity_factor=1.5"}, {"capacity": 1.5, "force_balanced": False}),
        ({"routing": "force_balanced_dropless"}, {"capacity": 0.0}),
        ({"routing": "token-dropless"}, {"capacity": 0.0}),
        ({"notes": "no token drop"}, {"capacity": 0.0}),
        ({"notes": "without token dropping"}, {"capacity": 0.0}),
        ({"notes": "moe-expert-capacity-factor -1"}, {"capacity": 0.0}),
        ({"notes": "capacity_factor=None"}, {"capacity": 0.0}),
        ({"notes": "capacity factor of 5"}, {"capacity": 5.0}),
        ({"notes": "capacity_factor='1.25'"}, {"capacity": 1.25}),
        ({"notes": "capacity_factor = .5"}, {"capacity": 0.5}),
        ({"notes": "p5.48xlarge, EFA", "dispatcher": "deepep+UCCL(EFA)"}, {"proxy": "uccl"}),
        ({"source_repo": "awslabs/awsome-distributed-ai"}, {"recompute": {"layer"}}),
        (
            {"source_repo": "awslabs/awsome-distributed-ai", "recompute": "none"},
            {"recompute": set()},
        ),
    ],
)
def test_columns_say_how_the_run_was_made(changes, expected):
    job = published.run_of(row(**changes)).job
    assert {name: getattr(job, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("name", "known"),
    [
        *((f"Qwen3_{size}", f"qwen3-{size.lower()}") for size in ("0.6B", "1.7B", "4B", "8B")),
        *((f"qwen3_{size}", f"qwen3-{size}") for size in ("14b", "32b")),
        ("Qwen/Qwen3-14B-Base", "qwen3-14b"),
        ("qwen3_1p7b", "qwen3-1.7b"),
        ("qwen3_600m", "qwen3-0.6b"),
        ("Qwen3 30B-A3B", "qwen3-30b-a3b"),
        ("Qwen3-235B-A22B-Instruct-2507", "qwen3-235b-a22b"),
        ("Llama 3.3 70B", "llama-3-70b"),
        ("DeepSeek V3 w/o MTP", "deepseek-v3"),
    ],
)
def test_a_model_is_known_by_its_whole_size(name, known):
    assert published.architecture_of(name).name == known


@pytest.mark.parametrize("gpu", ["gb200", "GB200 NVL72", "NVIDIA GB200 186GB"])
def test_the_spelling_of_a_gpu_changes_nothing(gpu):
    changes = {"precision": "MXFP8", "release": "26.06", "routing": "force_balanced"}
    runs = [published.run_of(row(gpu=name, **changes)) for name in ("GB200", gpu)]
    assert runs[0] == runs[1] and runs[0].job


def _seconds(**changes):
    run = published.run_of(row(**changes))
    return Step.of(run.job, run.cluster, calibration.load()).seconds


def test_experts_that_are_filled_up_cost_what_they_are_filled_up_to():
    """Known counts spare the host's wait; rows beyond an even load are computed and sent."""
    dropless, cut = _seconds(), _seconds(routing="tokendrop")
    filled = [_seconds(routing=f"capacity_factor={c}") for c in (1, 2, 5)]
    assert cut == filled[0] < dropless < filled[-1] and filled == sorted(filled)


def test_fused_kernels_over_efa_wait_for_each_token_that_leaves_its_node():
    at = {"notes": "p5.48xlarge", "n_gpus": "32", "ep": "32", "mbs": "4", "gbs": "1024"}
    uccl, nvshmem = (_seconds(dispatcher=f"deepep+{p}(EFA)", **at) for p in ("UCCL", "NVSHMEM"))
    run = published.run_of(row(dispatcher="deepep+UCCL(EFA)", **at))
    step = Step.of(run.job, run.cluster, calibration.load())
    assert nvshmem < uccl and step.parts["tokens sent by the host"] > 0
    assert sum(step.parts.values()) == pytest.approx(step.seconds)
    near = published.run_of(row(dispatcher="deepep+UCCL(EFA)", **at | {"n_gpus": "8", "ep": "8"}))
    parts = Step.of(near.job, near.cluster, calibration.load()).parts
    assert parts["tokens sent by the host"] == 0


def test_threads_that_serve_efa_slow_launches_only_where_a_job_leaves_its_node():
    constants = calibration.load()
    slower = constants | {"launch_efa": 2 * constants["launch_efa"]}
    for gpus, is_slower in (("8", False), ("16", True)):
        run = published.run_of(row(notes="p5.48xlarge", n_gpus=gpus, ep="8"))
        one, two = (Step.of(run.job, run.cluster, c).seconds for c in (constants, slower))
        assert (one < two) is is_slower and one <= two


def test_stages_hold_every_layer_and_count_embedding_and_loss_where_that_comes_out_even():
    def split(model, pp, vpp, **more):
        changes = {"model": model, "n_gpus": "1024", "pp": str(pp), "vpp": str(vpp), "ep": "1"}
        return published.run_of(row(**changes, **more)).job.layout.stage_layers

    assert split("LLAMA3.1_405B", 16, 8) == (0, *[1] * 126, 0)
    assert split("Qwen3_235B_a22B", 8, 1) == (11, *[12] * 6, 11)
    assert sum(split("DeepSeekV3", 8, 2)) == 61


@pytest.mark.parametrize(
    ("model", "sequence", "gflop"),  # that the published tables count, causal
    [
        ("Qwen3_235B_a22B", 4096, 148.0),
        ("Qwen3_30B_a3B", 4096, 23.0),
        ("DeepSeekV3", 4096, 260.0),
        ("LLAMA3.1_405B", 8192, 2524.0),
        ("LLAMA3_70B", 8192, 449.0),
        ("LLAMA3_8B", 8192, 51.5),
        ("moonlight_16b_a3b", 4096, 17.16),
    ],
)
def test_shapes_of_published_models_give_the_published_work(model, sequence, gflop):
    found = published.architecture_of(model).flops_per_token(sequence) / 1e9
    assert found == pytest.approx(gflop, rel=4e-3)


def test_memory_units_are_those_of_the_source():
    ours = published.run_of(row(peak_mem_gb="60"))
    theirs = published.run_of(row(peak_mem_gb="60", source_repo="pytorch/torchtitan"))
    assert (ours.peak_bytes, theirs.peak_bytes) == (60e9, 60 * 2**30)


def test_errors_are_relative():
    run = published.run_of(row())
    one = accuracy.ComparedRun(run, step_seconds=22.0)
    assert one.error == pytest.approx(0.1) and one.memory_error is None
    groups = accuracy.groups([one, accuracy.ComparedRun(published.run_of(row(task="lora")))])
    assert groups["all"].count == 1 and groups["Qwen3, tuned, Hopper"].median == one.error


def test_what_is_left_out_is_predicted_by_constants_that_were_fitted_without_it(monkeypatch):
    """Each fit gives the rows that it saw as its constants."""
    runs = [
        published.run_of(row(row_id=str(k), source_repo=source))
        for k, source in enumerate(("a", "b", "b", "c"))
    ]
    predicted = []
    monkeypatch.setattr(fit, "fit", lambda seen, report: {run.row_id: 1.0 for run in seen})
    step = SimpleNamespace(seconds=1)
    monkeypatch.setattr(fit.Step, "of", lambda job, cluster, c: predicted.append({*c}) or step)
    found = fit.left_out_in_turn(runs, lambda run: run.source, report=lambda line: None)
    assert [one.run.row_id for one in found] == ["0", "1", "2", "3"]
    assert predicted == [{"1", "2", "3"}, {"0", "3"}, {"0", "3"}, {"0", "1", "2"}]


def test_a_fit_that_was_stopped_before_its_end_says_so(monkeypatch):
    told = []
    monkeypatch.setattr(fit, "_EVALUATIONS", 1)
    fit.fit([published.run_of(row())], report=told.append)
    assert told[0].endswith("; not at its end after 1 rounds")
    monkeypatch.undo()
    fit.fit([published.run_of(row())], report=told.append)
    assert "not at its end" not in told[1]


def test_slopes_are_those_of_finite_differences_of_every_constant():
    """Constants that pricing a run does not read are not moved; the others are."""
    names = list(calibration.CONSTANTS)
    x = np.log([calibration.load()[name] for name in names])
    run = published.run_of(row())
    constants = dict(zip(names, np.exp(x), strict=True))
    here = math.log(Step.of(run.job, run.cluster, constants).seconds)
    slopes = fit._slopes(run, names, x)
    for name, slope in zip(names, slopes, strict=True):
        moved = constants | {name: constants[name] * math.exp(1e-3)}
        there = math.log(Step.of(run.job, run.cluster, moved).seconds)
        assert slope == pytest.approx((there - here) / 1e-3, abs=1e-9), name


def test_the_fit_finds_constants_that_made_the_data(monkeypatch):
    """Times are made with a faster chip and a slower host; the fit must find both."""
    truth = calibration.load() | {"gemm_hopper_bf16": 0.60, "launch_experts": 3e-3}
    made = []
    for tp, pp, mbs, model in (
        ("1", "1", "1", "Qwen3_30B_a3B"),
        ("1", "1", "4", "Qwen3_30B_a3B"),
        ("2", "1", "1", "Qwen3_30B_a3B"),
        ("1", "2", "1", "Qwen3_30B_a3B"),
        ("1", "1", "1", "LLAMA3_8B"),
        ("4", "1", "2", "LLAMA3_70B"),
    ):
        run = published.run_of(row(tp=tp, pp=pp, mbs=mbs, model=model, ep="8"))
        seconds = Step.of(run.job, run.cluster, truth).seconds
        made.append(published.replace(run, seconds=seconds))
    free = {n: calibration.CONSTANTS[n] for n in ("gemm_hopper_bf16", "launch_experts")}
    rest = {n: v for n, v in truth.items() if n not in free}
    monkeypatch.setattr(fit, "CONSTANTS", free)
    monkeypatch.setattr(fit, "_PRIOR", 1e-6)  # six runs would not outweigh what is expected
    original = Step.of
    monkeypatch.setattr(
        fit.Step, "of", lambda job, cluster, c: original(job, cluster, ChainMap(c, rest))
    )
    found = fit.fit(made, report=lambda line: None)
    assert found == pytest.approx({n: truth[n] for n in free}, rel=0.05)


def test_validate_reports_every_row_or_why_it_is_left_out(tmp_path, capsys):
    path = write(
        tmp_path / "runs.csv", [row(), row(row_id="2", task="lora"), row(row_id="3", tp="2")]
    )
    assert scaling_study.main(["validate", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = {r["row_id"]: r for r in found["rows"]}
    assert set(rows) == {"1", "2", "3"} and "adapters" in rows["2"]["reason"]
    for name in ("1", "3"):
        predicted, given = rows[name]["predicted_step_time_s"], rows[name]["published_step_time_s"]
        assert rows[name]["error"] == pytest.approx(predicted / given - 1)
    assert found["groups"]["all"]["count"] == 2
    assert {"median_abs_error", "p90_abs_error"} <= set(found["groups"]["all"])
    plot = tmp_path / "errors.png"
    assert scaling_study.main(["validate", str(path), "--plot", str(plot)]) == 0
    assert "left out: 1 of 3" in capsys.readouterr().out and plot.exists()


def test_a_table_of_any_program_is_read(tmp_path, capsys):
    """With a byte order mark, blanks, cells missing and too many, columns in another order."""
    columns = ["model", *sorted({*COLUMNS} - {"model"}), "unknown"]
    line = [row().get(name, "") for name in columns]
    short = "Qwen3_30B_a3B,,,"
    lines = [" , ".join(columns), " , ".join([*line, "more", ""]), short]
    path = tmp_path / "runs.csv"
    path.write_text("\n".join(lines), encoding="utf-8-sig")
    assert scaling_study.main(["validate", str(path), "--json"]) == 0
    left_out, known = sorted(json.loads(capsys.readouterr().out)["rows"], key=lambda r: r["row_id"])
    assert left_out["reason"] and known["error"] is not None


def test_what_json_cannot_hold_is_not_printed(tmp_path, capsys):
    odd = [row(**{name: "nan"}) for name in ("step_time_s", "peak_mem_gb", "gbs", "tp")]
    path = write(tmp_path / "runs.csv", odd)
    assert scaling_study.main(["validate", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert len(found["rows"]) == 4


def test_a_fit_prints_its_constants_and_errors_as_json_alone(tmp_path, capsys, monkeypatch):
    def fitted(runs, report):
        report(f"{len(runs)} runs")
        return calibration.load()

    monkeypatch.setattr(scaling_fit, "fit", fitted)
    monkeypatch.setattr(fit, "fit", fitted)
    rows = [row(source_repo=name) for name in ("a", "b")]
    words = ["fit", str(write(tmp_path / "runs.csv", rows)), "--out", str(tmp_path / "c.toml")]
    assert scaling_study.main([*words, "--leave-out", "source", "--json"]) == 0
    printed = capsys.readouterr()
    told = json.loads(printed.out)
    assert told["constants"] == calibration.load() == calibration.load(tmp_path / "c.toml")
    assert [*told["groups"]] == ["fitted to these runs", "fitted without their source"]
    assert told["groups"]["fitted without their source"]["all"]["count"] == 2
    assert "without a" in printed.err and "2 runs" in printed.err
    assert scaling_study.main([*words[:2], "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: --out {tmp_path}: no file can be written there\n"


def test_memory_rows_that_say_too_little_are_left_out_with_the_reason(tmp_path):
    fine = {
        "test_case": "moe",
        "family": "moe",
        "gpu": "H100",
        "mem_max_allocated_gb": "10",
        "num-layers": "12",
        "hidden-size": "512",
        "num-attention-heads": "8",
        "pipeline-model-parallel-size": "2",
        "num-layers-per-virtual-pipeline-stage": "",
    }
    faults = {
        "mem_max_allocated_gb": ("", "no memory peak"),
        "num-layers": ("", "num-layers is not published"),
        "hidden-size": ("wide", "hidden-size = wide is not a whole number"),
        "num-layers-per-virtual-pipeline-stage": ("9", "pipeline stages"),
    }
    rows = [fine, *(fine | {name: value} for name, (value, _) in faults.items())]
    path = tmp_path / "memory.csv"
    with open(path, "w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, [*fine])
        writer.writeheader()
        writer.writerows(rows)
    good, *bad = published_memory.read(path)
    assert published_memory.is_one(path) and good.job
    for run, (_, reason) in zip(bad, faults.values(), strict=True):
        assert run.job is None and reason in run.reason


@pytest.mark.parametrize(
    ("content", "says"), [(None, "cannot be read"), ("a,b\n1,2\n", "no column model")]
)
def test_a_csv_that_is_none_is_told(tmp_path, capsys, content, says):
    path = tmp_path / "runs.csv"
    if content:
        path.write_text(content, encoding="utf-8")
    assert scaling_study.main(["validate", str(path)]) == 2
    assert says in capsys.readouterr().err


PUBLISHED = Path(__file__).parents[2] / "examples" / "planner"


def test_published_runs_are_met_as_the_planners_readme_says():
    runs = published.read(PUBLISHED / "published_perf.csv")
    groups = accuracy.groups(accuracy.compare(runs, calibration.load()))
    assert groups["Qwen3, tuned"].median < 0.08 and groups["Qwen3, tuned"].p90 < 0.20
    peaks = accuracy.compare(published_memory.read(PUBLISHED / "published_memory.csv"), {})
    assert accuracy.groups(peaks, of_memory=True)["all"].median < 0.07
