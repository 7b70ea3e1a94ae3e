"""A hang says which collective it is in, whichever backend of torch recorded it."""

import json
import threading

import pytest
import torch._C._distributed_c10d as c10d

from megatron_qwen3.training.hang import Heartbeat, active_collective, recorded


def recorder(*entries):
    """The output of torch's recorders: a text in JSON."""
    return lambda with_collectives, only_active: json.dumps({"entries": entries}).encode()


def entry(number, name, created, retired):
    return {
        "collective_seq_id": number,
        "process_group": ["0", "tensor ranks"],
        "profiling_name": name,
        "input_sizes": [[4]],
        "time_created_ns": created,
        "retired": retired,
    }


def test_what_nccl_and_the_other_backends_recorded_is_one_list_in_order(monkeypatch):
    nccl = entry(1, "nccl:all_reduce", 10, True), entry(2, "nccl:all_gather", 30, False)
    gloo = entry(7, "gloo:broadcast", 20, False)
    monkeypatch.setattr(c10d, "_dump_nccl_trace_json", recorder(*nccl), raising=False)
    monkeypatch.setattr(c10d, "_dump_fr_trace_json", recorder(gloo))
    assert [e["profiling_name"] for e in recorded()] == [
        "nccl:all_reduce",
        "gloo:broadcast",
        "nccl:all_gather",
    ]
    assert active_collective() == "broadcast number 7 of group tensor ranks, [[4]]"


@pytest.mark.parametrize("broken", ["_dump_nccl_trace_json", "_dump_fr_trace_json"])
def test_a_recorder_that_fails_does_not_hide_the_other(monkeypatch, broken):
    def fails(*_):
        raise RuntimeError("not in this build")

    for name in ("_dump_nccl_trace_json", "_dump_fr_trace_json"):
        monkeypatch.setattr(c10d, name, recorder(entry(3, "x:send", 1, False)), raising=False)
    monkeypatch.setattr(c10d, broken, fails)
    assert active_collective().startswith("send number 3")


def test_a_pause_within_a_pause_does_not_end_it(tmp_path, monkeypatch):
    ended = threading.Event()
    monkeypatch.setattr(Heartbeat, "_end", lambda self: ended.set())
    with Heartbeat(0.05, tmp_path, 0) as heart:
        with heart.paused():
            with heart.paused():
                pass
            assert not ended.wait(0.5)
        assert ended.wait(30)
