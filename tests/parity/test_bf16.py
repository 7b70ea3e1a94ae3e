"""bf16 is held to float32: transformers' model in float32 with the same weights, rounded to bf16.

Not to transformers' bf16, which rounds in more places: ours must be the nearer one.
"""

import pytest
import torch
from ranks import run_ranks
from test_transformers import tiny, token_ids
from theirs import as_theirs, randomize, theirs

from megatron_qwen3.model.build import build
from megatron_qwen3.parallel.runtime import start

pytest.importorskip("transformers")

UNIT = 2**-9  # half a unit in the last place of a bf16 of 1: its largest relative rounding error
# Roundings to bf16 on the way from one residual stream to the next: two norms, the
# projections of queries, keys and values, their norms and rotations, the mixed values and their
# projection, two sums, gate and up, their product, and its projection.
ROUNDINGS_OF_A_LAYER = 14


def ours(preset):
    config = tiny(f"model.preset={preset}", "train.precision=bf16")
    (model,) = build(config, start(config))
    randomize(model)
    with torch.no_grad():
        logits_BSV = model(token_ids(64)[:, :-1]).whole().transpose(0, 1)
    return {name: p.data for name, p in model.named_parameters()}, logits_BSV


@pytest.mark.parametrize("preset", ["tiny-dense", "tiny-moe"])
def test_bf16_logits_are_within_the_roundings_of_float32_and_nearer_than_transformers(preset):
    weights, logits_BSV = run_ranks(ours, 1, preset)[0]
    model = tiny(f"model.preset={preset}").model
    assert logits_BSV.dtype == torch.bfloat16
    named = as_theirs(weights, model)
    network = theirs(model, {name: weight.float() for name, weight in named.items()})
    with torch.no_grad():
        exact_BSV = network(token_ids(64)[:, :-1]).logits
        their_BSV = network.bfloat16()(token_ids(64)[:, :-1]).logits
    # A median, since a rounding that tips a choice between two experts changes a position whole.
    off, their_off = (
        ((x.float() - exact_BSV).norm(dim=-1) / exact_BSV.norm(dim=-1)).median().item()
        for x in (logits_BSV, their_BSV)
    )
    # Roundings that know nothing of each other add up as a walk does.
    assert off < UNIT * (ROUNDINGS_OF_A_LAYER * model.num_layers) ** 0.5
    assert off < their_off
