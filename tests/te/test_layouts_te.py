"""Layers of Transformer Engine train as torch's do on one rank, in every layout, in float32.

They are compared in the same results as the layouts of tests/parallel: three steps of rows,
of which the later ones are packed documents; losses, gradient norms, gradients, updated weights and
scores. Kernels are stood in.
"""

from layouts import PLAIN, SHARDED, Case, assert_same_runs, cases, one_rank, train

from tests.te.te_ranks import run_te_ranks

CASES = (
    Case("dense", "one-rank", 1, micro_batch=4),
    Case("moe", "one-rank", 1, micro_batch=4),
    Case("dense", "tp2", 2, "tensor=2"),  # one row, one key-value head: axes of one
    Case("dense", "pp2-vpp2", 2, "pipeline=2 virtual_pipeline=2", 2),
    Case("moe", "etp2", 2, "tensor=2 expert_tensor=2", 2),
    Case("moe", "tp2-ep2", 2, "tensor=2 expert=2 recompute=selective", 2),
)
SLOW_CASES = (
    Case("moe", "dp2", 2),
    Case("moe", "ep2", 2, "expert=2 recompute=full"),
    Case("dense", "dp2", 2),
    Case("dense", "pp2", 2, "pipeline=2"),
    Case("dense", "tp2-without-sequence", 2, "tensor=2 sequence=false", 2),
    Case("dense", "tp2-recompute-selective", 2, "tensor=2 recompute=selective", 2),
    Case("dense-untied", "tp2-pp2", 4, "tensor=2 pipeline=2 recompute=full", 2),
    Case("dense-dca", "one-rank", 1, micro_batch=4),
    Case("dense-yarn", "tp2", 2, "tensor=2", 2),
    Case("moe-tied", "pp2-vpp2", 2, "pipeline=2 virtual_pipeline=2", 2),
    Case("moe", "tp2", 2, "tensor=2", 2),
    Case("moe", "tp2-pp2-ep2", 4, "tensor=2 pipeline=2 expert=2"),
    Case("moe-scalar", "tp2-ep2", 2, "tensor=2 expert=2"),
)


def _trained(case):
    settings = [(*case.settings, *more, "model.kind=te") for more in (PLAIN, SHARDED)]
    return run_te_ranks(train, case.ranks, *settings)


@cases(CASES, SLOW_CASES)
def test_losses_and_gradients_and_weights_and_scores_are_those_of_torchs_layers(case):
    assert_same_runs(_trained(case), one_rank(case.model))
