"""The objective of a policy: untrained tokens never count, equal starts stay equal."""

import dataclasses

import pytest
import torch

from megatron_qwen3.config import ConfigError, load
from megatron_qwen3.posttrain.policy import importance, kl, losses
from megatron_qwen3.posttrain.policy.answers import Answers
from megatron_qwen3.posttrain.policy.objective import (
    METRICS,
    policy_objective,
    trained_answers,
)
from megatron_qwen3.posttrain.policy.rejection import without_rejected
from megatron_qwen3.training.batch import TokenBatch

B, S = 3, 12
# Two answers in row 0, one in row 1 with an inserted token, none in row 2.
SEQUENCE = torch.full((B, S), -1)
SEQUENCE[0, 1:5], SEQUENCE[0, 6:12], SEQUENCE[1, 3:9] = 0, 1, 0
IS_TRAINED = SEQUENCE >= 0
IS_TRAINED[1, 5] = False
RL = ["model.preset=tiny-dense", "train.steps=1", "run.mode=rl"]
EVERY_LOSS = [
    *(f"rl.loss.ratio={ratio}" for ratio in ("token", "sequence_mean", "sequence")),
    "rl.loss.clip=cispo",
    *(f"rl.loss.mean={mean}" for mean in ("sequence_mean", "sequence_sum", "constant")),
    *(f"rl.loss.importance={kind}" for kind in ("none", "mask", "sequence_mask")),
    "rl.loss.stale_limit=0.01",
    "rl.loss.dual_clip=0",
]


def config(*settings):
    return load([], [*RL, *settings])


def numbers(seed):
    return -torch.rand(B, S, generator=torch.Generator().manual_seed(seed))


def batch(**more):
    counts = Answers.of(SEQUENCE, IS_TRAINED).counts_BS
    extra = {
        "advantage": torch.where(SEQUENCE == 0, 1.0, -0.5),
        "old_log_prob": numbers(1),
        "sampler_log_prob": numbers(2),
        "reference_log_prob": numbers(3),
        "sequence": SEQUENCE,
        "share": 1 / counts,
    }
    tokens = torch.zeros(B, S, dtype=torch.int64)
    return TokenBatch(tokens, tokens, IS_TRAINED.float(), extra=extra | more)


def result(config, batch, log_prob, entropy=None, **more):
    """Means by name, the loss as the engine makes it, and its gradients."""
    log_prob = log_prob.clone().requires_grad_()
    entropy = torch.ones(B, S).requires_grad_() if entropy is None else entropy.requires_grad_()
    objective = policy_objective(config, 3, **more)
    sums = objective.sums({"log_prob": log_prob, "entropy": entropy}, batch)
    means = objective.means
    means = {n: x / (means[n].count or means[n].of(batch).sum()) for n, x in sums.items()}
    # As the engine: of all means at once, so that metrics get a derivative of 0.
    loss = torch.stack(list(means.values()))[: len(objective.losses)].sum()
    gradients = torch.autograd.grad(loss, (log_prob, entropy), allow_unused=True)
    return {name: x.item() for name, x in means.items()} | {"loss": loss.item()}, *gradients


def largest_mismatch(batch, log_prob):
    outputs = {"log_prob": log_prob, "entropy": torch.zeros_like(log_prob)}
    objective = policy_objective(config(), 3)
    return objective.sums_and_largest(outputs, batch)[1]["mismatch_max"]


def test_sums_of_answers_in_rows_are_those_of_a_loop_with_their_gradient():
    x = numbers(4).requires_grad_()
    answers = Answers.of(SEQUENCE, IS_TRAINED)
    sums, means, most = answers.sums(x), answers.means(x), answers.largest(-x)
    for row in range(B):
        for place in range(S):
            same = (SEQUENCE[row] == SEQUENCE[row, place]) & IS_TRAINED[row]
            wanted = x[row][same].sum() if IS_TRAINED[row, place] else torch.tensor(0.0)
            torch.testing.assert_close(sums[row, place], wanted)
            torch.testing.assert_close(means[row, place], wanted / max(1, same.sum()))
            if IS_TRAINED[row, place]:
                assert most[row, place] == -x[row][same].min()
    (gradient,) = torch.autograd.grad((sums * 2).sum(), x)
    assert torch.equal(gradient, 2 * answers.counts_BS * IS_TRAINED)


@pytest.mark.parametrize("setting", EVERY_LOSS)
def test_what_is_not_trained_gives_nothing_whatever_it_is(setting):
    settings = config(
        setting, "rl.kl.coefficient=0.1", "rl.kl.weigh_by_ratio=true", "rl.kl.limit=0"
    )
    sound = result(settings, batch(), numbers(5))
    assert torch.equal(sound[1] != 0, IS_TRAINED & (sound[1] != 0))
    for broken in (float("nan"), float("inf"), 1e4, -1e4):
        names = batch().extra.keys() - {"sequence", "share"}
        spoiled = {n: torch.where(IS_TRAINED, batch().extra[n], broken) for n in names}
        log_prob = torch.where(IS_TRAINED, numbers(5), -broken)
        found = result(settings, batch(**spoiled), log_prob)
        assert found[0] == sound[0] and torch.equal(found[1], sound[1])


@pytest.mark.parametrize("setting", EVERY_LOSS)
def test_before_the_first_update_ratios_are_1_and_the_gradient_is_the_policys(setting):
    settings = config(setting, "rl.kl.coefficient=0.1", "rl.loss.importance_high=50")
    now = numbers(1)
    alike = {f"{name}_log_prob": now for name in ("old", "sampler", "reference")}
    means, gradient, _ = result(settings, batch(**alike), now)
    assert means["ratio"] == means["importance"] == 1
    for name in ("kl", "policy_change", "mismatch", "mismatch_kl", "mismatch_share", "clip_share"):
        assert abs(means[name]) < 1e-8, name
    assert means["kl_loss"] == 0 and largest_mismatch(batch(**alike), now) == 0
    # Every ratio starts with the gradient -A of log p, weighed as the mean weighs tokens.
    objective = policy_objective(settings, 3)
    mean = objective.losses["policy_loss"]
    count = mean.count or IS_TRAINED.sum()
    weight = -batch().extra["advantage"] * mean.of(batch()) / count
    if settings.rl.loss.ratio != "token":  # an answer's loss is moved by all its tokens alike
        of_answer = Answers.of(SEQUENCE, IS_TRAINED)
        spread = of_answer.means if settings.rl.loss.ratio == "sequence_mean" else of_answer.sums
        weight = spread(weight)
    torch.testing.assert_close(gradient, torch.where(IS_TRAINED, weight, 0.0))


def test_every_log_prob_that_was_collected_moves_the_gradient():
    """A reference, or the sampler's scores, that are read and then left aside train as well."""
    settings = config("rl.kl.coefficient=0.1", "rl.loss.importance_high=1.1")
    gradient = result(settings, batch(), numbers(5))[1]
    for name in batch().extra.keys() - {"sequence", "share"}:
        other = batch(**{name: batch().extra[name] + 0.1})
        assert not torch.equal(result(settings, other, numbers(5))[1], gradient), name


def test_a_huge_ratio_has_no_gradient_and_leaves_the_others_theirs():
    far = numbers(5)
    far[0, 2] = 60.0  # impossible as log p, but what overflow looks like
    means, gradient, _ = result(config(), batch(), far)
    assert all(map(torch.isfinite, map(torch.tensor, means.values())))
    assert gradient[0, 2] == 0 and torch.isfinite(gradient).all() and (gradient != 0).any()


def test_metrics_never_spoil_the_gradient():
    """Their derivative is 0 · inf where a difference overflows, and they have none."""
    far = batch(reference_log_prob=torch.full((B, S), 200.0))
    settings = config(
        "rl.kl.coefficient=0.1", "rl.kl.place=reward", "rl.kl.limit=0", "rl.kl.most=0"
    )
    means, gradient, of_entropy = result(settings, far, numbers(5))
    assert means["kl"] == float("inf") and torch.isfinite(gradient).all()
    assert of_entropy is None  # nothing is computed for what is only reported


def test_the_bonus_of_entropy_is_a_mean_over_tokens_of_the_coefficient_given():
    settings = config("rl.entropy.coefficient=0.01", "rl.loss.mean=sequence_sum")
    entropy = -numbers(6)
    for given, coefficient in (({}, 0.01), ({"entropy_coefficient": 0.2}, 0.2)):
        means, _, gradient = result(settings, batch(), numbers(5), entropy.clone(), **given)
        of_mean = entropy[IS_TRAINED].mean()
        assert means["entropy_loss"] == pytest.approx(-coefficient * of_mean.item())
        wanted = torch.where(IS_TRAINED, -coefficient / IS_TRAINED.sum(), 0.0)
        torch.testing.assert_close(gradient, wanted)
    objective = policy_objective(settings, 3, entropy_coefficient=0.0)
    assert "entropy_loss" not in objective.losses and "entropy" in objective.metrics


def test_answers_without_a_trained_token_are_left_out_of_means_or_counted_as_set():
    for mean in ("sequence_mean", "sequence_sum", "constant"):
        left_out = config(f"rl.loss.mean={mean}")
        counted = config(f"rl.loss.mean={mean}", "rl.loss.masked=counted")
        alone = result(left_out, batch(), numbers(5))[0]["loss"]
        assert result(left_out, batch(), numbers(5), masked=1)[0]["loss"] == alone
        fewer = result(counted, batch(), numbers(5), masked=1)[0]["loss"]
        assert fewer == pytest.approx(alone * 3 / 4)


def test_the_constant_mean_divides_by_the_most_tokens_of_an_answer_never_by_the_width():
    for settings, length in (((), 1024), (("rollouts.max_new_tokens=100",), 100)):
        objective = policy_objective(config("rl.loss.mean=constant", *settings), 3)
        assert objective.losses["policy_loss"].count == 3 * length
    objective = policy_objective(config("rl.loss.mean=constant", "rl.loss.length=7"), 3)
    assert objective.losses["policy_loss"].count == 21


def test_importance_is_of_tokens_or_of_answers_and_has_no_gradient():
    high = ("rl.loss.importance_high=1.2", "rl.loss.importance_low=0.8")
    for kind in ("truncate", "mask", "sequence_truncate", "sequence_mask"):
        means, gradient, _ = result(
            config(f"rl.loss.importance={kind}", *high), batch(), numbers(5)
        )
        plain, of_plain, _ = result(config("rl.loss.importance=none"), batch(), numbers(5))
        extra = batch().extra
        apart = (extra["old_log_prob"] - extra["sampler_log_prob"]).double()
        if kind.startswith("sequence"):
            apart = Answers.of(SEQUENCE, IS_TRAINED).sums(apart)
        raw = apart.exp()
        cut = raw.clamp_max(1.2) if "truncate" in kind else raw * ((raw >= 0.8) & (raw <= 1.2))
        assert means["importance"] == pytest.approx(cut[IS_TRAINED].mean().item(), rel=1e-5)
        is_cut = (cut != raw)[IS_TRAINED].double().mean().item()
        assert means["importance_limited"] == pytest.approx(is_cut) and 0 < is_cut < 1
        torch.testing.assert_close(gradient, of_plain * cut.float(), rtol=1e-5, atol=1e-7)


def test_the_mismatch_of_trainer_and_sampler_is_told():
    means, *_ = result(config(), batch(), numbers(5))
    apart = (numbers(1) - numbers(2))[IS_TRAINED].double()
    assert means["mismatch"] == pytest.approx(apart.abs().mean().item())
    assert means["mismatch_kl"] == pytest.approx((apart.exp() - 1 - apart).mean().item(), rel=1e-5)
    share = ((apart.exp() - 1).abs() > 0.01).double().mean().item()
    assert means["mismatch_share"] == pytest.approx(share)
    assert largest_mismatch(batch(), numbers(5)) == apart.float().abs().max()
    nothing = dataclasses.replace(batch(), weights_BS=torch.zeros(B, S))
    assert largest_mismatch(nothing, numbers(5)) == 0


@pytest.mark.parametrize("setting", EVERY_LOSS)
def test_log_probs_of_now_stand_for_those_before_the_first_update(setting):
    """Loss, gradient and metrics equal those of the batch that brings them along."""
    now = numbers(1)
    brought = result(config(setting), batch(old_log_prob=now), now)
    without = batch()
    without = dataclasses.replace(
        without, extra={n: x for n, x in without.extra.items() if n != "old_log_prob"}
    )
    found = result(config(setting), without, now)
    assert found[0] == brought[0] and torch.equal(found[1], brought[1])
    assert largest_mismatch(without, now) == largest_mismatch(batch(old_log_prob=now), now)


def test_a_batch_of_which_the_objective_needs_old_log_probs_has_them():
    assert "old_log_prob" in policy_objective(config(), 3).head.needs
    assert "old_log_prob" not in policy_objective(config(), 3, has_old=False).head.needs


def test_rejected_tokens_count_in_no_mean():
    for kind, limit in (("token_k1", 1.5), ("seq_mean_k3", 0.05), ("seq_max_k2", 0.2)):
        settings = config(f"rl.loss.rejection={kind}", f"rl.loss.rejection_limit={limit}")
        kept = without_rejected(batch(), settings.rl.loss)
        apart = batch().extra["old_log_prob"] - batch().extra["sampler_log_prob"]
        answers = Answers.of(SEQUENCE, IS_TRAINED)
        is_kept = importance.is_within(kind, apart, answers, limit) & IS_TRAINED
        assert torch.equal(kept.weights_BS, is_kept.float())
        assert 0 < is_kept.sum() < IS_TRAINED.sum()
        left = {(b, int(SEQUENCE[b, s])) for b, s in is_kept.nonzero().tolist()}
        assert trained_answers(kept) == len(left)
        for b, number in left:
            mine = is_kept[b] & (SEQUENCE[b] == number)
            torch.testing.assert_close(kept.extra["share"][b][mine].sum(), torch.tensor(1.0))
    assert without_rejected(batch(), config().rl.loss).weights_BS is not None
    assert trained_answers(batch()) == 3


def test_k1_as_a_loss_would_not_move_towards_the_reference():
    """Its gradient is the same whatever the reference is; so it is refused as a setting."""
    log_prob = numbers(1).requires_grad_()
    for name, is_same in (("k1", True), ("k2", False), ("k3", False), ("k1+", False)):
        gradients = [
            torch.autograd.grad(kl.estimate(log_prob, numbers(seed), name).sum(), log_prob)[0]
            for seed in (2, 3)
        ]
        assert torch.equal(*gradients) == is_same
    with pytest.raises(ConfigError, match="the reference is not in its derivative"):
        config("rl.kl.coefficient=0.1", "rl.kl.estimator=k1")
    config("rl.kl.coefficient=0.1", "rl.kl.estimator=k1", "rl.kl.place=reward")


def test_the_gradients_of_kl_estimators_are_on_average_those_of_their_divergences():
    """Over samples of the policy: k1 0, k2 and the straight-through ones KL(policy ‖ reference),
    k3 KL(reference ‖ policy); the average is exact, weighed by the policy's probabilities."""
    logits = torch.randn(7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    reference = torch.randn(7, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    logits.requires_grad_()
    log_q, log_p = logits.log_softmax(0), reference.log_softmax(0)

    def gradient(x):
        return torch.autograd.grad(x, logits, retain_graph=True)[0]

    reverse = gradient((log_q.exp() * (log_q - log_p)).sum())
    forward = gradient((log_p.exp() * (log_p - log_q)).sum())
    wanted = {"k1": 0 * reverse, "k2": reverse, "k3": forward, "k1+": reverse, "k3+": reverse}
    for name, of_divergence in wanted.items():
        on_average = (log_q.exp().detach() * kl.estimate(log_q, log_p, name)).sum()
        torch.testing.assert_close(gradient(on_average), of_divergence, msg=name)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (("rl.loss.length=5",), 'rl.loss.length = 5 goes with rl.loss.mean = "constant"'),
        (("rl.loss.dual_clip=1.1",), "rl.loss.dual_clip = 1.1 is within 1 + clip_high = 1.2"),
        (("rl.loss.clip_low=1.5",), "rl.loss.clip_low = 1.5 must be at most 1"),
        (
            ("rl.loss.importance=mask", "rl.loss.importance_low=3"),
            "rl.loss.importance_low = 3.0 exceeds importance_high = 2.0",
        ),
        (
            ("rl.loss.rejection=token_k1", "rl.loss.rejection_limit=0.9"),
            "rl.loss.rejection_limit = 0.9 with rejection",
        ),
        (("rl.kl.reference=x",), "rl.kl.reference = x has no effect with rl.kl.coefficient = 0"),
        (("rl.kl.weigh_by_ratio=true",), "rl.kl.weigh_by_ratio = True has no effect"),
        (
            ("rl.kl.coefficient=1", "rl.kl.place=reward", "rl.kl.weigh_by_ratio=true"),
            "there is no ratio before the update",
        ),
        (
            ("rl.kl.coefficient=1", "rl.kl.place=reward", "rl.advantage.parts=each"),
            'rl.kl.place = "reward" takes the divergence off the sum',
        ),
        (
            ("rl.advantage.parts=each", "rl.advantage.reward_limit=1"),
            "rl.advantage.reward_limit = 1.0 cuts the sum of rewards",
        ),
        (("rl.entropy.low=0.2",), "change nothing with rl.entropy.change = 0"),
        (("rl.entropy.change=0.1",), "rl.entropy.change = 0.1 needs a band"),
        (
            ("rl.entropy.low=2", "rl.entropy.high=1", "rl.entropy.change=0.001"),
            "rl.entropy.high = 1.0 is below rl.entropy.low = 2.0",
        ),
        (
            ("rl.entropy.low=2", "rl.entropy.change=0.001", "rl.entropy.coefficient=1"),
            "rl.entropy.coefficient = 1.0 exceeds rl.entropy.most = 0.01",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_one_line_each(settings, told):
    with pytest.raises(ConfigError) as caught:
        config(*settings)
    assert told in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_what_the_objective_needs_is_asked_for_before_a_pass():
    """A missing extra would be found on the last stage alone, and leave the others waiting."""
    settings = config("rl.kl.coefficient=0.1")
    objective = policy_objective(settings, 3)
    for name in batch().extra:
        without = {n: x for n, x in batch().extra.items() if n != name}
        with pytest.raises(ValueError, match=f"extra {name} is not there"):
            objective.head.check(dataclasses.replace(batch(), extra=without), settings.model)
    objective.head.check(batch(), settings.model)
    objective.check(batch())
    assert set(METRICS) | {"kl"} == set(objective.metrics)
    with pytest.raises(ValueError, match="an update on 0 answers"):
        policy_objective(settings, 0)


def test_names_that_are_none_are_refused():
    x = torch.zeros(B, S)
    answers = Answers.of(SEQUENCE, IS_TRAINED)
    for wrong in (
        lambda: kl.estimate(x, x, "k4"),
        lambda: losses.log_ratio("mean", x, answers),
        lambda: importance.weights("cut", x, answers),
        lambda: importance.is_within("seq_max_k1", x, answers, 2.0),
        lambda: importance.is_within("seq_min_k2", x, answers, 2.0),
    ):
        with pytest.raises(ValueError, match="is no"):
            wrong()
