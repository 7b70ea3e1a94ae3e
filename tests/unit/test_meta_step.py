"""A whole step never waits for its device but where it is stated here, and never leaves it.

On a GPU each wait leaves the device idle until the processor has caught up, and a tensor that was
made on the CPU stops the step. Here the engine of training runs its forward pass, backward pass and
update on torch's meta device, by the code that a GPU runs: meta has shapes without bytes, refuses
tensors of other devices, and cannot read a number. Where the step asks for one all the same,
`Answers` gives it, and lists it: the list is the test. Kernels are not run: there are no numbers.
"""

import contextlib
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.fx.experimental import _config as fx_settings
from torch.utils._python_dispatch import TorchDispatchMode

import megatron_qwen3
from megatron_qwen3.config import load
from megatron_qwen3.cpu import redirect
from megatron_qwen3.model import grouped, layer, ops
from megatron_qwen3.model.rope import RotaryTables
from megatron_qwen3.model.stretches import Stretches
from megatron_qwen3.parallel.layout import Layout
from megatron_qwen3.training.batch import TokenBatch
from megatron_qwen3.training.dry_run import _pretending_to_be
from megatron_qwen3.training.engine import Engine
from megatron_qwen3.training.objectives import cross_entropy

import megatron.core  # isort: skip  (after ours, which prepares it for a CPU)

PACKAGES = tuple(str(Path(module.__file__).parent) for module in (megatron_qwen3, megatron.core))
aten = torch.ops.aten
COPIES = (aten._to_copy.default, aten.copy_.default)
SELECTIONS = (
    aten.nonzero.default,
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
)


class Answers(TorchDispatchMode):
    """Answers where meta tensors cannot, each a wait for a GPU, and counts answers by caller.

    A number is 1, a copy to the host is ones, and a result as long as its values say takes all of
    them. Copies that nothing waits for (non_blocking) are not counted.
    """

    def __init__(self):
        super().__init__()
        self.asked = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        x = args[0] if args and isinstance(args[0], torch.Tensor) else None
        if function in COPIES and not kwargs.get("non_blocking"):
            target = kwargs.get("device") if function is aten._to_copy.default else x.device
            source = x if function is aten._to_copy.default else args[1]
            if target is not None and torch.device(target).type != source.device.type:
                self._note("a copy")
                if source.is_meta:
                    return torch.ones(source.shape, dtype=kwargs.get("dtype") or source.dtype)
        if x is None or not x.is_meta:
            return function(*args, **kwargs)
        if function is aten._local_scalar_dense.default:
            self._note("a number")
            return x.new_ones((), device="cpu").item()
        if function is aten.bincount.default or (
            function is aten.repeat_interleave.Tensor and "output_size" not in kwargs
        ):
            self._note("a length")
            return x.new_ones(1)
        if function in SELECTIONS and _has_mask(args):
            self._note("a length")
        with fx_settings.patch(meta_nonzero_assume_all_nonzero=True):
            return function(*args, **kwargs)

    def _note(self, what):
        self.asked[f"{what} in {_who_asks()}"] += 1


def _has_mask(args):
    """Whether nonzero is asked, or an index is a mask, of which nonzero makes places."""
    return len(args) == 1 or any(i is not None and i.dtype == torch.bool for i in args[1])


def _who_asks():
    """The innermost function of ours or of megatron-core that is running."""
    frame = sys._getframe()
    while not frame.f_code.co_filename.startswith(PACKAGES):
        frame = frame.f_back
    return frame.f_code.co_name


def _on_meta(construct):
    """As a constructor where "cuda" is the meta device."""

    def wrapper(*args, device=None, **kwargs):
        is_cuda = str(device).startswith("cuda")
        return construct(*args, device="meta" if is_cuda else device, **kwargs)

    return wrapper


@contextlib.contextmanager
def as_on_a_gpu(monkeypatch):
    """Let our code take the ways that it takes where tensors are a GPU's."""
    names_of_types = redirect.cuda_type_names

    @contextlib.contextmanager
    def named():  # meta has no type that megatron-core's optimizers know
        with monkeypatch.context() as patch:
            patch.setattr(redirect, "REDIRECTED", True)
            with names_of_types():
                yield

    with monkeypatch.context() as patch:
        patch.setattr(redirect, "REDIRECTED", False)
        patch.setattr(redirect, "cuda_type_names", named)
        for name in redirect._CONSTRUCTORS:
            patch.setattr(torch, name, _on_meta(getattr(torch, name)))
        patch.setattr(torch.Tensor, "is_cuda", property(lambda x: x.is_meta))
        fused = sys.modules["torch.optim.optimizer"]  # whose name is hidden in torch.optim
        patch.setattr(fused, "_get_fused_kernels_supported_devices", lambda: ["meta"])
        yield


def step(monkeypatch, preset, *settings, rows=4, starts=None):
    """The questions of one training step to its device, and their callers: a count of each."""
    given = [f"model.preset={preset}", "train.steps=1", "train.precision=bf16"]
    given += ["data.sequence_length=32", "train.global_batch=4", "train.micro_batch=2"]
    config = load([], [*given, *settings])
    layout = Layout.of(config, 1)
    tokens_BS = torch.zeros(rows, 32, dtype=torch.int64)
    with _pretending_to_be(0, config, layout), as_on_a_gpu(monkeypatch):
        engine = Engine(config, layout)
        stretches = Stretches.of(starts, 32) if starts else None
        batch = TokenBatch.of(tokens_BS, tokens_BS, stretches)
        with torch.device("cpu"), Answers() as answers:
            engine.train_step(batch, cross_entropy, 1e-3)
    return answers.asked


# The trained positions, known before the first pass, and the report before the update.
STATED = {"a copy in _counts": 1, "a copy in _read": 1}


def test_a_step_waits_for_its_device_only_where_it_is_stated(monkeypatch):
    assert step(monkeypatch, "tiny-dense") == STATED


@pytest.mark.parametrize(
    "setting", ["recompute=none", "recompute=selective", "recompute=full", "overlap=false"]
)
def test_sparse_layers_never_wait(monkeypatch, setting):
    assert step(monkeypatch, "tiny-moe", f"parallel.{setting}", "model.num_layers=1") == STATED


@pytest.mark.parametrize("balance", ["last_step", "this_batch", "micro_batch"])
def test_padding_and_the_shares_of_this_batch_cost_no_wait(monkeypatch, balance):
    assert step(monkeypatch, "tiny-moe", f"model.router_balance={balance}", rows=3) == STATED


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_documents_that_share_rows_cost_no_wait(monkeypatch, precision):
    starts = [[0, 5, 6], [0], [0, 31], [0, 8, 16, 24]]
    asked = step(monkeypatch, "tiny-dense", f"train.precision={precision}", starts=starts)
    assert asked == STATED


MUTANTS = {
    "number": (ops, "swiglu_value", lambda x: x.sum().item()),
    "number in backward": (ops, "swiglu_gradient", lambda x, *_: x.sum().item()),
    "copy": (ops, "rms_norm", lambda x, *_: x.cpu()),
    "length of bincount": (grouped, "sort_by_expert", lambda x, _: torch.bincount(x.flatten())),
    "length of a selection": (layer, "attention", lambda q, *_: q[q > 0]),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_wait_in_a_layer_is_noticed(monkeypatch, mutant):
    module, name, wait = MUTANTS[mutant]
    function = getattr(module, name)
    monkeypatch.setattr(module, name, lambda *args: (wait(*args), function(*args))[1])
    assert step(monkeypatch, "tiny-moe", "model.num_layers=1").total() > 2


def test_a_tensor_that_stays_on_the_host_stops_the_step(monkeypatch):
    tables = RotaryTables.at
    monkeypatch.setattr(
        RotaryTables, "at", lambda *args: torch.ones_like(tables(*args), device="cpu")
    )
    with pytest.raises(RuntimeError, match="cpu is not on the expected device meta"):
        step(monkeypatch, "tiny-dense")
