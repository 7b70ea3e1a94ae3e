"""Small models on the device against float32 on a CPU: scores, gradients, losses, and the rest.

`reference` runs in a process without a GPU and leaves its fresh weights as a checkpoint, and its
results. `compare` starts from these weights: a device's own generators would draw others.
Distances are those of whole tensors, |x - reference| / |reference|, of scores after their mean has
been taken off both.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from megatron_qwen3.generate.engine import Generator
from megatron_qwen3.generate.sampling import Sampling
from megatron_qwen3.model.outputs import log_probs
from megatron_qwen3.model.stretches import Stretches
from megatron_qwen3.settings import Config
from megatron_qwen3.settings_overlap import DENSE_GRAPHS, SPARSE_GRAPHS
from megatron_qwen3.training import checkpoint, saver, shards
from megatron_qwen3.training.batch import TokenBatch
from megatron_qwen3.training.engine import Engine
from megatron_qwen3.training.model import Model
from megatron_qwen3.training.objectives import cross_entropy
from on_gpu import ours
from on_gpu.cases import Options, Report

VOCABULARY, RATE, BETA1 = 1024, 1e-3, 0.9
DENSE: dict[str, Any] = {
    "hidden_size": 256, "ffn_hidden_size": 768, "num_attention_heads": 4, "num_query_groups": 2,
    "head_dim": 128, "vocab_size": VOCABULARY, "tie_embeddings": True,
    "init_std": 0.06,  # fresh weights of 0.02 give nearly the same score to every token
}  # fmt: skip
MODELS = {
    "dense": DENSE,
    "moe": DENSE | {"num_experts": 32, "experts_per_token": 2, "expert_ffn_hidden_size": 128},
}
# Of a test: narrower, and with weights as much larger as their products have fewer summands.
_TINY = {"num_layers": 2, "hidden_size": 64, "ffn_hidden_size": 128, "head_dim": 32}
_TINY |= {"init_std": 0.12}
_UNIT = 128  # positions, of which FP8's recipes take any multiple
_MOMENT = "optimizer.state.exp_avg."


class Limits(NamedTuple):
    """Largest distances. `losses`: of each step's, relative; `cached`: of a token's log p."""

    scores: float
    gradients: float
    losses: float
    cached: float
    resumed: float


# For float32 the differences of sums in another order. A number in bf16 is off by 2^-9 at most, 0.1
# % in
# the mean square, and a layer rounds about ten times; a factor of a product in E4M3 by 2.6 %. A
# router of rounded numbers sends some tokens elsewhere, which weighs more than rounding: two layers
# of kind torch in bf16 on a CPU had scores off by 8 % and gradients by 12 %. Here there are four,
# and mixed-up experts or documents are off by more than half. Texts are continued in bf16,
# also by models in FP8, with whose own scores they are compared.
LIMITS = {
    ("dense", "fp32"): Limits(1e-4, 1e-4, 1e-4, 1e-3, 1e-4),
    ("moe", "fp32"): Limits(1e-4, 1e-4, 1e-4, 1e-3, 1e-4),
    ("dense", "bf16"): Limits(3e-2, 4e-2, 5e-3, 5e-2, 1e-3),
    ("moe", "bf16"): Limits(1.5e-1, 2.5e-1, 1e-2, 1e-1, 1e-3),
    ("dense", "fp8"): Limits(2.5e-1, 4e-1, 1e-2, 5e-1, 2e-3),
    ("moe", "fp8"): Limits(4e-1, 5e-1, 2e-2, 5e-1, 2e-3),
}


def reference(options: Options, report: Report, model: str) -> None:
    """Write the results of float32 on a CPU into the work folder."""
    cpu = Options("cpu", options.tiny, options.work)
    config = _settings(cpu, model, "torch", "fp32", "none")
    engine = ours.engine(config)
    path = saver.save(engine, config, 0)
    found = {"scores": _scores(engine, options), **_trained(engine, options)}
    torch.save(found | {"weights": str(path)}, _left_by(options, model))
    report.note(losses=found["losses"])


def compare(
    options: Options, report: Report, model: str, kind: str, precision: str, recipe: str = "none"
) -> None:
    """Compare everything that a run does, on the device, with the files of the reference."""
    config = _settings(options, model, kind, precision, recipe)
    limits = LIMITS[model, precision if recipe == "none" else "fp8"]
    expected = torch.load(_left_by(options, model), weights_only=False)
    engine = ours.engine(config)
    checkpoint.load_weights(engine, Path(expected["weights"]))
    for name, scores in _scores(engine, options).items():
        report.check(f"scores, {name}", _apart(scores, expected["scores"][name]), limits.scores)
    found = _trained(engine, options)
    report.note(losses=found["losses"], reference_losses=expected["losses"])
    apart = _of_gradients(found["gradients"], expected["gradients"])
    report.note(worst_gradients=dict(sorted(apart.items(), key=lambda x: -x[1])[:5]))
    report.check("gradients", apart["all"], limits.gradients)
    report.check("losses", _relative(found["losses"], expected["losses"]), limits.losses)
    if model == "moe":
        _without_rows(report, engine)
    _generation(report, engine.model, limits.cached)
    updates = len(found["losses"]) + int(model == "moe")
    _resume(report, engine, updates, options, limits)


def replays(options: Options, report: Report, model: str) -> None:
    """Steps whose layers replay CUDA graphs, every second one of whole rows, against the same steps
    without, from the same weights."""
    expected = torch.load(_left_by(options, model), weights_only=False)
    parts, losses = SPARSE_GRAPHS if model == "moe" else DENSE_GRAPHS, []
    for graphs in ((), parts):
        plain = _settings(options, model, "te", "bf16", "none")
        config = replace(plain, overlap=replace(plain.overlap, cuda_graphs=graphs))
        engine = ours.engine(config)
        checkpoint.load_weights(engine, Path(expected["weights"]))
        losses.append(_trained(engine, options, 8)["losses"])
        if graphs:
            ours.check_captured(engine, report)
    report.note(losses=losses[1], losses_without=losses[0], are_equal=losses[0] == losses[1])
    limit = LIMITS[model, "bf16"].resumed
    report.check("losses with graphs", _relative(losses[1], losses[0]), limit)


def _settings(options: Options, model: str, kind: str, precision: str, recipe: str) -> Config:
    rows, length = _shape(options)
    sizes = {"num_layers": 4} | MODELS[model] | (_TINY if options.tiny else {})
    values: dict[str, Any] = {f"model.{name}": value for name, value in sizes.items()}
    values |= {
        "train.precision": precision,
        "train.global_batch": rows,
        "train.micro_batch": rows // 2,
        "data.sequence_length": length,
        "data.sources": [],
        "optim.clip_grad": 0.0,  # so that Adam's first moment after a step is the gradient
        "optim.beta1": BETA1,
        # Adam divides by |gradient| + eps: of a gradient that is nothing but rounding the usual
        # eps makes whole updates.
        "optim.eps": 1e-5,
        "run.name": f"{model}-{kind}-{precision}-{recipe}",
    }
    return ours.settings(options, values, kind, recipe)


def _shape(options: Options) -> tuple[int, int]:
    return (4, 32) if options.tiny else (8, 256)


def _left_by(options: Options, model: str) -> Path:
    return options.work / f"reference_{model}.pt"


def _batches(options: Options) -> Iterator[TokenBatch]:
    """The same on every side, again and again: every second one has documents in its rows."""
    rows, length = _shape(options)
    random = torch.Generator().manual_seed(5)
    made = []
    for number in range(2 if options.tiny else 4):
        ids = torch.randint(VOCABULARY, (rows, length + 1), generator=random)
        starts = [[0, 8, 24 + 2 * row] if row % 2 else [0] for row in range(rows)]
        documents = Stretches.of(starts, length) if number % 2 else None
        made.append(TokenBatch.of(ids[:, :-1], ids[:, 1:], documents))
    while True:
        yield from made


def _scores(engine: Engine, options: Options) -> dict[str, Tensor]:
    """log p of the labels of a batch of plain rows and of one of documents."""
    batches = zip(("rows", "documents"), _batches(options), strict=False)
    return {n: engine.model.score(b, log_probs)["log_prob"].cpu() for n, b in batches}


def _trained(engine: Engine, options: Options, tiny_steps: int = 4) -> dict[str, Any]:
    """The losses of some steps, and the gradients of the first one, by their checkpoint's names."""
    losses, gradients = [], {}
    steps = tiny_steps if options.tiny else 20
    for _, batch in zip(range(steps), _batches(options), strict=False):
        losses.append(engine.train_step(batch, cross_entropy, RATE)["loss"])
        gradients = gradients or _gradients(engine)
    return {"losses": losses, "gradients": gradients}


def _gradients(engine: Engine) -> dict[str, Tensor]:
    """Whole tensors, of Adam's first moments after one step."""
    whole: dict[str, Tensor] = {}
    for part in shards.owned(engine):
        if part.place.key.startswith(_MOMENT):
            name = part.place.key.removeprefix(_MOMENT)
            target = whole.setdefault(name, torch.zeros(part.place.whole))
            spans = zip(part.place.offsets, part.tensor.shape, strict=True)
            target[tuple(slice(o, o + n) for o, n in spans)] = part.tensor.cpu() / (1 - BETA1)
    return whole


def _of_gradients(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """The distance of each weight's, and of all together as "all"."""
    if found.keys() != expected.keys():
        raise ValueError(f"weights have other names: {sorted(found.keys() ^ expected.keys())}")
    apart = {name: _apart(x, expected[name], centred=False) for name, x in found.items()}
    pairs = [(x.flatten(), expected[name].flatten()) for name, x in found.items()]
    mine, theirs = (torch.cat(side) for side in zip(*pairs, strict=True))
    return apart | {"all": _apart(mine, theirs, centred=False)}


def _without_rows(report: Report, engine: Engine) -> None:
    """A step of one token again and again, which all goes to the same experts: others have none."""
    same = torch.full((2, _UNIT), 3)
    metrics = engine.train_step(TokenBatch.of(same, same), cross_entropy, RATE)
    report.note(idle_experts=metrics["idle_experts"])
    report.check("experts with rows, of a step for few", 1 - metrics["idle_experts"], 0.5)
    finite = engine.model.weights_are_finite()
    report.check("weights that are not finite after it", 0.0 if finite else 1.0, 0.0)


def _generation(report: Report, model: Model, at_most: float) -> None:
    """Tokens by the cache, one at a time, against a fresh pass over the whole text."""
    prompts = [list(range(3, _UNIT - 5)), list(range(40, _UNIT + 24))]
    limits = [_UNIT + 1 - len(prompt) for prompt in prompts]
    completions = Generator(model).generate(prompts, Sampling(temperature=0), limits)
    texts = torch.tensor([p + c.tokens for p, c in zip(prompts, completions, strict=True)])
    scored = model.score(TokenBatch.of(texts[:, :-1], texts[:, 1:]), log_probs)["log_prob"].cpu()
    apart = [
        (torch.tensor(c.log_probs) - scored[row, -len(c.log_probs) :]).abs()
        for row, c in enumerate(completions)
    ]
    report.note(largest_distance_by_the_cache=max(x.max().item() for x in apart))
    # The middle one of each text: a token that rounding sends to another expert is far off alone.
    report.check("log p by the cache", max(x.median().item() for x in apart), at_most)


def _resume(report: Report, engine: Engine, updates: int, options: Options, limits: Limits) -> None:
    """A save, and steps of who goes on against steps of who comes back; and the other kind.

    updates: steps that the engine has taken, from which Adam's correction counts.
    """
    config = engine.config
    path = saver.save(engine, config, updates)
    kept = _scores(engine, options)
    went_on = _some_losses(engine, options)
    again = ours.engine(config)
    checkpoint.load(again, path)
    loaded = _scores(again, options)
    report.note(scores_after_loading_are_equal=all(torch.equal(kept[n], loaded[n]) for n in kept))
    came_back = _some_losses(again, options)
    report.note(losses_after_loading_are_equal=went_on == came_back)
    report.check("losses after loading", _relative(came_back, went_on), limits.resumed)
    if config.model.kind == "te" and not config.fp8.is_on:
        plain = ours.engine(_settings_of_torch(config))
        checkpoint.load_weights(plain, path)
        for name, scores in _scores(plain, options).items():
            apart = _apart(scores, kept[name])
            report.check(f"scores of kind torch from the same file, {name}", apart, limits.scores)


def _settings_of_torch(config: Config) -> Config:
    return replace(config, model=replace(config.model, kind="torch"))


def _some_losses(engine: Engine, options: Options) -> list[float]:
    steps = zip(range(4), _batches(options), strict=False)
    return [engine.train_step(batch, cross_entropy, RATE)["loss"] for _, batch in steps]


def _apart(x: Tensor, expected: Tensor, centred: bool = True) -> float:
    """|x - expected| / |expected|, of float64."""
    x, expected = x.double(), expected.double()
    middle = expected.mean() if centred else 0.0
    size = (expected - middle).norm().item()
    return (x - expected).norm().item() / max(size, 1e-30)


def _relative(losses: Sequence[float], expected: Sequence[float]) -> float:
    return max(abs(x / y - 1) for x, y in zip(losses, expected, strict=True))
