"""The stand-in for CUDA graphs refuses waits for a GPU, and copies by the host, in a capture.

On a CPU nobody waits, and much of it is none of torch's operations: each kind is tried here.
"""

import contextlib

import numpy
import pytest
import torch

from tests.ranks import RankError
from tests.te.te_graphs import Capture, CUDAGraph, kernel
from tests.te.te_ranks import run_te_ranks

WAITS = {
    "item": lambda x, mask: x[0].item(),
    "float": lambda x, mask: float(x[0]),
    "int": lambda x, mask: int(x[0]),
    "bool": lambda x, mask: bool(mask[0]),
    "a number in it": lambda x, mask: 2.0 in x,
    "as a text": lambda x, mask: f"{x[0]}",
    "tolist": lambda x, mask: x.tolist(),
    "numpy": lambda x, mask: x.numpy(),
    "asarray": lambda x, mask: numpy.asarray(x),
    "cpu": lambda x, mask: x.cpu(),
    "to cpu": lambda x, mask: x.to("cpu", torch.float64),
    "to a device": lambda x, mask: x.to(device="cpu"),
    "dlpack": lambda x, mask: torch.utils.dlpack.from_dlpack(x),
    "a list's tensor": lambda x, mask: torch.tensor([1.0]),
    "read by a mask": lambda x, mask: x[mask],
    "read by bytes": lambda x, mask: x[mask.byte()],
    "a row's places": lambda x, mask: x.view(1, 3)[0, mask],
    "written by a mask": lambda x, mask: x.__setitem__(mask, x[:1].clone()),
    "index_put": lambda x, mask: x.index_put((mask,), x[:1]),
    "masked_select": lambda x, mask: x.masked_select(mask),
    "nonzero": lambda x, mask: x.nonzero(),
    "argwhere": lambda x, mask: torch.argwhere(mask),
    "where": lambda x, mask: torch.where(mask),
    "unique": lambda x, mask: x.unique(),
    "unique rows": lambda x, mask: x.view(3, 1).unique(dim=0),
    "unique_consecutive": lambda x, mask: x.unique_consecutive(),
    "consecutive rows": lambda x, mask: x.view(3, 1).unique_consecutive(dim=0),
    "bincount": lambda x, mask: mask.long().bincount(),
    "histc": lambda x, mask: x.histc(2),
    "repeat_interleave": lambda x, mask: x.repeat_interleave(mask.long()),
    "equal": lambda x, mask: x.equal(x + 1),
    "allclose": lambda x, mask: x.allclose(x + 1),
    "a solution": lambda x, mask: torch.linalg.solve(torch.outer(x, x), x),
}


@pytest.mark.parametrize("kind", WAITS)
def test_what_waits_for_the_device_is_refused_within_a_capture_alone(kind):
    x, mask = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([True, False, True])
    with pytest.raises(RuntimeError, match="waits for the device"), Capture(CUDAGraph()):
        WAITS[kind](x, mask)
    may_wait = lambda: contextlib.suppress(torch.linalg.LinAlgError)  # noqa: E731
    with may_wait():
        WAITS[kind](x, mask)
    with Capture(CUDAGraph()), kernel("whose steps here are not its own"), may_wait():
        WAITS[kind](x, mask)


def test_what_the_device_does_by_itself_is_captured_and_replayed():
    x, mask, graph = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([True, False, True]), CUDAGraph()
    with Capture(graph):
        parts = [
            x.masked_fill(mask, 0.0),
            x[mask.long()],
            torch.where(mask, x, -x),
            x.to(torch.float64),
            x.repeat_interleave(mask.long(), output_size=2),
            x.histc(2, 0.0, 8.0),
            x.cumsum(0).topk(1).values,
        ]
    x.copy_(torch.tensor([5.0, 3.0, 7.0]))
    graph.replay()
    assert [part.tolist() for part in parts] == [
        [0.0, 3.0, 0.0],
        [3.0, 5.0, 3.0],
        [5.0, -3.0, 7.0],
        [5.0, 3.0, 7.0],
        [5.0, 7.0],
        [1.0, 2.0],
        [15.0],
    ]


class WaitsInBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * len(gradient.tolist())


def test_a_wait_of_a_backward_pass_is_refused_too():
    x = torch.ones(3, requires_grad=True)
    y = WaitsInBackward.apply(x)
    with pytest.raises(RuntimeError, match="tolist waits"), Capture(CUDAGraph()):
        torch.autograd.grad(y, x, torch.ones(3))


def synchronizes(how):
    calls = {
        "all": torch.cuda.synchronize,
        "stream": torch.cuda.current_stream().synchronize,
        "event": torch.cuda.Event().synchronize,
        "query": torch.cuda.Event().query,
    }
    calls[how]()
    with Capture(CUDAGraph()):
        torch.ones(3).to("cuda")  # goes nowhere that the host reads
        calls[how]()


@pytest.mark.parametrize("how", ["all", "stream", "event", "query"])
def test_a_capture_refuses_to_be_waited_for(how):
    with pytest.raises(RankError, match="waits for the device"):
        run_te_ranks(synchronizes, 1, how)
