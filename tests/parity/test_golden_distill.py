"""Losses and gradients of distillation equal those that TRL and verl computed, case by case."""

import pytest
import torch

from megatron_qwen3.posttrain.teachers.divergences import jensen_shannon, top_k_without_rest
from tests import golden


def tensor(numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def near(ours, theirs, case):
    torch.testing.assert_close(ours.detach(), tensor(theirs), rtol=case["tol"], atol=case["tol"])


@pytest.mark.parametrize("case", golden.cases("rl_losses.json", "gkd_jsd"))
def test_the_generalised_jensen_shannon_divergence_is_trls(case):
    inputs, hyper, outputs = case["inputs"], case["hyper"], case["outputs"]
    logits = tensor(inputs["student_logits"]).requires_grad_()
    student, teacher = (
        (x / hyper["temperature"]).log_softmax(-1)
        for x in (logits, tensor(inputs["teacher_logits"]))
    )
    is_trained = torch.tensor(inputs["labels"]) != -100
    values = jensen_shannon(student, teacher, hyper["beta"])[is_trained]
    loss = values.sum() / (hyper["num_items_in_batch"] or is_trained.sum())
    near(loss, outputs["loss"], case)
    near(torch.autograd.grad(loss, logits)[0], outputs["grad_student_logits"], case)


@pytest.mark.parametrize("case", golden.cases("rl_losses.json", "topk_forward_kl"))
def test_the_forward_kl_over_the_teachers_ids_alone_is_verls(case):
    inputs, outputs = case["inputs"], case["outputs"]
    logits = tensor(inputs["student_logits"]).requires_grad_()
    ids, teacher = torch.tensor(inputs["teacher_topk_ids"]), tensor(inputs["teacher_topk_logprobs"])
    student = logits.log_softmax(-1).gather(-1, ids)
    values = top_k_without_rest(student, teacher, case["hyper"]["log_prob_min_clamp"])
    near(values, outputs["loss_per_token"], case)
    weighted = (values * tensor(inputs["weights"])).sum()
    near(torch.autograd.grad(weighted, logits)[0], outputs["grad_sum_w_loss"], case)
    near(student.exp().sum(-1), outputs["student_mass"], case)
    near(teacher.exp().sum(-1), outputs["teacher_mass"], case)
