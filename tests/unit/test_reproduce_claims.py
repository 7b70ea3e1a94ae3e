"""Claims are told as their numbers are: what holds, what does not, and what was not measured."""

import json

import pytest

from examples.reproduce.__main__ import tell
from examples.reproduce.claims import CLAIMS, others, students, thinking
from examples.reproduce.claims.claim import Measured
from examples.reproduce.claims.spent import flops, of_batch
from examples.reproduce.experts import mutual_information
from megatron_qwen3.config import load, to_toml
from megatron_qwen3.model.flops import flops_per_token

np = pytest.importorskip("numpy")


def rate(value):
    return {"value": value, "low": value - 0.02, "high": value + 0.02, "tasks": 400}


def evaluation(folder, **conditions):
    """results.json of conditions, whose names have a budget after an underscore."""
    folder.mkdir(parents=True)
    rows = []
    for name, value in conditions.items():
        mode, _, budget = name.partition("_")
        condition = f"{mode}-{budget}" if budget else {"direct": "non-thinking"}.get(mode, mode)
        number = int(budget) if budget else None
        row = {"condition": condition, "budget": number, "set": "all", "pass": {"1": rate(value)}}
        rows.append(row)
    (folder / "results.json").write_text(json.dumps({"conditions": rows, "obedience": None}))


def budgets_of(folder, *curve):
    named = {f"thinking_{6 * (place + 1)}": value for place, value in enumerate(curve)}
    evaluation(folder / "evaluations/budgets", direct=0.01, thinking=curve[-1], **named)
    return thinking.budgets({1: folder})


def test_budgets_hold_where_accuracy_rises_step_by_step(tmp_path):
    claim = budgets_of(tmp_path / "a", 0.1, 0.3, 0.5, 0.7, 0.9)
    assert claim.holds and "without a fall" in claim.said and len(claim.numbers) == 7


@pytest.mark.parametrize("curve", [(0.1, 0.1, 0.9), (0.5, 0.2, 0.9), (0.01, 0.01, 0.02)])
def test_budgets_do_not_hold_where_it_leaps_falls_or_stays(tmp_path, curve):
    assert budgets_of(tmp_path / "a", *curve).holds is False


def test_several_seeds_are_told_by_mean_lowest_and_highest():
    number = Measured("right", {1: 0.5, 2: 0.7, 3: 0.9}, (0.4, 0.6), percent=True)
    assert number.said() == ("70.0 %", "50.0 % to 90.0 %")
    assert Measured("right", {1: 0.5}, (0.4, 0.6), percent=True).interval == (0.4, 0.6)


def test_compute_counts_sampling_training_and_the_teachers_pass(tmp_path):
    student = load(["examples/reproduce/models/student.toml"], ["train.steps=1"]).model
    teacher = load(["examples/reproduce/models/teacher.toml"], ["train.steps=1"]).model
    row = {"prompt_length": 30.0, "length": 50.0, "answers": 100, "trained": 0.25}
    forward = 100 * 80 * flops_per_token(student, 80) / 3
    assert of_batch(row, student, None) == pytest.approx(forward * 1.75)
    more = of_batch(row, student, teacher) - of_batch(row, student, None)
    assert more == pytest.approx(100 * 80 * flops_per_token(teacher, 80) / 3)


def test_the_share_of_compute_is_where_distillation_first_is_as_good():
    distilled, reinforced = [(1.0, 0.2), (3.0, 0.7), (9.0, 1.0)], [(10.0, 0.3), (60.0, 0.6)]
    assert students.ratio_of(distilled, reinforced) == 3 / 60
    assert students.ratio_of([(1.0, 0.1)], reinforced) == float("inf")
    never = Measured("share", {1: 0.2, 2: float("inf")}, percent=True)
    assert never.said() == ("not reached", "20.0 % to not reached")


def test_information_is_none_where_domains_read_alike_and_whole_where_none_meet():
    assert mutual_information(np.array([[0.5, 0.5], [0.5, 0.5]])) == pytest.approx(0)
    assert mutual_information(np.array([[1.0, 0.0], [0.0, 1.0]])) == pytest.approx(np.log(2))


def test_a_page_without_results_says_of_every_claim_that_it_was_not_measured(tmp_path):
    tell(tmp_path, [1], {}, "full")
    claims = json.loads((tmp_path / "report.json").read_text())["claims"]
    assert [claim["key"] for claim in claims] == [claim.key for claim in CLAIMS]
    assert all(claim["holds"] is None for claim in claims)


def test_settings_of_a_run_give_its_compute(tmp_path):
    """The curve of a run: what was spent by the time of each evaluation."""
    runs = {"student/student_rl": "student", "teacher/post_2_reasoning_rl": "teacher"}
    for folder, model in runs.items():
        (tmp_path / folder).mkdir(parents=True)
        config = load([f"examples/reproduce/models/{model}.toml"], ["train.steps=1"])
        (tmp_path / folder / "config.toml").write_text(to_toml(config))
    batch = {"prompt_length": 10.0, "length": 10.0, "answers": 2, "trained": 1.0}
    rows = [{"kind": "rollouts", "step": step, **batch} for step in (1, 2)]
    rows.append({"kind": "eval", "step": 2, "pass_rate": 0.5, "source": "all"})
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "student/student_rl/metrics.jsonl").write_text(lines)
    ((spent, right),) = students.curve(tmp_path, "student_rl")
    model = load(["examples/reproduce/models/student.toml"], ["train.steps=1"]).model
    assert flops(tmp_path / "student/student_rl") == pytest.approx(spent)
    assert right == 0.5 and spent == pytest.approx(2 * of_batch(batch, model, None))


def test_pretraining_spends_what_each_token_takes_forward_and_backward(tmp_path):
    config = load(["examples/reproduce/models/student.toml"], ["train.steps=2"])
    (tmp_path / "config.toml").write_text(to_toml(config))
    rows = [{"kind": "train", "step": step, "tokens": 100 * step} for step in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    expected = 200 * flops_per_token(config.model, config.data.sequence_length)
    assert flops(tmp_path) == pytest.approx(expected)


def test_a_claim_is_told_of_the_seeds_whose_parts_are_done(tmp_path):
    budgets_of(tmp_path / "seed_1", 0.1, 0.3, 0.5, 0.7)
    evaluation(tmp_path / "seed_2/evaluations/budgets", direct=0.0)  # stopped on the way
    seeds = {seed: tmp_path / f"seed_{seed}" for seed in (1, 2)}
    claim = next(claim for claim in CLAIMS if claim.key == "a")
    found = claim.found(seeds, {"general_1"})
    assert found.holds and set(found.numbers[0].by_seed) == {1}
    assert claim.found(seeds, {"general_3"}).said == "Not measured: general_1 is not done."


@pytest.mark.parametrize(("by_cells", "holds"), [((2.0, 2.1, 2.0), True), ((2.0, 2.9, 2.0), False)])
def test_mixtures_hold_where_every_run_is_ahead_beyond_chance(tmp_path, by_cells, holds):
    losses = {"by domain": (2.5, 2.6, 2.6), "natural": (3.0, 3.1, 3.0), "by cells": by_cells}
    checks = [{"name": name, "losses": values} for name, values in losses.items()]
    (tmp_path / "mixture").mkdir()
    (tmp_path / "mixture/mixture.json").write_text(json.dumps({"checks": checks}))
    found = others.mixtures({1: tmp_path})
    assert found.holds is holds and len(found.numbers) == 3
