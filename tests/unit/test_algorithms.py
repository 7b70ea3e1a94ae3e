"""Files of algorithms set their papers' formulas, and go with the stages and models."""

import tomllib
from operator import attrgetter
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_qwen3.config import load
from megatron_qwen3.posttrain.policy.advantages import advantages
from megatron_qwen3.posttrain.policy.objective import policy_objective
from megatron_qwen3.settings import TABLES
from megatron_qwen3.training.batch import TokenBatch

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
FILES = {path.stem: path for path in (EXAMPLES / "algorithms").glob("*.toml")}
STAGES = sorted((EXAMPLES / "stages").glob("post_*_rl.toml"))
G, S = 6, 7
REWARDS = [1.0, 0.0, 0.0, 1.0, 0.5, 0.0]
LENGTHS = [7, 3, 1, 5, 7, 2]


def config_of(name, *settings):
    base = ["model.preset=tiny-dense", "run.mode=rl", "train.steps=1", "data.sequence_length=32768"]
    return load([FILES[name]], [*base, *settings])


def numbers(seed):
    random = torch.Generator().manual_seed(seed)
    return -2 * torch.rand(G, S, generator=random, dtype=torch.float64)


def of_file(name, is_first=False):
    """Loss, its gradient and the advantages of a group, by the file."""
    config, old = config_of(name), numbers(1)
    log_prob = (old if is_first else numbers(2)).clone().requires_grad_()
    mask = (torch.arange(S) < torch.tensor(LENGTHS)[:, None]).double()
    kl_N = ((old - numbers(3)) * mask).sum(1).numpy()
    in_reward = config.rl.kl.place == "reward"
    penalty = config.rl.kl.coefficient * kl_N if in_reward else 0.0
    A = torch.from_numpy(advantages(REWARDS, [0] * G, config.rl.advantage, penalty_N=penalty))
    extra = {
        "advantage": A[:, None].expand(G, S),
        "old_log_prob": old,
        "sampler_log_prob": numbers(4),
        "reference_log_prob": numbers(3),
        "sequence": torch.zeros(G, S, dtype=torch.int64),
        "share": 1 / mask.sum(1, keepdim=True).expand(G, S),
    }
    tokens = torch.zeros(G, S, dtype=torch.int64)
    batch = TokenBatch(tokens, tokens, mask, extra=extra)
    objective = policy_objective(config, G)
    sums = objective.sums({"log_prob": log_prob, "entropy": torch.zeros(G, S)}, batch)
    means = objective.losses
    loss = sum(sums[n] / (means[n].count or means[n].of(batch).sum()) for n in means)
    return loss, torch.autograd.grad(loss, log_prob)[0], A


def of_paper(name):
    """The same by the papers' formulas, answer by answer."""
    log_prob = numbers(2).requires_grad_()
    R = np.array(REWARDS)
    A = {"dr_grpo": R - R.mean()}.get(name, (R - R.mean()) / (R.std(ddof=1) + 1e-6))
    losses = []
    for i, n in enumerate(LENGTHS):
        lp, old, reference = (x[i, :n] for x in (log_prob, numbers(1), numbers(3)))
        if name == "rloo":
            kl = [(numbers(1) - numbers(3))[j, :m].sum().item() for j, m in enumerate(LENGTHS)]
            of_answer = R - 0.05 * np.array(kl)
            A[i] = of_answer[i] - np.delete(of_answer, i).mean()
        r, a = (lp - old).exp(), float(A[i])
        bounds = {"dapo": (0.8, 1.28), "gspo": (1 - 3e-4, 1 + 4e-4)}.get(name, (0.8, 1.2))
        if name == "gspo":
            r = r.log().mean().exp()
        if name == "rloo":
            r = r.prod()
        gain = torch.min(r * a, r.clamp(*bounds) * a)
        if name == "cispo":
            gain = r.detach().clamp(max=5) * a * lp
        if name == "grpo":
            d = reference - lp
            gain = gain - 0.04 * (d.exp() - d - 1)
        losses.append(-gain)
    if name in ("dapo", "cispo"):
        loss = torch.cat(losses).sum() / sum(LENGTHS)
    elif name == "dr_grpo":
        loss = torch.cat(losses).sum() / G / 1024  # rollouts.max_new_tokens
    else:
        loss = torch.stack([x.mean() for x in losses]).mean()
    return loss, torch.autograd.grad(loss, log_prob)[0], torch.from_numpy(A)


@pytest.mark.parametrize("name", FILES)
def test_the_loss_and_its_gradient_are_the_papers(name):
    torch.testing.assert_close(of_file(name), of_paper(name), rtol=1e-12, atol=1e-12)


def test_the_first_update_of_rloo_is_reinforce():
    _, gradient, A = of_file("rloo", is_first=True)
    for i, n in enumerate(LENGTHS):
        torch.testing.assert_close(gradient[i, :n], (-A[i] / G).expand(n))


def test_what_formulas_do_not_show_is_as_published():
    published = {"grpo": (64, 1), "gspo": (8, 4), "dapo": (16, 16)}  # answers of a group, updates
    for name, (samples, updates) in published.items():
        config = config_of(name)
        assert (config.rollouts.samples, config.rl.updates) == (samples, updates)
    dapo = config_of("dapo")
    assert dapo.rl.filter and dapo.rl.rewards.overlong == 1
    assert dapo.rollouts.max_new_tokens - dapo.rl.overlong_tokens == 16_384


@pytest.mark.parametrize("stage", STAGES, ids=lambda path: path.stem)
@pytest.mark.parametrize("name", FILES)
def test_a_file_goes_on_top_of_a_stage(name, stage):
    config, alone = load([stage, FILES[name], EXAMPLES / "models/qwen3_8b.toml"]), config_of(name)
    tables = tomllib.loads(FILES[name].read_text(encoding="utf-8"))
    for setting in (f"{table}.{key}" for table in tables for key in tables[table]):
        assert attrgetter(setting)(config) == attrgetter(setting)(alone) or setting in TABLES
    assert config.rl.loss == alone.rl.loss and config.rl.advantage == alone.rl.advantage
    assert not config.rl.entropy.low and not config.rl.entropy.coefficient  # papers have none
