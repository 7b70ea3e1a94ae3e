"""Objectives of on-policy distillation: targets, tokens left alone, limits."""

from dataclasses import replace

import pytest
import tiny
import torch
from test_logits import Alone

from megatron_qwen3.config import ConfigError, load, validate
from megatron_qwen3.model.logits import Logits
from megatron_qwen3.parallel.layout import check_world_size
from megatron_qwen3.posttrain.policy.objective import SAMPLER, SEQUENCE
from megatron_qwen3.posttrain.policy.towards import asked_of, is_whole, towards, with_answer
from megatron_qwen3.posttrain.teachers.teacher_settings import check, layout_of, settings_of
from megatron_qwen3.settings_rl import ScoringTeacherConfig
from megatron_qwen3.training.batch import TokenBatch

B, S, H, V, K = 3, 7, 8, 13, 4
KINDS = {
    "reverse": ("distill.divergence=reverse_kl",),
    "forward": ("distill.divergence=forward_kl",),
    "jensen-shannon": ("distill.divergence=jensen_shannon", "distill.beta=0.3"),
    "top-k-reverse": ("distill.divergence=reverse_kl", f"distill.top_k={K}"),
    "top-k-forward": ("distill.divergence=forward_kl", f"distill.top_k={K}"),
    "sampled": ("distill.divergence=sampled",),
}
DIVERGENCES = [kind for kind in KINDS if kind != "sampled"]


def config_of(*settings):
    base = ["run.mode=distill", "train.steps=1", "model.preset=tiny-dense"]
    return load([], [*base, "distill.teacher.path=teacher", "train.precision=fp32", *settings])


def side(seed, width=H):
    random = torch.Generator().manual_seed(seed)
    hidden = torch.randn(S, B, width, generator=random)
    return hidden, torch.randn(V, width, generator=random)


def batch_of(student, seed=4):
    """Labels that the student sampled, with their log p at the time; the first two are a prompt."""
    log_q = (student[0] @ student[1].t()).detach().log_softmax(-1).transpose(0, 1)
    random = torch.Generator().manual_seed(seed)
    labels = torch.multinomial(log_q.exp().flatten(0, 1), 1, generator=random).view(B, S)
    weights = torch.ones(B, S)
    weights[:, :2] = 0
    before = log_q.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    extra = {SAMPLER: before, SEQUENCE: torch.zeros(B, S, dtype=torch.int64)}
    return TokenBatch(labels, labels, weights, extra=extra)


def loss_of(config, student, teacher, batch):
    """The sum over trained tokens, by the two heads."""
    answer = asked_of(config, teacher[0].shape[-1]).compute(Logits(*teacher, Alone()), batch)
    batch = with_answer(batch, answer)
    objective = towards(config, teacher[0].shape[-1], teacher[1], V)
    objective.head.check(batch, config.model)
    sums = objective.sums(objective.head.compute(Logits(*student, Alone()), batch), batch)
    return sums[config.distill.divergence], sums


def gradients(config, student, teacher, batch):
    leaves = [x.clone().requires_grad_() for x in student]
    loss, _ = loss_of(config, leaves, teacher, batch)
    return loss.item(), torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize("kind", KINDS)
def test_a_teacher_that_is_the_student_leaves_it_as_it_is(kind):
    config, student = config_of(*KINDS[kind]), side(1)
    loss, found = gradients(config, student, [x.clone() for x in student], batch_of(student))
    assert abs(loss) < 1e-5
    for gradient in found:
        assert gradient.abs().max() < 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_a_teacher_that_is_swapped_changes_the_gradient(kind):
    config, student = config_of(*KINDS[kind]), side(1)
    batch = batch_of(student)
    one, other = (gradients(config, student, side(seed, 5), batch)[1] for seed in (2, 3))
    for a, b in zip(one, other, strict=True):
        assert (a - b).norm() > 0.2 * a.norm()


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_no_term_raises_the_students_own_samples(kind):
    """Other samples at the same positions are the same loss and gradient, to the bit."""
    config, student, teacher = config_of(*KINDS[kind]), side(1), side(2)
    one, other = (gradients(config, student, teacher, batch_of(student, seed)) for seed in (4, 5))
    assert one[0] == other[0]
    assert all(a.equal(b) for a, b in zip(one[1], other[1], strict=True))


def test_a_sampled_token_is_raised_only_by_what_the_teacher_gives_it_more():
    """d loss / d log q of it is log q - log p, whose mean over q is the slope of KL(q ‖ p)."""
    config = config_of(*KINDS["sampled"])
    student, teacher = side(1), side(2)
    batch = batch_of(student)
    _, (of_hidden, _) = gradients(config, student, teacher, batch)
    log_q, log_p = ((h @ w.t()).log_softmax(-1).transpose(0, 1) for h, w in (student, teacher))
    apart = (log_q - log_p).gather(-1, batch.labels_BS.unsqueeze(-1)) * batch.weights_BS[..., None]
    chosen = torch.nn.functional.one_hot(batch.labels_BS, V)
    expected = (apart * (chosen - log_q.exp())) @ student[1]
    torch.testing.assert_close(of_hidden.transpose(0, 1), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_reported_is_of_the_trained_tokens(kind):
    config, student, teacher = config_of(*KINDS[kind]), side(1), side(2)
    batch = batch_of(student)
    _, sums = loss_of(config, student, teacher, batch)
    log_q, log_p = ((h @ w.t()).log_softmax(-1).transpose(0, 1) for h, w in (student, teacher))
    weights, labels = batch.weights_BS, batch.labels_BS.unsqueeze(-1)
    expected = {
        "entropy": -(log_q.exp() * log_q).sum(-1),
        "student_log_prob": log_q.gather(-1, labels).squeeze(-1),
        "teacher_log_prob": log_p.gather(-1, labels).squeeze(-1),
        "agreement": (log_p.argmax(-1) == batch.labels_BS).float(),
    }
    for name, x in expected.items():
        assert sums[name].item() == pytest.approx((x * weights).sum().item(), rel=1e-5), name


def trained(with_others, steps=200):
    """Mass on the teacher's top 4 of 13 tokens, before and after, and the teacher's.

    with_others: by the objective, whose last bin is all other tokens; else by the sum over the four
    alone.
    """
    config, teacher = config_of(*KINDS["top-k-reverse"]), side(2)
    hidden = torch.eye(S * B)[:, None].expand(-1, 1, -1)  # a free logit of each token and position
    flat = teacher[0].flatten(0, 1).unsqueeze(1), teacher[1]
    taught = flat[0] @ flat[1].t()
    log_p, ids = taught.log_softmax(-1).topk(K)
    noise = 0.3 * torch.randn(V, S * B, generator=torch.Generator().manual_seed(6))
    logits = (taught.squeeze(1).t() + noise).requires_grad_()  # it begins near its teacher
    nothing = torch.zeros(1, S * B)
    extra = {SAMPLER: nothing, SEQUENCE: nothing.long()}
    batch = TokenBatch(nothing.long(), nothing.long(), torch.ones(1, S * B), extra=extra)
    optimizer = torch.optim.Adam([logits], lr=0.05)

    def log_q():
        return logits.t().unsqueeze(1).log_softmax(-1).gather(-1, ids)

    before = log_q().exp().sum(-1).mean().item()
    for _ in range(steps):
        if with_others:
            loss, _ = loss_of(config, (hidden, logits), flat, batch)
        else:
            loss = (log_q().exp() * (log_q() - log_p)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return before, log_q().exp().sum(-1).mean().item(), log_p.exp().sum(-1).mean().item()


def test_a_student_keeps_its_mass_on_the_teachers_top_k_only_with_a_bin_of_all_others():
    before, after, of_teacher = trained(with_others=True)
    assert after > before - 0.02 and after == pytest.approx(of_teacher, abs=0.01)
    before, after, _ = trained(with_others=False)
    assert after < before / 2  # it flees from where it is compared


def test_the_whole_vocabulary_is_compared_unless_ids_are_asked_for():
    whole = [kind for kind in KINDS if is_whole(config_of(*KINDS[kind]).distill)]
    assert whole == ["reverse", "forward", "jensen-shannon"]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["distill.beta=0.3"], "distill.beta = 0.3 goes with .*jensen_shannon"),
        (["distill.top_k=3", "distill.divergence=sampled"], "top_k = 3 has no effect"),
        (["distill.top_k=9999"], "distill.top_k = 9999 exceeds model.vocab_size = 512"),
        (
            ["distill.divergence=sampled", "rollouts.temperature=0.7"],
            "distill.temperature = 1.0 .* must be rollouts.temperature = 0.7",
        ),
        (
            ["rollouts.tasks=[{name='a', path='p', rewards=['judge=1']}]"],
            r"rollouts.tasks.a.rewards = \['judge=1'\] has no effect in run.mode = .distill.",
        ),
        (["optim.z_loss=1e-4"], "optim.z_loss = 0.0001 is no part"),
        (["distill.teacher.path="], "neither is set; set one"),
        (["distill.teacher.url=http://a/v1"], "both are set; set one"),
    ],
)
def test_settings_that_do_not_go_together_are_told_in_a_line(settings, says):
    with pytest.raises(ConfigError, match=says):
        config_of(*settings)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ([], "top_k = 0 compares the whole vocabulary, which the teacher of"),
        (["distill.top_k=9", "distill.temperature=2.0"], "a served teacher tells"),
        (["distill.top_k=9", "distill.teacher.tensor=2"], "teacher.tensor = 2 is of a teacher in"),
        (
            ["distill.top_k=9", "distill.teacher.in_turns=true"],
            "in_turns = True is of a teacher in",
        ),
    ],
)
def test_a_served_teacher_is_asked_only_what_it_can_tell(settings, says):
    with pytest.raises(ConfigError, match=says):
        config_of("distill.teacher.path=", "distill.teacher.url=http://a/v1", *settings)


@pytest.mark.parametrize(
    ("preset", "ranks", "asked", "sizes"),
    [
        ("qwen3-32b", 1, {}, (1, 1, 1)),
        ("qwen3-32b", 6, {}, (2, 1, 1)),
        ("qwen3-32b", 16, {}, (8, 1, 1)),
        ("qwen3-32b", 16, {"pipeline": 4}, (4, 4, 1)),
        ("qwen3-32b", 16, {"tensor": 1}, (1, 1, 1)),
        ("qwen3-235b-a22b", 64, {}, (4, 1, 64)),
        ("tiny-moe", 3, {}, (1, 1, 1)),
    ],
)
def test_the_layout_of_a_teacher_follows_from_the_ranks_where_it_is_not_set(
    preset, ranks, asked, sizes
):
    model = load([], [f"model.preset={preset}", "train.steps=1"]).model
    found = layout_of(ScoringTeacherConfig(path="x", **asked), model, 4096, ranks)
    assert (found.tensor, found.pipeline, found.expert) == sizes
    config = load([], [f"model.preset={preset}", "train.steps=1"])
    laid_out = replace(config, parallel=found, train=replace(config.train, global_batch=64 * 3))
    validate(laid_out)
    check_world_size(laid_out, ranks)


def test_a_wrong_layout_of_a_teacher_is_told_by_the_names_of_its_settings(tmp_path):
    tiny.save(tmp_path)
    settings = config_of(f"distill.teacher.path={tmp_path}", "distill.teacher.tensor=8")
    with pytest.raises(ConfigError) as caught:
        settings_of(settings, 8)
    assert str(caught.value).startswith("distill.teacher.tensor = 8 does not divide model.num_q")
    settings = config_of(f"distill.teacher.path={tmp_path}", "distill.teacher.tensor=2")
    with pytest.raises(ConfigError) as caught:
        check(settings, 1, {})
    assert str(caught.value).startswith(
        "distill.teacher: a world of 1 ranks is no multiple of distill.teacher.tensor * pipeline"
    )
