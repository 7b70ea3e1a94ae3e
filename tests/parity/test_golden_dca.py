"""Whole models under Dual Chunk Attention give the logits of the reference, in float64 there."""

import math

import pytest
import torch
from ranks import run_ranks

from tests import golden
from tests.hashed import logits_of, token_ids

MODELS = (golden.read("dca.json") or {"models": []})["models"]
DENSE = "tiny-dense", "model.ffn_hidden_size=128", "model.tie_embeddings=false"
SPARSE = "tiny-moe", "model.expert_ffn_hidden_size=32"


def settings_of(case):
    preset, *shape = DENSE if case["model"] == "dense" else SPARSE
    given = [f"model.preset={preset}", *shape, "model.num_layers=2", "model.vocab_size=256"]
    given += [f"model.rope_theta={case['rope_theta']}", "train.steps=1", "train.precision=fp32"]
    if "chunk_size" in case:
        given += [f"rope.dca_{name}={case[name]}" for name in ("chunk_size", "local_size")]
        given.append(f"rope.dca_rule={case['rule']}")
    if "length_scale_original" in case:
        factor = 0.1 * math.log(case["length"] / case["length_scale_original"]) + 1
        given.append(f"rope.dca_scale={factor!r}")
    if "yarn" in case:
        given.append(f"rope.yarn_factor={case['yarn']['factor']}")
        given.append(f"rope.yarn_original_length={case['yarn']['original']}")
    return given


@pytest.fixture(scope="module")
def ours():
    tokens = [(case["length"], case["token_seed"]) for case in MODELS]
    return run_ranks(logits_of, 1, [settings_of(case) for case in MODELS], tokens)[0]


@pytest.mark.skipif(not MODELS, reason=f"dca.json is not in {golden.folder()}")
@pytest.mark.parametrize(
    "number", range(len(MODELS)), ids=[f"{case['model']}: {case['label']}" for case in MODELS]
)
def test_logits_equal_the_reference(ours, number):
    case, logits_SV = MODELS[number], ours[number]
    expected = torch.tensor(case["logits"])
    found = logits_SV[case["positions"]][:, case["vocab_ids"]]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    ids = token_ids(case["length"], case["token_seed"], logits_SV.shape[1])
    nll = torch.nn.functional.cross_entropy(logits_SV[:-1], ids[1:])
    assert float(nll) == pytest.approx(case["mean_next_token_nll"], abs=1e-5)
