"""The history of delayed scaling in checkpoints: plain tensors, of each expert its own."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from megatron_qwen3.model import scaling


class Scaled(nn.Module):
    """As a module of Transformer Engine keeps its scales: made at its first step, or by loading."""

    def __init__(self, count=None, history=4, fill=None, is_old=False):
        super().__init__()
        self.fp8_meta, self.history = {}, history
        if count:
            self.num_gemms = count
            if not is_old:
                self._num_fp8_tensors_per_gemm = {"fwd": 3, "bwd": 2}
        if fill is not None:
            self.fp8_meta["num_gemms"] = count or 1
            self.init_fp8_meta_tensors(None)
            generator = torch.Generator().manual_seed(fill)
            for state in (self.fp8_meta["scaling_fwd"], self.fp8_meta["scaling_bwd"]):
                state.scale.uniform_(generator=generator)
                state.amax_history.uniform_(generator=generator)

    def init_fp8_meta_tensors(self, recipe):
        for name, tensors in (("scaling_fwd", 3), ("scaling_bwd", 2)):
            numbers = tensors * self.fp8_meta["num_gemms"]
            self.fp8_meta[name] = SimpleNamespace(
                scale=torch.ones(numbers), amax_history=torch.zeros(self.history, numbers)
            )


class Chunk(nn.Module):
    def __init__(self, recipe="delayed", **modules):
        super().__init__()
        self.config = SimpleNamespace(fp8="hybrid", fp8_recipe=recipe)
        for name, module in modules.items():
            setattr(self, name, module)


def saved_by(chunk):
    """The attributes that megatron-core asks modules for, by the names that it is loaded with."""
    scaling.keep_plain(chunk)
    found = {"weight": torch.ones(2)}
    for name, module in chunk.named_modules():
        if isinstance(module, Scaled):
            state = module.get_extra_state()
            if hasattr(module, "num_gemms"):
                of_each = module._split_extra_state(state)
                found |= {f"{name}._extra_state{i or ''}": part for i, part in enumerate(of_each)}
            else:
                found[f"{name}._extra_state"] = state
    return found


def tensors_of(module):
    return [value.clone() for _, value in scaling._tensors(module)]


def assert_alike(one, other):
    pairs = list(zip(tensors_of(one), tensors_of(other), strict=True))
    assert pairs and all(torch.equal(a, b) for a, b in pairs)


def test_a_fresh_model_has_the_scales_that_were_saved():
    chunk = Chunk(linear=Scaled(fill=1), experts=Scaled(3, fill=2))
    fresh = Chunk(linear=Scaled(), experts=Scaled(3))
    others = scaling.taken(fresh, saved_by(chunk))
    assert_alike(fresh.linear, chunk.linear)
    assert_alike(fresh.experts, chunk.experts)
    assert others.pop("weight").sum() == 2
    assert len(others) == 4 and all(part.numel() == 0 for part in others.values())


def test_what_is_saved_does_not_change_with_the_model():
    chunk = Chunk(linear=Scaled(fill=1))
    saved, before = saved_by(chunk), tensors_of(chunk.linear)
    chunk.linear.fp8_meta["scaling_fwd"].scale.zero_()
    scaling.taken(chunk, saved)  # and goes into the tensors that are there
    assert all(torch.equal(a, b) for a, b in zip(tensors_of(chunk.linear), before, strict=True))


@pytest.mark.parametrize("is_old", [False, True])
def test_experts_take_their_scales_along_to_another_rank(is_old):
    """Those of an expert stand side by side; in older releases those of all inputs, weights …"""
    chunk = Chunk(experts=Scaled(4, fill=1, is_old=is_old))
    saved = saved_by(chunk)
    last_two = {
        "experts._extra_state": saved["experts._extra_state2"],
        "experts._extra_state1": saved["experts._extra_state3"],
    }
    fresh = Chunk(experts=Scaled(2, is_old=is_old))
    scaling.taken(fresh, last_two)
    for mine, whole in zip(tensors_of(fresh.experts), tensors_of(chunk.experts), strict=True):
        last = whole.unflatten(-1, (-1, 2, 2))[..., 1, :].flatten(-2) if is_old else None
        assert torch.equal(mine, whole.chunk(2, -1)[1] if last is None else last)


@pytest.mark.parametrize("state", [torch.empty(0, dtype=torch.uint8), torch.ones(9), b"x", None])
def test_what_another_program_saved_is_not_read(state):
    fresh = Chunk(linear=Scaled())
    others = scaling.taken(fresh, {"linear._extra_state": state})
    assert not fresh.linear.fp8_meta and others["linear._extra_state"].numel() == 0


def test_a_history_of_another_length_begins_anew_with_the_scales():
    chunk, fresh = Chunk(linear=Scaled(fill=1)), Chunk(linear=Scaled(history=8))
    scaling.taken(fresh, saved_by(chunk))
    state, saved = (c.linear.fp8_meta["scaling_fwd"] for c in (fresh, chunk))
    assert torch.equal(state.scale, saved.scale) and not state.amax_history.any()


def test_what_is_read_leaves_no_trace_in_a_history():
    """Also of a module whose first pass it is; a step's own notes stay."""
    chunk = Chunk(linear=Scaled(fill=1), late=Scaled())
    before = tensors_of(chunk.linear)
    with scaling.untouched([chunk]):
        chunk.late.fp8_meta["num_gemms"] = 1
        chunk.late.init_fp8_meta_tensors(None)
        for module in (chunk.linear, chunk.late):
            module.fp8_meta["scaling_fwd"].amax_history[0] += 1
    assert all(torch.equal(a, b) for a, b in zip(tensors_of(chunk.linear), before, strict=True))
    assert not chunk.late.fp8_meta["scaling_fwd"].amax_history.any()


def test_recipes_without_history_save_and_take_nothing():
    chunk = Chunk("tensorwise", linear=Scaled(), experts=Scaled(2))
    saved = saved_by(chunk)
    assert [part.numel() for part in saved.values()] == [2, 0, 0, 0]
    delayed = Chunk(linear=Scaled(fill=1), experts=Scaled(2, fill=1))
    scaling.taken(chunk, saved_by(delayed))
    assert not chunk.linear.fp8_meta and not chunk.experts.fp8_meta
