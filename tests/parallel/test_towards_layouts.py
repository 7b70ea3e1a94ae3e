"""On-policy objectives: a student's gradient is that of whole softmaxes, in any layout of both."""

import pytest
import tiny as models
import torch
from layouts import assert_same, local_shards, of_an_update
from ranks import run_ranks

from megatron_qwen3.parallel.runtime import start
from megatron_qwen3.posttrain.policy.objective import SAMPLER, SEQUENCE
from megatron_qwen3.posttrain.policy.towards import METRICS, asked_of, towards, with_answer
from megatron_qwen3.posttrain.teachers.output_matrix import output_matrix
from megatron_qwen3.posttrain.teachers.teacher import Teacher
from megatron_qwen3.training.batch import TokenBatch
from megatron_qwen3.training.engine import Engine
from megatron_qwen3.training.model import Model

ROWS, POSITIONS, SHARED, K = 8, 16, 320, 5  # the student has 512 tokens, the teacher 320
KINDS = {
    "reverse": ("distill.divergence=reverse_kl",),
    "forward-tempered": ("distill.divergence=forward_kl", "distill.temperature=2.0"),
    "jensen-shannon": ("distill.divergence=jensen_shannon", "distill.beta=0.3"),
    "top-k": ("distill.divergence=reverse_kl", f"distill.top_k={K}", "distill.temperature=0.7"),
    "sampled": ("distill.divergence=sampled",),
}


def config_of(kind, path, *settings):
    base = ["run.mode=distill", "train.precision=fp32"]
    base += ["train.steps=1", "model.preset=tiny-dense", "optim.distributed=false"]
    base += ["optim.clip_grad=1e9", f"data.sequence_length={POSITIONS}", "model.init_std=0.1"]
    base.append(f"rollouts.max_new_tokens={POSITIONS // 2}")
    return of_an_update([*base, f"distill.teacher.path={path}", *KINDS[kind], *settings])


def rows_of(first, count):
    """Rows of the global batch; a row nothing is trained of, others are trained in part."""
    random = torch.Generator().manual_seed(11)
    ids = torch.randint(0, SHARED, (ROWS, POSITIONS + 1), generator=random)
    weights = (torch.rand(ROWS, POSITIONS, generator=random) < 0.6).float()
    weights[2] = 0
    before = -6 + torch.rand(ROWS, POSITIONS, generator=random)
    extra = {SAMPLER: before, SEQUENCE: torch.zeros(ROWS, POSITIONS, dtype=torch.int64)}
    batch = TokenBatch(ids[:, :-1], ids[:, 1:], weights, extra=extra)
    whole = list(batch.split(1))[first : first + count]
    return TokenBatch(
        *(torch.cat([getattr(x, name) for x in whole]) for name in ("tokens_BS", "labels_BS")),
        torch.cat([x.weights_BS for x in whole]),
        extra={name: torch.cat([x.extra[name] for x in whole]) for name in extra},
    )


def stepped(kind, path, *settings):
    """Metrics and gradients of one step of the engine."""
    config = config_of(kind, path, *settings)
    layout = start(config)
    engine = Engine(config, layout)
    teacher = Teacher(config, layout, engine.data_rank)
    count, size = ROWS // layout.data, teacher.model.config.model.hidden_size
    batch = rows_of(engine.data_rank * count, count)
    answer = teacher.scores(batch, asked_of(config, size), rows_of)
    matrix = output_matrix(teacher.model, engine.model)
    batch = with_answer(batch.to(teacher.model.device), answer)
    metrics = engine.train_step(batch, towards(config, size, matrix, SHARED), 0.0)
    return metrics, local_shards(engine.model.chunks, lambda p: getattr(p, "main_grad", None))


def loss_of(config, log_q, log_p, batch):
    """By the definitions, of each position, from all V log-probabilities."""
    distill, name = config.distill, config.distill.divergence
    if distill.top_k:
        ids = log_p.topk(K).indices
        log_q, log_p = (with_others(x, ids) for x in (log_q, log_p))
    q, p = log_q.exp(), log_p.exp()
    if name == "sampled":
        mine, theirs = (of_labels(x, batch) for x in (log_q, log_p))
        advantage, ratio = (theirs - mine).detach(), (mine - batch.extra[SAMPLER]).exp()
        loss = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(0.8, 1.2))
        return torch.where(advantage < 0, torch.minimum(loss, -advantage * 3), loss)
    if name == "reverse_kl":
        return (q * (log_q - log_p)).sum(-1)
    if name == "forward_kl":
        return (p * (log_p - log_q)).sum(-1)
    m = distill.beta * p + (1 - distill.beta) * q
    of_p, of_q = (p * (log_p - m.log())).sum(-1), (q * (log_q - m.log())).sum(-1)
    return distill.beta * of_p + (1 - distill.beta) * of_q


def with_others(log_x, ids):
    others = log_x.scatter(-1, ids, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([log_x.gather(-1, ids), others], -1)


def of_labels(log_x, batch):
    return log_x.gather(-1, batch.labels_BS.unsqueeze(-1)).squeeze(-1)


def by_autograd(kind, path):
    """The same from the definition, by whole softmaxes of both models."""
    config = config_of(kind, path)
    layout = start(config)
    (model,), batch = Model(config, layout).chunks, rows_of(0, ROWS)
    (theirs,) = Teacher(config, layout, 0).model.chunks
    logits = model(batch.tokens_BS).whole().transpose(0, 1)
    taught = theirs(batch.tokens_BS).whole().transpose(0, 1).detach()
    is_whole = config.distill.divergence != "sampled" and not config.distill.top_k
    if is_whole:  # over what both know
        logits = logits[..., :SHARED]
    log_q, log_p = ((x / config.distill.temperature).log_softmax(-1) for x in (logits, taught))
    if config.distill.top_k:  # ids that the teacher does not know have none of its mass
        padding = log_p.new_full((*log_p.shape[:-1], log_q.shape[-1] - SHARED), -1e30)
        log_p = torch.cat([log_p, padding], -1)
    weights = batch.weights_BS

    def mean(x):
        return (x * weights).sum() / weights.sum()

    metrics = {"loss": mean(loss_of(config, log_q, log_p, batch))}
    gradients = torch.autograd.grad(metrics["loss"], list(model.parameters()))
    metrics["entropy"] = mean(-(log_q.exp() * log_q).sum(-1))
    metrics["student_log_prob"], metrics["teacher_log_prob"] = (
        mean(of_labels(x, batch)) for x in (log_q, log_p)
    )
    metrics["agreement"] = mean((log_p.argmax(-1) == batch.labels_BS).float())
    named = dict(zip((id(x) for x in model.parameters()), gradients, strict=True))
    shards = local_shards([model], lambda x: named.get(id(x)))
    return {name: x.item() for name, x in metrics.items()}, shards


LAYOUTS = {
    "one-rank": (1, ()),
    "tp2": (2, ("parallel.tensor=2", "train.micro_batch=2")),
    "pp2-teacher-tp2": (2, ("parallel.pipeline=2", "distill.teacher.tensor=2")),
    "dp2-teacher-pp2": (2, ("train.micro_batch=4", "distill.teacher.pipeline=2")),
    "cp2-teacher-dp2": (2, ("parallel.context=2",)),
}
SLOW = {
    "tp2-pp2-teacher-dp4": (4, ("parallel.tensor=2", "parallel.pipeline=2")),
    "cp2-tp2-teacher-pp2": (
        4,
        ("parallel.context=2", "parallel.tensor=2", "distill.teacher.pipeline=2"),
    ),
    "cp2-dp2-teacher-tp2": (4, ("parallel.context=2", "distill.teacher.tensor=2")),
    "tp2-dp2-teacher-tp4": (4, ("parallel.tensor=2", "distill.teacher.tensor=2")),
}
SPARSE = {
    "ep2": (2, ("parallel.expert=2", "distill.teacher.expert=2")),
    "tp2-ep2-teacher-tp2": (
        2,
        ("parallel.tensor=2", "parallel.expert=2", "distill.teacher.tensor=2"),
    ),
}


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    home = tmp_path_factory.mktemp("teachers")
    models.save(home / "dense")
    models.save(home / "sparse", models.SPARSE)
    return home


@pytest.fixture(scope="module")
def expected(teachers):
    return {kind: run_ranks(by_autograd, 1, kind, teachers / "dense")[0] for kind in KINDS}


def assert_like(results, expected):
    metrics, gradients = expected
    for told, _ in results:
        assert set(METRICS) < set(told)
        assert {name: told[name] for name in metrics} == pytest.approx(metrics, rel=2e-5)
    assert_same([shards for _, shards in results], gradients, "gradients")


QUICK = {
    *((kind, "tp2") for kind in KINDS),
    *(("reverse", name) for name in ("one-rank", "pp2-teacher-tp2", "cp2-teacher-dp2")),
    ("sampled", "pp2-teacher-tp2"),
    ("top-k", "dp2-teacher-pp2"),
}


@pytest.mark.parametrize(
    ("kind", "layout"),
    [
        pytest.param(kind, name, marks=() if (kind, name) in QUICK else pytest.mark.slow)
        for kind in KINDS
        for name in LAYOUTS | SLOW
    ],
)
def test_the_gradient_is_that_of_whole_softmaxes_in_any_layout(kind, layout, teachers, expected):
    ranks, settings = (LAYOUTS | SLOW)[layout]
    results = run_ranks(stepped, ranks, kind, teachers / "dense", *settings)
    assert_like(results, expected[kind])


@pytest.mark.parametrize("layout", SPARSE)
def test_experts_of_both_may_be_anywhere(layout, teachers):
    ranks, settings = SPARSE[layout]
    sparse = ("model.preset=tiny-moe", "model.router_aux_loss=0.0")
    alone = run_ranks(stepped, 1, "reverse", teachers / "sparse", *sparse)[0]
    results = run_ranks(stepped, ranks, "reverse", teachers / "sparse", *sparse, *settings)
    assert_like(results, ({name: alone[0][name] for name in ("loss", *METRICS)}, alone[1]))


@pytest.mark.parametrize("kind", ["reverse", "top-k"])
def test_another_teacher_has_another_gradient(kind, teachers, expected):
    ((metrics, shards),) = run_ranks(stepped, 1, kind, teachers / "sparse")
    assert metrics["teacher_log_prob"] != pytest.approx(expected[kind][0]["teacher_log_prob"])
    with pytest.raises(AssertionError, match="is off by"):
        assert_same([shards], expected[kind][1], "gradients")
