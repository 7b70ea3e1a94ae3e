"""The search for layouts, and the command line around it."""

import dataclasses
import itertools
import json
import math

import pytest
from matplotlib.axes import Axes

from megatron_qwen3.cli import scaling_study
from megatron_qwen3.config import ConfigError, load
from megatron_qwen3.pages import plan_pictures
from megatron_qwen3.parallel.layout import Layout
from megatron_qwen3.planner import calibration, candidates, hardware, overlay, quick, search
from megatron_qwen3.planner.job import Job
from megatron_qwen3.planner.memory import Memory
from megatron_qwen3.planner.question import Question, ask, usual_batch
from megatron_qwen3.planner.why_none import why_none

CONSTANTS = calibration.load()
STAGE = "examples/stages/pretrain_1_general.toml"


def question_of(name, gpu, gpus, batch, sequence=4096, **more):
    model = load([], [f"model.preset={name}", "train.steps=1"]).model
    return Question(model, hardware.load(gpu), gpus, sequence, batch, **more)


@pytest.fixture(scope="module")
def sparse():
    question = question_of("qwen3-30b-a3b", "h100", 16, 256)
    return question, search.search(question, CONSTANTS)


def test_plans_fit_are_ranked_and_differ(sparse):
    question, plans = sparse
    assert len(plans) >= 10 and all(plan.fits for plan in plans)
    assert all(plan.memory.total <= question.cluster.memory_bytes for plan in plans)
    rates = [plan.step.tokens_per_second_per_gpu for plan in plans]
    assert rates == sorted(rates, reverse=True)
    assert len(
        {(p.job.layout, p.recompute, tuple(p.needs), p.job.micro_batch) for p in plans}
    ) == len(plans)
    assert any(not plan.needs for plan in plans)


@pytest.mark.parametrize(
    ("length", "contexts"), [(4096, (1,)), (32768, (1, 2, 4)), (16386, (1, 2))]
)
def test_no_layout_of_a_small_cluster_is_overlooked(length, contexts):
    """Every layout that the trainer accepts on 4 GPUs is among the candidates, and no other; rows
    that are no multiple of 4 are for one rank."""
    question = question_of("qwen3-30b-a3b", "h100", 4, 8, length)
    found = {
        (
            *(j.layout.tensor, j.layout.pipeline, j.layout.virtual, j.layout.context),
            *(j.layout.expert, j.micro_batch),
        )
        for j in candidates.candidates(question)
        if j.layout.expert_tensor == 1
    }
    every = (
        *((1, 2, 4), (1, 2, 4), (1, 2, 3, 4, 6, 8, 12), contexts),
        *((1, 2, 4, 8), (1, 2, 4, 8)),
    )
    few = [s for s in itertools.product(*every) if not 4 % math.prod((s[0], s[1], s[3]))]
    assert found == {sizes for sizes in few if _accepts(length, *sizes)}


def _accepts(length, tensor, pipeline, virtual, context, expert, micro_batch):
    overrides = [
        "model.preset=qwen3-30b-a3b",
        "train.steps=1",
        "train.global_batch=8",
        f"data.sequence_length={length}",
        f"parallel.context={context}",
        f"train.micro_batch={micro_batch}",
        f"parallel.tensor={tensor}",
        f"parallel.pipeline={pipeline}",
        f"parallel.virtual_pipeline={virtual}",
        f"parallel.expert={expert}",
    ]
    try:
        Layout.of(load([], overrides), 4)
    except ConfigError:
        return False
    return True


def test_the_settings_of_a_plan_train_that_very_layout(sparse, tmp_path):
    question, plans = sparse
    plan = next(plan for plan in plans if not plan.needs)
    overlay.write(plan, question, tmp_path / "plan.toml")
    config = load([STAGE, tmp_path / "plan.toml"])
    job = Job.of(config, question.gpus)
    assert job == dataclasses.replace(plan.job, force_balanced=job.force_balanced)
    assert Memory.of(job) == plan.memory


def test_a_plan_whose_ranks_share_rows_is_todays_and_its_settings_train_it(tmp_path):
    question = question_of("qwen3-8b", "h100", 8, 64, 32768, fixed=(("context", 4),))
    plan = search.search(question, CONSTANTS)[0]
    assert plan.job.layout.context == 4 and not plan.needs
    overlay.write(plan, question, tmp_path / "plan.toml")
    assert Job.of(load([STAGE, tmp_path / "plan.toml"]), 8) == plan.job


def test_what_has_to_be_installed_is_said_and_set(tmp_path):
    question = question_of("qwen3-30b-a3b", "b200", 16, 16, 32768, dispatchers=("deepep",))
    plan = search.search(question, CONSTANTS)[0]
    assert plan.needs == ["DeepEP", "Transformer Engine"]
    text = overlay.text(plan, question)
    assert "To be installed for it: DeepEP, Transformer Engine." in text
    (tmp_path / "plan.toml").write_text(text, encoding="utf-8")
    config = load([STAGE, tmp_path / "plan.toml"])
    assert config.parallel.dispatch == "deepep" and config.model.kind == "te"
    assert Job.of(config, 16).kernels == plan.job.kernels == "transformer_engine"


@pytest.mark.parametrize(
    ("name", "gpu", "precision"),
    [
        ("qwen3-8b", "h100", "fp8"),
        ("qwen3-30b-a3b", "b200", "mxfp8"),
        ("qwen3-30b-a3b", "gb300", "nvfp4"),
    ],
)
def test_a_plan_in_low_precision_is_trained_so_and_fits(name, gpu, precision, tmp_path):
    question = question_of(name, gpu, 8, 256, precisions=(precision,), dispatchers=("alltoall",))
    plan = search.search(question, CONSTANTS)[0]
    assert plan.job.precision == precision and plan.needs == ["Transformer Engine"]
    assert plan.is_plain and "To be installed for it: Transformer E" in overlay.text(plan, question)
    overlay.write(plan, question, tmp_path / "plan.toml")
    config = load([STAGE, tmp_path / "plan.toml"])
    assert config.train.precision == "bf16" and config.fp8.is_on
    job = Job.of(config, 8)
    assert job == plan.job and Memory.of(job) == plan.memory
    assert Memory.of(job).total <= search.usable_bytes(question.cluster)


def test_layouts_whose_shares_a_recipe_cannot_multiply_are_no_candidates():
    """736 columns are 23 times the 32 that mxfp8 scales together: no two ranks can share them."""
    question = question_of("qwen3-30b-a3b", "b200", 32, 64, precisions=("bf16", "mxfp8"))
    question = dataclasses.replace(
        question, model=dataclasses.replace(question.model, expert_ffn_hidden_size=736)
    )
    widths = {"bf16": set(), "mxfp8": set()}
    for job in candidates.candidates(question):
        widths[job.precision].add(job.layout.expert_tensor)
    assert widths == {"bf16": {1, 2, 4}, "mxfp8": {1}}


@pytest.mark.parametrize(
    ("name", "gpus", "sequence", "every"),
    [
        ("qwen3-235b-a22b", 256, 4096, 211),
        ("qwen3-235b-a22b", 48, 4096, 29),
        ("qwen3-32b", 96, 32768, 29),
        ("qwen3-0.6b", 8, 131072, 3),
    ],
)
def test_the_quick_estimate_of_memory_is_near_the_exact_one(name, gpus, sequence, every):
    """Also where stages differ, and where the last one's logits need most."""
    question = question_of(name, "h100", gpus, 4 * gpus, sequence, precisions=("bf16", "fp8"))
    for job in list(candidates.candidates(question))[::every]:
        exact = Memory.of(job)
        ranks = [Memory.of_rank(job, rank) for rank in range(job.layout.pipeline)]
        assert exact == max(ranks, key=lambda memory: memory.total)
        assert quick.quick_bytes(job) == pytest.approx(exact.total, rel=0.12)


@pytest.mark.parametrize(
    ("name", "gpus"), [("qwen3-30b-a3b", 8), ("qwen3-235b-a22b", 64), ("qwen3-235b-a22b", 48)]
)
def test_a_layout_that_fits_narrowly_is_found_and_none_that_does_not(name, gpus):
    question = question_of(name, "h100", gpus, 32 * gpus, fixed=(("micro_batch", 1), ("tensor", 4)))
    jobs = [
        dataclasses.replace(job, recompute=parts)
        for job in candidates.candidates(question)
        for parts in search.RECOMPUTED.values()
    ]
    usable = search.usable_bytes(question.cluster)
    fits = any(Memory.of(job).total <= usable for job in jobs)
    plans = search.search(question, CONSTANTS)
    assert bool(plans) == fits and any(not plan.needs for plan in plans) == fits
    assert fits == (Memory.of(search.least_memory(question)[0]).total <= usable)
    found = search.fewest_gpus(question)
    assert Memory.of(found[1]).total <= usable


def run(capsys, *arguments):
    status = scaling_study.main(list(arguments))
    return status, capsys.readouterr()


def test_plan_writes_settings_and_says_everything_in_json(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["plan", "--model", "8b", "--gpu", "h100", "--gpus", "8", "--json"]
    status, printed = run(capsys, *arguments, "--out", "plan.toml")
    found = json.loads(printed.out)
    best = found["plans"][found["chosen"]]
    assert status == 0 and [path.name for path in tmp_path.iterdir()] == ["plan.toml"]
    assert sum(best["step_parts_seconds"].values()) == pytest.approx(best["step_seconds"])
    parts = dict(best["memory_bytes"])
    assert parts.pop("total") == pytest.approx(sum(parts.values()))
    assert best["mfu"] == pytest.approx(best["tflops_per_gpu"] / best["peak_tflops"])
    tokens = best["tokens_per_second_per_gpu"] * 8 * best["days"] * 86_400
    assert tokens == pytest.approx(1e12) and best["gpu_hours"] == pytest.approx(
        best["days"] * 24 * 8
    )


def test_plan_draws_a_picture_and_prints_a_table(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["plan", "--model", "0.6b", "--gpu", "a100", "--gpus", "2", "--top", "3"]
    status, printed = run(capsys, *arguments, "--plot", "plan.png")
    assert status == 0 and "tok/s/GPU" in printed.out
    assert [path.name for path in tmp_path.iterdir()] == ["plan.png"]
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")


def test_plan_writes_nothing_that_nobody_asked_for_and_says_how_to_ask(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    status, printed = run(capsys, "plan", "--model", "0.6b", "--gpu", "a100", "--gpus", "2")
    assert status == 0 and "--out plan.toml" in printed.out and not list(tmp_path.iterdir())


def test_plan_leaves_out_what_is_to_be_installed_unless_it_is_asked_for_it(capsys):
    """DeepEP pays for experts over two nodes, so its layouts are there where they may be."""
    arguments = ["plan", "--model", "30b-a3b", "--gpu", "h100", "--gpus", "16", "--json"]
    needs = []
    for more in ([], ["--hypothetical"]):
        _, printed = run(capsys, *arguments, *more)
        needs.append({name for plan in json.loads(printed.out)["plans"] for name in plan["needs"]})
    assert needs == [set(), {"DeepEP", "Transformer Engine"}]


def test_a_picture_of_plans_has_no_colour_for_two_things(sparse, tmp_path, monkeypatch):
    """Of both halves: the parts of memory and time."""
    drawn, barh = set(), Axes.barh

    def noted(self, *bars, color, label, **more):
        drawn.add((label, color))
        return barh(self, *bars, color=color, label=label, **more)

    monkeypatch.setattr(Axes, "barh", noted)
    question, plans = sparse
    plan_pictures.draw(question, plans, tmp_path / "plans.svg")
    labels, colours = ({*names} for names in zip(*drawn, strict=True))
    assert len(drawn) == len(labels) == len(colours) > 12


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model", "235b-a22b", "--gpus", "16"], "does not fit: even the leanest layout"),
        (["--model", "235b-a22b", "--gpus", "16"], "the fewest that fit, doubling: 64 GPUs"),
        (["--model", "8b", "--gpus", "8", "--tp", "3"], "tensor = 3 does not; with the rest"),
        (["--model", "8b", "--gpus", "8", "--tp", "16"], "valid near it: 2, 4, 8"),
        (["--model", "9b", "--gpus", "8"], "neither a size"),
        (["--model", "8b", "--gpus", "0"], "--gpus 0 must be above 0"),
        (["--model", "8b", "--gpus", "8", "--precision", "nvfp4"], "H100 has bf16, fp8"),
        (["--model", "0.6b", "--gpus", "512", "--global-batch", "7"], "near it: 512"),
        (["--model", "8b", "--gpus", "8", "--choose", "99"], "there are layouts 1 to"),
        (["--model", "8b", "--gpus", "8", "--cp", "0"], "--cp 0 must be above 0"),
        (["--model", "8b", "--gpus", "8", "--ep", "8"], "expert = 8 does not; with the rest"),
        (["--model", "8b", "--gpus", "8", "--tokens", "inf"], "--tokens inf must be above 0"),
        (["--model", "8b", "--gpus", "8", "--out", "/dev/null/x.toml"], "/dev/null"),
    ],
)
def test_impossible_questions_are_told_why(arguments, says, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, printed = run(capsys, "plan", "--gpu", "h100", *arguments)
    assert status == 2 and says in printed.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"fixed": {"tensr": 2}}, "fixed: tensr cannot be pinned; did you mean tensor?"),
        ({"fixed": {"tensor": 0}}, "tensor = 0 must be above 0"),
        ({"fixed": {"tensor": "2"}}, "tensor = '2' is not a whole number"),
        ({"fixed": {"micro_batch": 1.5}}, "micro_batch = 1.5 is not a whole number"),
        ({"fixed": {"expert": True}}, "expert = True is not a whole number"),
        ({"fixed": {"recompute": "all"}}, "recompute = 'all'; valid: none, selective, full"),
        ({"fixed": {"recompute": 1}}, "recompute = 1; valid: none, selective, full"),
        ({"precision": "fp7"}, "precision = fp7; valid: bf16, fp8, mxfp8, nvfp4, auto"),
        ({"gpus": 8.0}, "gpus = 8.0 is not a whole number"),
        ({"sequence_length": "4k"}, "sequence_length = '4k' is not a whole number"),
        ({"global_batch": -1}, "global_batch = -1 must be above 0"),
    ],
)
def test_a_question_that_names_no_size_is_refused_in_one_line(asked, says):
    with pytest.raises(ConfigError) as told:
        ask(**{"model": "8b", "gpu": "h100", "gpus": 8} | asked)
    assert says in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (
            {"fixed": {"tensor": 8, "pipeline": 5}},
            "pipeline = 5 does not; with the rest as asked, valid near it: 1",
        ),
        (
            {"fixed": {"tensor": 3, "pipeline": 5}},
            "tensor = 3 and pipeline = 5 do not; without them",
        ),
        (
            {"sequence_length": 4100, "precision": "fp8"},
            "sequence_length = 4100 is no multiple of 16, which fp8.recipe",
        ),
        (
            {"sequence_length": 4095, "fixed": {"tensor": 8, "pipeline": 1}},
            "4095 is no multiple of 8, which parallel.tensor = 8 with parallel.sequence = true "
            "needs; valid near it: 4088, 4096",
        ),
        ({"model": "0.6b", "gpus": 512, "global_batch": 7}, "the global batch of 7 sequences"),
        (
            {"model": "32b", "gpus": 64, "fixed": {"tensor": 1, "pipeline": 1}},
            "without tensor = 1 one fits (",
        ),
        (
            {"model": "32b", "gpus": 16, "fixed": {"recompute": "none", "micro_batch": 8}},
            "without recompute = none one fits (",
        ),
    ],
)
def test_why_there_is_none_names_what_excludes_all(asked, says):
    question = ask(**{"model": "8b", "gpu": "h100", "gpus": 8} | asked)
    assert search.search(question, CONSTANTS) == []
    told = why_none(question)
    assert says in told and "\n" not in told


def test_a_plain_layout_in_low_precision_stands_beside_one_that_overlaps():
    """Of the same sizes, which needs Transformer Engine as well and is faster."""
    question = ask("30b-a3b", "b300", 8, precision="mxfp8", hypothetical=True)
    for job in candidates.candidates(question):
        jobs = [one for one in candidates.exchanges(question, job) if one.dispatcher == "alltoall"]
        if len(jobs) == 2:
            break
    both = [search.plan(one, "none", question.cluster, CONSTANTS) for one in jobs]
    assert {tuple(one.needs) for one in both} == {("Transformer Engine",)}
    assert len(search._distinct(both)) == 2


@pytest.mark.parametrize("gpus", [1, 3, 24, 256, 4096])
@pytest.mark.parametrize("length", [512, 4096, 131_072])
def test_the_batch_that_nobody_asked_for_has_a_power_of_two_of_sequences_per_gpu(gpus, length):
    batch = usual_batch(length, gpus)
    per_gpu, rest = divmod(batch, gpus)
    assert rest == 0
    assert per_gpu & (per_gpu - 1) == 0
    assert per_gpu == 1 or 2**22.5 <= batch * length <= 2**23.5
