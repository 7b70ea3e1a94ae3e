"""Context ranks share rows under layers of Transformer Engine, too: by our own exchange.

Compared as tests/te/test_layouts_te.py compares its layouts, in float32; kernels are stood in.
"""

from layouts import PLAIN, SHARDED, Case, assert_same_runs, cases, one_rank, train

from tests.te.te_ranks import run_te_ranks

CASES = (
    Case("dense-dca", "cp2", 2, "context=2"),
    Case("moe", "cp2-ep2", 2, "context=2 expert=2"),
)
SLOW_CASES = (
    Case("dense", "cp2-recompute-full", 2, "context=2 recompute=full", 2),
    Case("dense-yarn", "cp2", 2, "context=2", 2),
    Case("moe", "cp2-tp2", 4, "context=2 tensor=2", 2),
    Case("dense", "cp2-pp2", 4, "context=2 pipeline=2", 2),
)


@cases(CASES, SLOW_CASES)
def test_context_ranks_train_as_one_rank_of_torchs_layers_does(case):
    settings = [(*case.settings, *more, "model.kind=te") for more in (PLAIN, SHARDED)]
    assert_same_runs(run_te_ranks(train, case.ranks, *settings), one_rank(case.model))
