"""Advantages, losses of a policy and their gradients are those that TRL and verl computed.

Losses go through the objective of a run and through means as the engine takes them, with each
answer in a row of its own and with all of them packed into one. Kinds that no test reads are
skipped by name in tests/unit/test_golden.py; of those here, outputs left out are OPO's advantages
(verl_opo), GPG's (verl_gpg) and weights that are divided by their mean (…_batch_normalized).
"""

import dataclasses

import numpy as np
import pytest
import torch

from megatron_qwen3.config import load
from megatron_qwen3.model.distributions import log_probs_and_entropy
from megatron_qwen3.model.logits import Logits
from megatron_qwen3.posttrain.policy import importance, kl
from megatron_qwen3.posttrain.policy.advantages import advantages
from megatron_qwen3.posttrain.policy.answers import Answers
from megatron_qwen3.posttrain.policy.losses import sampled_advantage
from megatron_qwen3.posttrain.policy.objective import policy_objective, trained_answers
from megatron_qwen3.posttrain.policy.penalties import overlong, repetition
from megatron_qwen3.posttrain.verifiers.structure import think_format
from megatron_qwen3.settings_rl import AdvantageConfig
from megatron_qwen3.training.batch import TokenBatch
from tests import golden

MEANS = {
    "token-mean": "token",
    "seq-mean-token-mean": "sequence_mean",
    "seq-mean-token-sum": "sequence_sum",
    "seq-mean-token-sum-norm": "constant",
}
OF_TRL = {"grpo": "sequence_mean", "bnpo": "token", "dapo": "token"}
# Cases for which the libraries have no setting, or another default.
PLAIN = {"dual_clip": 0.0, "log_ratio_limit": 0.0, "importance": "none"}
UNLIMITED = {"limit": 0.0, "most": 0.0}
BOTH = pytest.mark.parametrize("packed", [False, True], ids=["apart", "packed"])


def cases(*kinds):
    return pytest.mark.parametrize("case", golden.cases("rl_losses.json", *kinds))


def tensor(numbers):
    return torch.from_numpy(array(numbers))


def array(numbers):
    """float64, where the file has the strings nan, inf and -inf for those numbers."""
    return np.asarray(np.array(numbers, dtype=object).astype(float), dtype=np.float64)


def near(ours, theirs, case, output=None):
    tol = case.get("tol_by_output", {}).get(output, case["tol"])
    ours = torch.as_tensor(np.asarray(ours) if isinstance(ours, list) else ours).detach().double()
    torch.testing.assert_close(ours, tensor(theirs), rtol=tol, atol=tol)


def configured(loss=None, kl=None, entropy=None):
    """A run's configuration; not validated, since k1 is computed here, and refused there."""
    config = load([], ["model.preset=tiny-dense", "train.steps=1", "run.mode=rl"])
    tables = {"loss": {**PLAIN, **(loss or {})}, "kl": kl or {}, "entropy": entropy or {}}
    changed = {
        name: dataclasses.replace(getattr(config.rl, name), **values)
        for name, values in tables.items()
    }
    return dataclasses.replace(config, rl=dataclasses.replace(config.rl, **changed))


def batch_of(case, **more):
    """A row for each answer of a case; more: tensors in place of the case's inputs, by name."""
    given = {name: tensor(x) for name, x in case["inputs"].items()} | more
    mask_BS, old_BS = given["mask"], given["old_logp"]
    advantage_BS = given["advantages"]
    if advantage_BS.dim() == 1:
        advantage_BS = advantage_BS.unsqueeze(1).expand_as(mask_BS)
    extra = {
        "advantage": advantage_BS,
        "old_log_prob": old_BS,
        "sampler_log_prob": given.get("sampler", old_BS),
        "sequence": torch.zeros_like(mask_BS, dtype=torch.int64),
        "share": (1 / mask_BS.sum(1, keepdim=True).clamp_min(1)).expand_as(mask_BS),
    }
    if "ref_logp" in given:
        extra["reference_log_prob"] = given["ref_logp"]
    tokens_BS = torch.zeros_like(mask_BS, dtype=torch.int64)
    return TokenBatch(tokens_BS, tokens_BS, mask_BS, extra=extra)


def in_one_row(batch):
    """The same answers one after another; their numbers tell them apart."""
    number_BS = torch.arange(batch.rows).unsqueeze(1).expand_as(batch.tokens_BS)
    extra = {name: x.reshape(1, -1) for name, x in {**batch.extra, "sequence": number_BS}.items()}
    flat = [x.reshape(1, -1) for x in (batch.tokens_BS, batch.labels_BS, batch.weights_BS)]
    return TokenBatch(*flat, extra=extra)


def result(config, batch, log_prob, packed, entropy=None, masked=0):
    """Loss, gradients of log-probs and entropy, and all means, as the engine makes them."""
    log_prob = log_prob.clone().requires_grad_()
    entropy = torch.zeros_like(log_prob) if entropy is None else entropy.clone()
    entropy.requires_grad_()
    objective = policy_objective(config, int(trained_answers(batch)), masked)
    batch = in_one_row(batch) if packed else batch
    outputs = {"log_prob": log_prob, "entropy": entropy}
    sums = objective.sums({k: x.view_as(batch.tokens_BS) for k, x in outputs.items()}, batch)
    means = {
        name: sums[name] / (mean.count or mean.of(batch).sum())
        for name, mean in objective.means.items()
    }
    loss = sum(means[name] for name in objective.losses)
    gradients = torch.autograd.grad(loss, (log_prob, entropy), allow_unused=True)
    return loss, *gradients, means


def agree(case, theirs, config, packed, masked=0, **more):
    batch = batch_of(case, **more)
    loss, gradient, _, means = result(
        config, batch, tensor(case["inputs"]["logp"]), packed, masked=masked
    )
    near(loss, theirs["loss"], case)
    near(gradient, theirs["grad_logp"], case)
    if "actor/pg_clipfrac" in theirs.get("metrics", {}):  # which verl has in float32
        share = theirs["metrics"]["actor/pg_clipfrac"]
        assert means["clip_share"].item() == pytest.approx(share, abs=1e-6)


class Alone:
    """A group of one rank."""

    def rank(self):
        return 0

    def size(self):
        return 1


@cases("token_logprob_entropy")
def test_log_probs_and_entropy_of_the_tempered_policy(case):
    inputs, outputs = case["inputs"], case["outputs"]
    logits_BSV, ids_BS = tensor(inputs["logits"]).requires_grad_(), torch.tensor(inputs["ids"])
    whole = torch.eye(logits_BSV.shape[-1], dtype=torch.float64)
    weights_BS = tensor(inputs["weights"])
    batch = TokenBatch(ids_BS, ids_BS, weights_BS)
    head = log_probs_and_entropy(case["hyper"]["temperature"])

    def computed():
        return head.compute(Logits(logits_BSV.transpose(0, 1), whole, Alone()), batch)

    for ours, theirs in (("log_prob", "logprob"), ("entropy", "entropy")):
        value = computed()[ours]
        near(value, outputs[theirs], case)
        (gradient,) = torch.autograd.grad((value * weights_BS).sum(), logits_BSV)
        near(gradient, outputs[f"grad_sum_w_{theirs}"], case)
    assert torch.equal(computed()["log_prob"], computed()["log_prob"])


def advantage_settings(**changes):
    """As the libraries have them: no deviation but 0 is none."""
    return AdvantageConfig(**{"zero_below": 0.0, **changes})


def of_verl(epsilon):
    as_reward = {"lone": "reward", "epsilon": epsilon}
    return {
        "verl_grpo_std": advantage_settings(**as_reward),
        "verl_grpo_nostd": advantage_settings(scale="none", **as_reward),
        "verl_rloo": advantage_settings(baseline="leave_one_out", scale="none", **as_reward),
        "verl_rloo_vectorized": advantage_settings(baseline="leave_one_out", scale="none"),
        # masked_whiten adds 1e-8 to the variance, whatever the epsilon is
        "verl_reinforce_plus_plus_baseline_tokens": advantage_settings(
            scale="whiten_tokens", epsilon=1e-4
        ),
    }


def of_trl(epsilon):
    rloo = {"baseline": "leave_one_out", "epsilon": epsilon}
    return {
        "trl_grpo_scale_group": advantage_settings(epsilon=epsilon),
        "trl_grpo_scale_none": advantage_settings(scale="none"),
        "trl_grpo_scale_batch": advantage_settings(scale="batch", epsilon=epsilon),
        "trl_rloo": advantage_settings(scale="none", **rloo),
        "trl_rloo_normalized": advantage_settings(scale="whiten", **rloo),
    }


@cases("group_advantage", "group_advantage_ragged")
def test_advantages_of_groups(case):
    inputs, hyper, outputs = case["inputs"], case["hyper"], case["outputs"]
    settings = of_verl(hyper["verl_eps"]) | of_trl(hyper.get("trl_eps", 0.0))
    read = outputs.keys() & settings.keys()
    assert outputs.keys() - read <= {"verl_opo", "verl_gpg"} and "verl_grpo_std" in read
    mask = array(inputs["mask"])
    for name in read:
        found = advantages(
            array(inputs["rewards"]), inputs["group_ids"], settings[name], tokens_N=mask.sum(1)
        )
        if name.endswith("_tokens"):
            found = verls_rounding(inputs, found)[:, None] * mask
        near(found, outputs[name], case, name)


def verls_rounding(inputs, whitened_N):
    """The same with verl's count / (count - 1) of tokens, which it has in float32."""
    count, tokens_N = array(inputs["mask"]).sum(), array(inputs["mask"]).sum(1)
    plain = advantages(inputs["rewards"], inputs["group_ids"], advantage_settings(scale="none"))
    mean = (plain * tokens_N).sum() / count
    variance = (np.square(plain - mean) * tokens_N).sum() / count
    exact, rounded = (t(count) / t(count - 1) for t in (np.float64, np.float32))
    return whitened_N * np.sqrt((variance * exact + 1e-8) / (variance * rounded + 1e-8))


@cases("group_advantage_multi_reward")
def test_advantages_of_several_rewards(case):
    inputs, hyper, epsilon = case["inputs"], case["hyper"], case["hyper"]["eps"]
    settings = {
        "sum_then_normalize_group": advantage_settings(epsilon=epsilon),
        "sum_then_normalize_none": advantage_settings(scale="none"),
        "normalize_then_sum": advantage_settings(parts="each", epsilon=epsilon),
        "rloo": advantage_settings(baseline="leave_one_out", scale="none"),
        "rloo_clip_pm0_5": advantage_settings(
            baseline="leave_one_out", scale="none", reward_limit=0.5
        ),
    }
    assert case["outputs"].keys() == settings.keys()
    for name, theirs in case["outputs"].items():
        found = advantages(
            array(inputs["rewards_per_func"]),
            inputs["group_ids"],
            settings[name],
            weights=hyper["reward_weights"],
        )
        near(found, theirs, case, name)


@cases("rloo_kl_in_reward")
def test_kl_in_the_reward_is_k1_summed_over_an_answer(case):
    inputs, hyper = case["inputs"], case["hyper"]
    k1_BS = kl.estimate(tensor(inputs["old_logp"]), tensor(inputs["ref_logp"]), "k1")
    is_trained_BS = tensor(inputs["mask"]) != 0
    answer_BS = torch.arange(len(k1_BS)).unsqueeze(1).expand_as(k1_BS)
    of_answer_N = kl.sums_of_answers(k1_BS[is_trained_BS], answer_BS[is_trained_BS], len(k1_BS))
    scale = "whiten" if hyper["normalize_advantages"] else "none"
    found = advantages(
        array(inputs["rewards"]),
        inputs["group_ids"],
        advantage_settings(baseline="leave_one_out", scale=scale, epsilon=1e-4),  # TRL's
        penalty_N=hyper["beta"] * of_answer_N.numpy(),
    )
    near(found, case["outputs"]["advantages"], case, "advantages")


def loss_settings(hyper, dual):
    return {
        "clip_low": hyper["clip_low"],
        "clip_high": hyper["clip_high"],
        "dual_clip": dual or 0.0,
        "mean": MEANS[hyper["aggregation"]],
        "length": hyper.get("loss_scale_factor") or 0,
    }


@BOTH
@cases("policy_clip")
def test_the_clipped_loss_in_every_mean_with_kl(case, packed):
    hyper, outputs = case["hyper"], case["outputs"]
    of_kl = {"coefficient": hyper["kl_coef"], "estimator": hyper["kl_type"]}
    verl = loss_settings(hyper, hyper["dual_clip_c"]) | {"log_ratio_limit": 20.0}
    agree(case, outputs["verl"], configured(verl, of_kl), packed)
    if "trl" in outputs:  # whose delta is a dual clip, and which counts an answer that is masked
        trl = loss_settings(hyper, hyper["trl_delta"]) | {"masked": "counted"}
        masked = int((tensor(case["inputs"]["mask"]).sum(1) == 0).sum())
        agree(case, outputs["trl"], configured(trl, of_kl | UNLIMITED), packed, masked)


@BOTH
@cases("policy_gspo")
def test_gspo(case, packed):
    config = configured(loss_settings(case["hyper"], 0) | {"ratio": "sequence_mean"})
    for library in ("verl", "trl"):
        agree(case, case["outputs"][library], config, packed)


@BOTH
@cases("policy_cispo")
def test_cispo_with_both_bounds_and_with_one(case, packed):
    hyper, outputs = case["hyper"], case["outputs"]
    bounds = {"clip_low": hyper["verl_clip_low"], "clip_high": hyper["verl_clip_high"]}
    verl = {"clip": "cispo", "mean": MEANS[hyper["aggregation"]], **bounds}
    agree(case, outputs["verl"], configured(verl), packed)
    above = hyper["trl_epsilon_high"] - 1  # its bound is absolute, and it has no lower one
    trl = {"clip": "cispo", "mean": "token", "clip_low": 1.0, "clip_high": above}
    for name in outputs.keys() - {"verl"}:
        agree(case, outputs[name], configured(trl), packed)


@BOTH
@cases("policy_extreme_ratio")
def test_extreme_ratios_with_limits_and_without(case, packed):
    hyper, outputs = case["hyper"], case["outputs"]
    for name, dual, limit in (("verl_c3", 3.0, 20.0), ("verl_c1e6", 1e6, 20.0), ("trl", 0, 0.0)):
        config = configured(loss_settings(hyper, dual) | {"log_ratio_limit": limit})
        agree(case, outputs[name], config, packed)


@BOTH
@cases("policy_on_policy")
def test_before_the_first_update_the_ratio_is_1_and_the_gradient_is_there(case, packed):
    log_prob_BS = tensor(case["inputs"]["logp"])
    for name, mean in case["hyper"]["aggregations"].items():
        loss = {"mean": MEANS[mean], "length": log_prob_BS.shape[1]}
        theirs = case["outputs"][name]["trl"]
        agree(case, theirs, configured(loss), packed, old_logp=log_prob_BS)


@cases("policy_micro_batches")
def test_micro_batches_add_up_to_the_mean_over_the_global_batch(case):
    hyper, outputs = case["hyper"], case["outputs"]
    config = configured(loss_settings(hyper, hyper["dual_clip_c"]) | {"log_ratio_limit": 20.0})
    agree(case, outputs["full"], config, packed=False)
    batch, log_prob = batch_of(case), tensor(case["inputs"]["logp"]).requires_grad_()
    objective = policy_objective(config, int(trained_answers(batch)))
    mean = objective.losses["policy_loss"]
    count = mean.count or mean.of(batch).sum()
    cuts = [0, *hyper["cuts"], batch.rows]
    parts = [next(_rows(batch, a, b)) for a, b in zip(cuts, cuts[1:], strict=False)]
    shares = []
    for part, of_part in zip(parts, log_prob.tensor_split(hyper["cuts"]), strict=True):
        outputs_of_part = {"log_prob": of_part, "entropy": torch.zeros_like(of_part)}
        shares.append(objective.sums(outputs_of_part, part)["policy_loss"] / count)
    near(torch.stack(shares) * hyper["dp_size"], outputs["micro"], case)
    near(sum(shares), outputs["sum_div_dp"], case)
    near(torch.autograd.grad(sum(shares), log_prob)[0], outputs["grad_div_dp"], case)


def _rows(batch, first, last):
    yield TokenBatch(
        *(x[first:last] for x in (batch.tokens_BS, batch.labels_BS, batch.weights_BS)),
        extra={name: x[first:last] for name, x in batch.extra.items()},
    )


@BOTH
@cases("policy_rloo_sequence")
def test_rloos_ratio_is_of_whole_answers(case, packed):
    inputs, hyper = case["inputs"], case["hyper"]
    old_BS = tensor(inputs["old_logp"]) * tensor(inputs["mask"])
    near(old_BS.sum(1), inputs["old_seq_logp"], case)
    bounds = {"clip_low": hyper["clip_low"], "clip_high": hyper["clip_high"]}
    config = configured({"ratio": "sequence", "mean": "sequence_mean", **bounds})
    agree(case, case["outputs"]["trl"], config, packed)


@BOTH
@cases("policy_trl_kl_bias_corrected")
def test_kl_weighed_by_the_ratio(case, packed):
    of_kl = {"coefficient": case["hyper"]["beta"], "weigh_by_ratio": True, **UNLIMITED}
    config = configured({"mean": OF_TRL[case["hyper"]["loss_type"]]}, of_kl)
    agree(case, case["outputs"]["trl"], config, packed)


@BOTH
@cases("policy_trl_opsm")
def test_stale_answers_of_negative_advantage_count_nothing(case, packed):
    hyper = case["hyper"]
    limit = {"stale_limit": hyper["off_policy_mask_threshold"]}
    config = configured({"mean": OF_TRL[hyper["loss_type"]], **limit})
    sampler = tensor(case["inputs"]["sampling_logp"])
    agree(case, case["outputs"]["trl"], config, packed, sampler=sampler)


@BOTH
@cases("policy_trl_entropy_bonus")
def test_the_entropy_bonus_is_a_mean_over_tokens_whatever_the_losss_is(case, packed):
    hyper, theirs = case["hyper"], case["outputs"]["trl"]
    mean, of_entropy = OF_TRL[hyper["loss_type"]], {"coefficient": hyper["entropy_coef"]}
    config = configured({"mean": mean}, entropy=of_entropy)
    inputs = {name: tensor(case["inputs"][name]) for name in ("logp", "entropy")}
    loss, gradient, of_bonus, means = result(
        config, batch_of(case), inputs["logp"], packed, inputs["entropy"]
    )
    near(loss, theirs["loss"], case)
    near(gradient, theirs["grad_logp"], case)
    near(of_bonus, theirs["grad_entropy"], case)
    near(means["entropy"], theirs["metrics"]["entropy"], case)
    near(means["policy_loss"], theirs["metrics"]["policy_loss"], case)


@BOTH
@cases("policy_trl_vllm_is")
def test_importance_weights_multiply_the_loss(case, packed):
    weight_BS = tensor(case["inputs"]["importance_sampling_ratio"])
    old_BS = tensor(case["inputs"]["old_logp"])
    mean = OF_TRL[case["hyper"]["loss_type"]]
    config = configured({"mean": mean, "importance": "truncate", "importance_high": 1e9})
    sampler = old_BS - weight_BS.expand_as(old_BS).log()
    agree(case, case["outputs"]["trl"], config, packed, sampler=sampler)


@BOTH
@cases("policy_trl_tool_mask")
def test_tokens_of_tools_are_in_no_mean(case, packed):
    mask_BS = tensor(case["inputs"]["mask"]) * tensor(case["inputs"]["tool_mask"])
    config = configured({"mean": OF_TRL[case["hyper"]["loss_type"]]})
    agree(case, case["outputs"]["trl"], config, packed, mask=mask_BS)


@cases("policy_trl_num_items")
def test_a_part_of_a_batch_divides_by_the_tokens_of_all_of_it(case):
    """As the engine does for token means: the count is that of all ranks and micro-batches."""
    theirs, log_prob = case["outputs"]["trl"], tensor(case["inputs"]["logp"]).requires_grad_()
    config = configured({"mean": OF_TRL[case["hyper"]["loss_type"]]})
    outputs = {"log_prob": log_prob, "entropy": torch.zeros_like(log_prob)}
    sums = policy_objective(config, 1).sums(outputs, batch_of(case))
    loss = sums["policy_loss"] / case["hyper"]["num_items_in_batch"]
    near(loss, theirs["loss"], case)
    near(torch.autograd.grad(loss, log_prob)[0], theirs["grad_logp"], case)


@BOTH
@cases("opd_policy_gradient")
def test_the_difference_from_a_teacher_as_advantage(case, packed):
    inputs, hyper = case["inputs"], case["hyper"]
    teacher = sampled_advantage(
        tensor(inputs["logp"]), tensor(inputs["teacher_logp"]), hyper["loss_max_clamp"]
    )
    near(teacher, case["outputs"]["advantages"], case)
    config = configured(loss_settings(hyper, hyper["dual_clip_c"]) | {"log_ratio_limit": 20.0})
    agree(case, case["outputs"]["verl"], config, packed, advantages=teacher)


@cases("kl_estimators")
def test_estimators_of_kl_and_their_gradients(case):
    inputs, outputs = case["inputs"], case["outputs"]
    log_prob, mask = tensor(inputs["logp"]).requires_grad_(), tensor(inputs["mask"])
    reference = tensor(inputs["ref_logp"])
    for name in ("k1", "k2", "k3", "abs", "k1+", "k3+"):
        value = kl.estimate(log_prob, reference, name, limit=20.0, most=10.0)
        near(value, outputs[name]["value"], case)
        near((value * mask).sum() / mask.sum(), outputs[name]["token_mean"], case)
        near(torch.autograd.grad((value * mask).sum(), log_prob)[0], outputs[name]["grad"], case)
    unlimited = (kl.estimate(log_prob, reference, "k3") * mask).sum() / mask.sum()
    near(unlimited, outputs["trl_k3_token_mean"], case)


def answers_of(case):
    """Which tokens are of which answer, and the difference of trainer and sampler."""
    inputs = {name: tensor(x) for name, x in case["inputs"].items()}
    mask_BS = inputs["mask"]
    sequence_BS = torch.zeros_like(mask_BS, dtype=torch.int64)
    apart_BS = inputs["old_logp"] - inputs["rollout_logp"]
    return Answers.of(sequence_BS, mask_BS != 0), apart_BS, mask_BS


@cases("tis_weights")
def test_importance_weights_of_tokens_and_answers(case):
    hyper, outputs = case["hyper"], case["outputs"]
    answers, apart_BS, mask_BS = answers_of(case)
    low, high = map(float, hyper["icepop_band"].split("_"))
    upper = hyper["tis_upper"]
    for ours, theirs in (("", "token"), ("sequence_", "sequence")):
        truncated = importance.weights(f"{ours}truncate", apart_BS, answers, high=upper)
        masked = importance.weights(f"{ours}mask", apart_BS, answers, low, high)
        near(truncated * mask_BS, outputs["verl"][f"tis_{theirs}"], case)
        near(masked * mask_BS, outputs["verl"][f"icepop_{theirs}"], case)
        for kind, weight in (("truncate", truncated), ("mask", masked)):
            of_trl = tensor(outputs["trl"][f"{theirs}_{kind}"]).expand_as(mask_BS)
            near(weight * mask_BS, of_trl * mask_BS, case)


@cases("rollout_rejection")
def test_rejection_of_tokens_and_answers(case):
    answers, apart_BS, mask_BS = answers_of(case)
    for names, limits in case["hyper"]["specs"]:
        kept_BS = mask_BS != 0
        for name, limit in zip(names.split(","), str(limits).split(","), strict=True):
            *low, high = map(float, limit.split("_"))
            kept_BS = kept_BS & importance.is_within(name, apart_BS, answers, high, *low)
        near(kept_BS, case["outputs"]["masks"][f"{names}|{limits}"], case)


@cases("rollout_rejection")
def test_the_divergence_of_trainer_and_sampler_is_verls(case):
    inputs, theirs = case["inputs"], case["outputs"]["offpolicy_metrics"]
    sampler_BS, old_BS = tensor(inputs["rollout_logp"]), tensor(inputs["old_logp"])
    batch = batch_of(case, advantages=torch.ones(len(old_BS)).double(), sampler=sampler_BS)
    means = result(configured(), batch, old_BS, packed=False)[-1]
    near(means["mismatch_kl"], theirs["k3_kl"], case)


@cases("rollout_rejection")
def test_answers_that_have_become_stale(case):
    answers, *_ = answers_of(case)
    inputs = case["inputs"]
    behind_BS = tensor(inputs["opsm_sampling_logp"]) - tensor(inputs["old_logp"])
    advantage_BS = tensor(inputs["opsm_advantages"]).unsqueeze(1).expand_as(behind_BS)
    for limit, theirs in case["outputs"]["trl_opsm_keep"].items():
        is_stale_BS = importance.is_stale(behind_BS, advantage_BS, answers, float(limit))
        near(~is_stale_BS[:, 0], theirs, case)


@cases("soft_overlong")
def test_the_soft_penalty_of_length(case):
    hyper, lengths = case["hyper"], case["inputs"]["lengths"]
    found = [overlong(n, hyper["max_len"], hyper["cache"]) for n in lengths]
    near(found, case["outputs"]["trl"], case)
    for ours, theirs, n in zip(found, case["outputs"]["verl"], lengths, strict=True):
        if n <= hyper["max_len"]:  # no answer is longer, where verl's goes on falling
            near([ours * hyper["verl_penalty_factor"]], [theirs], case)


@cases("repetition_penalty")
def test_the_penalty_of_repetition(case):
    hyper = case["hyper"]
    found = [
        repetition(ids, hyper["ngram_size"], hyper["max_penalty"])
        for ids in case["inputs"]["completion_ids"]
    ]
    near(found, case["outputs"]["reward"], case)


@cases("think_format")
def test_the_form_of_thinking_is_judged_more_strictly_than_trls_for_known_reasons(case):
    for text, theirs in zip(case["inputs"]["completions"], case["outputs"]["reward"], strict=True):
        is_ours = not think_format(text, mode="think")
        if is_ours != bool(theirs):
            thinking, _, answer = text.partition("</think>")
            is_empty = not thinking.removeprefix("<think>").strip()
            is_stricter = is_empty or "</think>" in answer or not answer.strip()
            # Space before the block is none of the model's form; TRL refuses it.
            assert is_stricter if theirs else text != text.lstrip(), text
