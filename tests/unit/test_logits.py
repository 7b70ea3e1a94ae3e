"""Scores of tiled logits are those of whole ones in float64, derivatives included."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from live_memory import LiveMemory
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_qwen3.model.logits import Logits
from megatron_qwen3.model.tiles import TILE_BYTES, part_and_exps, row_blocks, square_tiles

S, B, H, V = 7, 3, 16, 300


@pytest.fixture(autouse=True)
def one_thread():
    """Many small operations: threads would wait for each other most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Alone:
    """A group of one rank."""

    def rank(self):
        return 0

    def size(self):
        return 1


def inputs(dtype=torch.float32, ids_shape=(S, B)):
    random = torch.Generator().manual_seed(5)
    hidden = torch.randn(S, B, H, generator=random)
    weight = torch.randn(V, H, generator=random)
    hidden[0, 0], weight[7] = 4.0, 4.0
    hidden[0, 0, 0] = 20.0  # the logit of token 7 is 320 there: one sure token
    ids = torch.randint(V, ids_shape, generator=random)
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), ids


def upstream(ids):
    random = torch.Generator().manual_seed(9)
    return [torch.randn(shape, generator=random) for shape in (ids.shape, (S, B), (S, B))]


def expected(hidden, weight, ids, with_entropy=True):
    """log p, log z, entropy and the gradients of hidden and weight, by whole logits."""
    hidden, weight = (x.detach().double().requires_grad_() for x in (hidden, weight))
    logits = hidden @ weight.t()
    log_p = logits.log_softmax(-1)
    of_ids = log_p.gather(-1, ids.view(S, B, -1)).view(ids.shape)
    values = of_ids, logits.logsumexp(-1), -(log_p.exp() * log_p).sum(-1)
    grads = upstream(ids)
    used = 3 if with_entropy else 2
    sum((x * g).sum() for x, g in zip(values[:used], grads[:used], strict=True)).backward()
    return [x.detach() for x in values], hidden.grad, weight.grad


def near(ours, theirs, tolerance):
    torch.testing.assert_close(
        ours.double(), theirs, rtol=tolerance, atol=tolerance * theirs.abs().max().item()
    )


# All logits in one tile; then at most 2100 in one, which divides both sides, 2099, 256 and 64.
@pytest.mark.parametrize("tile_bytes", [TILE_BYTES, 8400, 8396, 1024, 256])
@pytest.mark.parametrize("with_entropy", [False, True])
@pytest.mark.parametrize("ids_shape", [(S, B), (S, B, 5)])
def test_values_and_gradients_are_those_of_whole_logits(tile_bytes, with_entropy, ids_shape):
    hidden, weight, ids = inputs(ids_shape=ids_shape)
    scores = Logits(hidden, weight, Alone(), tile_bytes).scores(ids, with_entropy)
    values, of_hidden, of_weight = expected(hidden, weight, ids, with_entropy)
    assert (scores.entropy is None) is not with_entropy
    given = [x for x in scores if x is not None]
    for ours, theirs in zip(given, values, strict=False):
        assert ours.dtype == torch.float32
        near(ours.detach(), theirs, 1e-6)
    sum((x * g).sum() for x, g in zip(given, upstream(ids), strict=False)).backward()
    near(hidden.grad, of_hidden, 1e-6)
    near(weight.grad, of_weight, 1e-6)


def test_a_sure_tokens_log_probability_is_exact_to_the_last_bits_of_one():
    hidden, weight, _ = inputs()
    hidden = hidden.detach() / 20
    ids = torch.full((S, B), 7)
    exact = (hidden.double() @ weight.double().t()).log_softmax(-1)[0, 0, 7]
    assert -1e-4 < exact < -1e-6
    for tile_bytes in (TILE_BYTES, 1024):
        log_p = Logits(hidden, weight.detach(), Alone(), tile_bytes).scores(ids).log_p[0, 0]
        assert log_p.item() == pytest.approx(exact.item(), rel=0, abs=2**-23)


@pytest.mark.parametrize("tile_bytes", [TILE_BYTES, 1024])
def test_in_float64_nothing_is_rounded_to_less(tile_bytes):
    hidden, weight, ids = inputs(torch.float64, (S, B, 5))
    scores = Logits(hidden, weight, Alone(), tile_bytes).scores(ids, with_entropy=True)
    values, of_hidden, of_weight = expected(hidden, weight, ids)
    for ours, theirs in zip(scores[:3], values, strict=True):
        near(ours.detach(), theirs, 1e-13)
    sum((x * g).sum() for x, g in zip(scores[:3], upstream(ids), strict=True)).backward()
    near(hidden.grad, of_hidden, 1e-13)
    near(weight.grad, of_weight, 1e-13)


def test_derivatives_are_those_of_small_steps():
    random = torch.Generator().manual_seed(1)
    hidden = torch.randn(3, 1, 4, generator=random, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(40, 4, generator=random, dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([[[3, 3]], [[0, 39]], [[39, 17]]])  # the same id twice counts twice

    def scores(hidden, weight):
        return tuple(Logits(hidden, weight, Alone(), 160).scores(ids, with_entropy=True)[:3])

    assert torch.autograd.gradcheck(scores, (hidden, weight))


@pytest.mark.parametrize("tile_bytes", [TILE_BYTES, 1024])
def test_the_mean_cross_entropy_is_torchs(tile_bytes):
    hidden, weight, labels = inputs()
    hidden = (hidden.detach() / 9).requires_grad_()
    ours = -Logits(hidden, weight, Alone(), tile_bytes).scores(labels).log_p.mean()
    theirs = F.cross_entropy((hidden @ weight.t()).flatten(0, 1), labels.flatten())
    fused = F.linear_cross_entropy(hidden.flatten(0, 1), weight, labels.flatten())
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    gradients = [torch.autograd.grad(x, (hidden, weight)) for x in (ours, theirs, fused)]
    for mine, *others in zip(*gradients, strict=True):
        for other in others:
            near(mine, other.double(), 1e-6)


@pytest.mark.parametrize("tile_bytes", [TILE_BYTES, 1024])
def test_bfloat16_is_as_near_as_the_plain_way_in_bfloat16(tile_bytes):
    hidden, weight, labels = inputs(torch.bfloat16)
    values, *exact = expected(hidden, weight, labels, with_entropy=False)
    scores = Logits(hidden, weight, Alone(), tile_bytes).scores(labels)
    g = upstream(labels)
    ours = (scores.log_p * g[0]).sum() + (scores.log_z * g[1]).sum()
    logits = (hidden @ weight.t()).float()
    log_p = logits.log_softmax(-1).gather(-1, labels[..., None]).squeeze(-1)
    plain = (log_p * g[0]).sum() + (logits.logsumexp(-1) * g[1]).sum()
    torch.testing.assert_close(scores.log_p, log_p, rtol=1e-5, atol=1e-4)
    of_ours = torch.autograd.grad(ours, (hidden, weight))
    of_plain = torch.autograd.grad(plain, (hidden, weight))
    for mine, usual, true in zip(of_ours, of_plain, exact, strict=True):
        assert mine.dtype == torch.bfloat16
        errors = [(x.double() - true).norm() / true.norm() for x in (mine, usual)]
        assert errors[0] <= 1.1 * errors[1] < 0.02


@pytest.mark.parametrize("frozen", [0, 1])
@pytest.mark.parametrize("tile_bytes", [TILE_BYTES, 1024])
def test_what_is_frozen_has_no_gradient_and_the_other_has_its_own(frozen, tile_bytes):
    tensors = list(inputs()[:2])
    ids = inputs()[2]
    *_, of_hidden, of_weight = expected(*tensors, ids, with_entropy=False)
    tensors[frozen].requires_grad_(False)
    scores = Logits(*tensors, Alone(), tile_bytes).scores(ids)
    g = upstream(ids)
    ((scores.log_p * g[0]).sum() + (scores.log_z * g[1]).sum()).backward()
    assert tensors[frozen].grad is None
    near(tensors[1 - frozen].grad, [of_weight, of_hidden][frozen], 1e-6)


@pytest.mark.parametrize("tile_bytes", [TILE_BYTES, 1024])
@pytest.mark.parametrize("alone", ["log_p", "log_z", "entropy"])
def test_a_loss_of_one_of_the_three_has_that_ones_gradient(alone, tile_bytes):
    hidden, weight, ids = inputs()
    scores = Logits(hidden, weight, Alone(), tile_bytes).scores(ids, with_entropy=True)
    ours = torch.autograd.grad(getattr(scores, alone).sum(), (hidden, weight))
    exact = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    log_p = (exact[0] @ exact[1].t()).log_softmax(-1)
    of_whole = {
        "log_p": log_p.gather(-1, ids[..., None]).sum(),
        "log_z": (exact[0] @ exact[1].t()).logsumexp(-1).sum(),
        "entropy": -(log_p.exp() * log_p).sum(),
    }
    for mine, true in zip(ours, torch.autograd.grad(of_whole[alone], exact), strict=True):
        near(mine, true, 1e-6)


@pytest.mark.parametrize("tile_bytes", [TILE_BYTES, 1024])
def test_an_id_that_is_none_has_no_probability_and_leaves_the_others_alone(tile_bytes):
    hidden, weight, ids = inputs()
    bad = ids.clone()
    bad[2, 1], bad[3, 0] = -100, V
    log_p, log_z, *_ = Logits(hidden, weight, Alone(), tile_bytes).scores(bad)
    good, all_z, *_ = Logits(hidden, weight, Alone(), tile_bytes).scores(ids)
    is_bad = bad != ids
    assert log_p.isnan().equal(is_bad) and log_z.equal(all_z)
    assert log_p[~is_bad].equal(good[~is_bad])
    left_out = torch.where(is_bad, 0.0, log_p).sum(), torch.where(is_bad, 0.0, good).sum()
    for a, b in zip(*(torch.autograd.grad(x, (hidden, weight)) for x in left_out), strict=True):
        assert a.equal(b)


@pytest.mark.parametrize("tile_bytes", [TILE_BYTES, 1024])
@pytest.mark.parametrize("k", [1, 5, V])
def test_the_most_probable_ids_are_torchs(k, tile_bytes):
    hidden, weight, _ = inputs()
    log_p, ids, _ = Logits(hidden, weight, Alone(), tile_bytes).top_k(k)
    exact = (hidden.double() @ weight.double().t()).log_softmax(-1)
    near(log_p, exact.topk(k).values.detach(), 1e-6)
    near(exact.gather(-1, ids).detach().float(), exact.topk(k).values.detach(), 1e-6)
    assert ids.shape == (S, B, k) and not log_p.requires_grad


@pytest.mark.parametrize("k", [0, V + 1])
def test_more_ids_than_there_are_is_refused(k):
    hidden, weight, _ = inputs()
    with pytest.raises(ValueError, match=f"the {k} most probable of {V} tokens"):
        Logits(hidden, weight, Alone()).top_k(k)


@pytest.mark.parametrize("positions", [0, 1])
def test_no_position_and_one(positions):
    hidden = torch.randn(positions, 1, H, requires_grad=True)
    weight = torch.randn(V, H, requires_grad=True)
    log_p = (
        Logits(hidden, weight, Alone()).scores(torch.zeros(positions, 1, dtype=torch.long)).log_p
    )
    log_p.sum().backward()
    exact = (hidden.detach() @ weight.detach().t()).log_softmax(-1)[..., 0]
    torch.testing.assert_close(log_p.detach(), exact)
    assert hidden.grad.shape == hidden.shape and weight.grad.isfinite().all()


@given(st.integers(0, 5000), st.integers(1, 5000), st.integers(4, 1 << 24))
@settings(max_examples=200)
def test_tiles_hold_every_logit_once_and_are_no_larger_than_asked(positions, columns, tile_bytes):
    for rows, blocks in (
        (row_blocks(positions, columns, tile_bytes), [slice(0, columns)]),
        square_tiles(positions, columns, tile_bytes),
    ):
        for length, slices in ((positions, rows), (columns, blocks)):
            ends = [0, *(s.stop for s in slices)]
            assert [s.start for s in slices] == ends[:-1] and ends[-1] == length
    largest = max(s.stop - s.start for s in rows) * max(s.stop - s.start for s in blocks)
    assert largest * 4 <= tile_bytes


def test_what_stands_for_a_tied_matrixs_gradient_takes_no_memory_until_the_embeddings_comes():
    _, weight, ids = inputs()
    tokens, live = ids.flip(0), []

    def backward(logits):
        return logits.scores(ids).log_p.sum().backward()

    backward(Logits(F.embedding(tokens, weight), weight, Alone(), 1024))
    plain, weight.grad = weight.grad, None
    weight.main_grad = torch.zeros(V, H)
    weight.grad_added_to_main_grad, weight.zero_out_wgrad = False, True
    embedded = F.embedding(tokens, weight)
    embedded.register_hook(lambda _: live.append(memory.live_bytes))
    with LiveMemory() as memory:
        backward(Logits(embedded, weight, Alone(), 1024))
    assert live[0] < weight.nbytes / 2
    near(weight.main_grad + weight.grad, plain.double(), 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_entropy", [False, True])
def test_memory_grows_by_a_few_numbers_per_position_and_no_more(dtype, with_entropy):
    width, columns, tile_bytes = 8, 1024, 1 << 19
    peaks = []
    for positions in (512, 1024, 2048):
        hidden = torch.randn(positions, 1, width, dtype=dtype, requires_grad=True)
        weight = torch.randn(columns, width, dtype=dtype, requires_grad=True)
        ids = torch.randint(columns, (positions, 1))
        with LiveMemory() as memory:
            scores = Logits(hidden, weight, Alone(), tile_bytes).scores(ids, with_entropy)
            sum(x.sum() for x in scores if x is not None).backward()
        gradients = hidden.numel() * hidden.element_size()
        assert memory.largest_bytes <= tile_bytes
        peaks.append(memory.peak_bytes - gradients)
    # Of each position: some twenty numbers of 4 and 8 bytes. Its logits are 4 KiB.
    assert peaks[1] - peaks[0] <= 512 * 160
    assert peaks[2] - peaks[1] <= 1024 * 160
    assert peaks[2] <= 3 * tile_bytes + 2048 * 160


class Products(TorchDispatchMode):
    """Counts the multiplications of matrix products."""

    def __init__(self):
        super().__init__()
        self.multiplications = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in (torch.ops.aten.mm.default, torch.ops.aten.addmm_.default):
            a, b = args[-2:]
            self.multiplications += a.numel() * b.shape[1]
        return function(*args, **(kwargs or {}))


def test_logits_that_fit_are_multiplied_once_and_others_again():
    hidden, weight, ids = inputs()
    counts = []
    for tile_bytes in (S * B * V * 4, S * B * V * 4 - 1):
        with Products() as products:
            Logits(hidden, weight, Alone(), tile_bytes).scores(ids).log_p.sum().backward()
        counts.append(products.multiplications / (S * B * V * H))
    assert counts == [3, 4]


def test_a_second_backward_pass_is_right_or_refused():
    hidden, weight, ids = inputs()
    for tile_bytes, is_kept in ((TILE_BYTES, True), (1024, False)):
        log_p = Logits(hidden, weight, Alone(), tile_bytes).scores(ids).log_p.sum()
        once = torch.autograd.grad(log_p, hidden, retain_graph=True)
        if is_kept:
            with pytest.raises(RuntimeError, match="inplace operation"):
                torch.autograd.grad(log_p, hidden)
        else:
            assert torch.autograd.grad(log_p, hidden)[0].equal(once[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tile_bytes", [TILE_BYTES, 1024])
@pytest.mark.parametrize("is_tied", [False, True])
def test_the_weights_gradient_goes_into_megatrons_buffer(is_tied, tile_bytes, dtype):
    hidden, weight, ids = inputs(dtype)
    plain, *_ = torch.autograd.grad(
        Logits(hidden, weight, Alone(), tile_bytes).scores(ids).log_p.sum(), weight
    )
    weight.main_grad = torch.full((V, H), torch.nan)
    weight.main_grad.is_old = True  # the first product of a step writes over it
    weight.grad_added_to_main_grad, weight.zero_out_wgrad = False, is_tied
    for times in (1, 2):
        Logits(hidden, weight, Alone(), tile_bytes).scores(ids).log_p.sum().backward()
        assert weight.grad_added_to_main_grad and weight.grad.shape == weight.shape
        if is_tied:
            assert not weight.grad.any()
        weight.grad = None
        tolerance = {torch.float32: 1e-6, torch.bfloat16: 1e-2}[dtype]
        near(weight.main_grad, times * plain.double(), tolerance)


def test_a_logit_of_minus_infinity_takes_no_part_in_the_entropy():
    with_it = torch.tensor([[0.0, 1.0, -torch.inf]])
    parts = [
        part_and_exps(logits.clone(), torch.tensor([[0]]), True, 0)[0]
        for logits in (with_it, with_it[:, :2])
    ]
    for found, expected in zip(*parts, strict=True):
        torch.testing.assert_close(found, expected)
