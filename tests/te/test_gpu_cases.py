"""The cases of benchmarks/gpu.py that are of Transformer Engine, with its kernels stood in."""

import sys
from pathlib import Path

import pytest

from tests.te.te_ranks import run_te_ranks

sys.path[:0] = [str(Path(__file__).resolve().parents[2] / "benchmarks")]

from on_gpu import plan
from on_gpu.cases import OF_A_GPU_ALONE, LeftOut, Options, Report


def run(folder, *names):
    """The checks of each case, or why it was left out; in one process, one after the other."""
    options = Options("cpu", True, Path(folder), stand_in=True)
    cases = [case for case in plan.cases(tuple(plan.PARTS)) if case.name in names]
    return {case.name: _of(case, options) for case in cases}


def _of(case, options):
    found = []
    try:
        case.function(options, Report(found.append), **case.settings)
    except LeftOut as reason:
        return str(reason)
    return {n: c for each in found for n, c in each.get("checks", {}).items()}


def assert_passed(checks, *names):
    assert set(names) <= checks.keys()
    failed = {name: check for name, check in checks.items() if not check["passes"]}
    assert not failed


KERNELS = [case.name for case in plan.cases(("machine", "kernels"))]


def test_its_modules_are_held_to_torchs_formulas(tmp_path):
    (found,) = run_te_ranks(run, 1, str(tmp_path), *KERNELS)
    assert found.keys() == set(KERNELS)
    for name in ("linear, bf16", "linear, tensorwise", "linear, delayed"):
        assert_passed(found[name], "output", "gradient of the input", "gradient of the weight")
    for name in ("grouped_linear, bf16", "grouped_linear, tensorwise", "grouped_linear, delayed"):
        assert_passed(found[name], "output", "gradient of an expert without rows")
    for name in ("attention, rows", "attention, documents"):
        assert_passed(found[name], "output", "gradient of keys")
    for recipe in OF_A_GPU_ALONE:
        assert found[f"linear, {recipe}"] == "a CPU has no kernels of it"


EVERYTHING = ("scores, rows", "scores, documents", "gradients", "losses", "log p by the cache")
EVERYTHING += ("losses after loading",)


@pytest.mark.parametrize("recipe", ["bf16", "tensorwise"])
def test_a_small_model_does_all_that_a_run_does(tmp_path, recipe):
    names = "dense reference", f"dense te {recipe}"
    (found,) = run_te_ranks(run, 1, str(tmp_path), *names)
    assert_passed(found[f"dense te {recipe}"], *EVERYTHING)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["dense te delayed", "moe te bf16", "moe te tensorwise"])
def test_every_small_model_does_all_that_a_run_does(tmp_path, way):
    (found,) = run_te_ranks(run, 1, str(tmp_path), f"{way.split()[0]} reference", way)
    assert_passed(found[way], *EVERYTHING)


@pytest.mark.parametrize("model", ["dense", pytest.param("moe", marks=pytest.mark.slow)])
def test_its_steps_with_graphs_are_those_without(tmp_path, model):
    names = f"{model} reference", f"{model} te graphs"
    (found,) = run_te_ranks(run, 1, str(tmp_path), *names)
    assert_passed(found[names[1]], "losses with graphs")


@pytest.mark.slow
def test_its_steps_are_measured(tmp_path):
    names = "8b te bf16", "8b te tensorwise", "30b-a3b te bf16", "0.6b te graphs"
    (found,) = run_te_ranks(run, 1, str(tmp_path), *names)
    for name in names:
        assert_passed(found[name], "losses that are not finite")
