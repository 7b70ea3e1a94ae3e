"""The directions of the report's claims in the long form, as `make reproduce` left it. How far they
go, and which of them hold as they are stated, says examples/reproduce/README.md."""

import json
from pathlib import Path

import pytest

FULL = Path(__file__).parents[2] / "runs/reproduce/full/report.json"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FULL.exists(), reason="make reproduce has not run here"),
]


def numbers(key):
    """Means over seeds of a claim's numbers, by their names."""
    found = {claim["key"]: claim for claim in json.loads(FULL.read_text())["claims"]}[key]
    if found["holds"] is None:
        pytest.skip(found["found"])
    return {number["name"]: number["mean"] for number in found["numbers"]}


def test_accuracy_rises_with_the_budget_and_thinking_beats_an_answer_at_once():
    found = numbers("a")
    curve = [value for name, value in found.items() if name.endswith("tokens of thinking")]
    assert all(after > before - 0.03 for before, after in zip(curve, curve[1:], strict=False))
    assert curve[-1] > curve[0] + 0.3
    assert found["thinking without a budget"] > found["without thinking"] + 0.3


def test_reasoning_rl_raises_accuracy():
    found = numbers("b")
    assert found["after reasoning RL"] > found["cold start"] + 0.05


def test_both_modes_are_obeyed_and_thinking_stays():
    found = numbers("c")
    assert found["flags obeyed after general RL"] > 0.98
    assert found["thinking accuracy after general RL"] > found["thinking accuracy before"] - 0.02


def test_distillation_beats_rl_for_less_and_finds_what_rl_does_not():
    found = numbers("d")
    assert found["after on-policy distillation"] > found["after RL"]
    assert found["compute of distillation to where RL ends, share of RL's"] < 0.2
    start = found["pass@64 of the longest at the start"]
    gained = found["pass@64 after on-policy distillation"] - start
    assert gained > 0.05 and gained > found["pass@64 after RL"] - start


def test_balance_over_the_global_batch_is_better_and_experts_specialise():
    found = numbers("e")
    about = "information of the expert about the domain, nats, "
    assert found["held-out loss, global batch"] < found["held-out loss, micro-batch"]
    assert found[about + "global batch"] > 2 * found[about + "micro-batch"]


def test_a_sparse_model_is_as_good_as_a_dense_one():
    found = numbers("f")
    assert found["held-out loss, sparse"] < 1.01 * found["held-out loss, dense"]


def test_yarn_and_dual_chunk_attention_read_on():
    found = numbers("g")
    of = "pass keys found in 1,024, "
    grows = "loss at the end of 1,024 over 256, "
    assert found[grows + "both"] < 1.1 < found[grows + "plain"]
    assert found[of + "both"] > found[of + "plain"] + 0.3


def test_a_mixture_by_cells_is_better_than_the_natural_one():
    found = numbers("h")
    assert found["held-out loss, by cells"] < found["held-out loss, natural"]
    assert found["held-out loss, by cells"] < found["held-out loss, by domain"]


def test_a_law_of_smaller_sizes_finds_the_rate():
    found = numbers("i")
    assert found["above the best"] < 0.01
    assert found["loss by the law's rate"] < found["worst loss of the sweep"]
