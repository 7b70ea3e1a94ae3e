"""`run_ranks` itself: a test on ranks is only as good as its helper."""

import os
import time

import pytest
import torch
import torch.distributed as dist
from ranks import RankError, forkserver, run_ranks, start_method


def rank_plus(offset):
    dist.init_process_group("gloo")
    total = torch.tensor(dist.get_rank())
    dist.all_reduce(total)
    return dist.get_rank() + offset, total


def test_results_come_in_rank_order():
    results = run_ranks(rank_plus, 3, 10)
    assert [number for number, _ in results] == [10, 11, 12]
    assert all(total == 3 for _, total in results)


def fail_on_rank_1_while_others_wait():
    dist.init_process_group("gloo")
    if dist.get_rank() == 1:
        raise ValueError("no such thing")
    dist.barrier()


def test_the_first_error_is_raised_with_its_rank_and_traceback():
    with pytest.raises(RankError, match=r"rank 1 of 3(?s:.*)fail_on_rank_1(?s:.*)no such thing"):
        run_ranks(fail_on_rank_1_while_others_wait, 3)


def die_on_rank_0():
    if os.environ["RANK"] == "0":
        os._exit(7)
    time.sleep(60)


def test_a_rank_that_dies_is_named():
    with pytest.raises(RankError, match="rank 0 of 2: died without a word, exit code 7"):
        run_ranks(die_on_rank_0, 2)


def hang_on_odd_ranks():
    if int(os.environ["RANK"]) % 2:
        time.sleep(3600)  # no test may last so long


def test_ranks_that_hang_are_named_after_the_time_limit():
    # On a busy machine the others may be late, too.
    with pytest.raises(RankError, match=r"no answer from rank (0, )?1, (2, )?3 of 4 within 1 s"):
        run_ranks(hang_on_odd_ranks, 4, timeout_seconds=1)


def test_ranks_are_spawned_where_a_forked_process_cannot_use_the_gpu(monkeypatch):
    assert torch.cuda.is_available() or start_method() is forkserver
    if not torch.cuda.is_available():
        start_method.cache_clear()
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # and a child finds none
        assert start_method().get_start_method() == "spawn"
        assert run_ranks(rank_plus, 1, 10) == [(10, torch.tensor(0))]
        start_method.cache_clear()
