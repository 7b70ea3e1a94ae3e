"""Generation with layers of Transformer Engine gives the same as with torch's, in every layout."""

import pytest

from megatron_qwen3.generate.engine import Generator
from megatron_qwen3.model import specs
from megatron_qwen3.parallel.runtime import start
from megatron_qwen3.training.model import Model
from tests.parallel.test_dca_ranks import RULES, generated_and_scored
from tests.parallel.test_generate_layouts import Case, assert_same, generated, names, settings
from tests.ranks import run_ranks
from tests.te.te_ranks import run_te_ranks

CASES = (
    Case("one", 1, "", preset="tiny-dense"),
    Case("tp2-ep2", 2, "tensor=2 expert=2"),
)
SLOW_CASES = (
    Case("one", 1, ""),
    Case("pp2-vpp2", 2, "pipeline=2 virtual_pipeline=2"),
    Case("ep2-one-without-prompts", 2, "expert=2", (5, 0)),
    Case("etp2", 2, "tensor=2 expert_tensor=2"),
    Case("tp2", 2, "tensor=2", preset="tiny-dense"),
)


def check(case):
    arguments = case.preset, case.parallel, case.shares, "model.kind=te"
    assert_same(case, run_te_ranks(generated, case.ranks, *arguments))


@pytest.mark.parametrize("case", CASES, ids=names(CASES))
def test_generation_is_that_of_torchs_layers(case):
    check(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", SLOW_CASES, ids=names(SLOW_CASES))
def test_generation_is_that_of_torchs_layers_in_further_layouts(case):
    check(case)


@pytest.mark.slow
@pytest.mark.parametrize("rule, ranks", [("code", 1), ("scaled", 2)])
def test_what_is_generated_in_chunks_is_that_of_torchs_layers_and_scores_as_in_one_pass(
    rule, ranks
):
    """Dual Chunk Attention: of each prompt its tokens, and their log p by the cache and by a pass;
    with two ranks, tensor ranks of a sparse model."""
    settings = ("model.preset=tiny-dense", *RULES[rule])
    if ranks > 1:
        settings = ("model.preset=tiny-moe", *RULES[rule], f"parallel.tensor={ranks}")
    (expected, *_) = run_ranks(generated_and_scored, ranks, *settings)
    for found in run_te_ranks(generated_and_scored, ranks, *settings, "model.kind=te"):
        for (tokens, cached, passed), (wanted, log_probs, _) in zip(found, expected, strict=True):
            assert tokens == wanted
            assert cached == pytest.approx(log_probs, abs=2e-5)
            assert cached == pytest.approx(passed, abs=2e-5)


def _exchanges():
    """The dispatchers of tokens to experts where a model trains, and where it writes."""
    from megatron.core.transformer.moe import moe_layer

    specs.HAVE_DEEP_EP = True
    moe_layer.MoEFlexTokenDispatcher = moe_layer.MoEAlltoAllTokenDispatcher  # to be made alone
    asked = settings("tiny-moe", "expert=2", "model.kind=te", "parallel.dispatch=deepep")
    model = Model(asked, start(asked))
    chunks = model.chunks + Generator(model).chunks
    return [chunk.config.moe_token_dispatcher_type for chunk in chunks]


def test_one_token_of_each_text_is_not_sent_by_what_is_for_rows():
    assert run_te_ranks(_exchanges, 2) == [["flex", "alltoall"]] * 2
