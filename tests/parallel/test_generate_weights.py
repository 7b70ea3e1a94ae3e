"""A generator reads the model's own tensors, as they are now, and leaves the model alone."""

import copy
import functools

import pytest
import torch
from ranks import run_ranks

from megatron_qwen3.config import load
from megatron_qwen3.generate.engine import Generator
from megatron_qwen3.generate.sampling import Sampling
from megatron_qwen3.model import linear
from megatron_qwen3.parallel.runtime import start
from megatron_qwen3.training.batch import TokenBatch
from megatron_qwen3.training.engine import Engine
from megatron_qwen3.training.objectives import cross_entropy

GREEDY, PROMPTS, NEW = Sampling(temperature=0), [[1, 2, 3], [4, 5], [6], [7, 8, 9, 10]], 6
LAYOUTS = {
    "dense-tp2-tied": (2, "model.preset=tiny-dense", "model.tie_embeddings=true", "tensor=2"),
    "moe-pp2-vpp2-tied": (
        2,
        "model.preset=tiny-moe",
        "model.tie_embeddings=true",
        "pipeline=2 virtual_pipeline=2",
    ),
    "moe-tp2": (2, "model.preset=tiny-moe", "model.tie_embeddings=false", "tensor=2"),
}


def engine_of(preset, tied, parallel):
    settings = [
        preset,
        tied,
        "model.init_std=0.15",
        "train.steps=3",
        "train.precision=fp32",
        "train.global_batch=2",
        "train.micro_batch=1",
        "data.sequence_length=32",
        *(f"parallel.{setting}" for setting in parallel.split()),
    ]
    config = load([], settings)
    return Engine(config, start(config))


def attributes(module):
    """A module's attributes beside its tensors and children, by name."""
    held = {k: v for k, v in vars(module).items() if not k.startswith("_")}
    return {k: v for k, v in held.items() if isinstance(v, (bool, int, float, str, type(None)))}


def looked_at(preset, tied, parallel):
    """Whether tensors are shared and the model was left alone, and each write with its time."""
    linear._LEAST_PACKED_WEIGHTS = 1  # so that small weights are packed too
    engine = engine_of(preset, tied, parallel)
    model = engine.model
    generator = Generator(model)
    facts = {"shared": [], "allocated": []}
    for mine, chunk in zip(generator.chunks, model.chunks, strict=True):
        theirs = {id(t) for t in (*chunk.parameters(), *chunk.buffers())}
        ours = {id(t) for t in (*mine.parameters(), *mine.buffers())}
        facts["shared"].append(ours == theirs)
        facts["allocated"].append(any(t.is_meta for t in (*mine.parameters(), *mine.buffers())))
    before = [copy.copy(attributes(m)) for chunk in model.chunks for m in chunk.modules()]
    routers = engine.balance.routers.values()
    for router in routers:
        router.begin_counting()
    facts["first"] = generator.generate(PROMPTS, GREEDY, NEW)
    facts["counted"] = sum(router.sums.abs().sum().item() for router in routers)
    for router in routers:
        router.counting = False
    after = [attributes(m) for chunk in model.chunks for m in chunk.modules()]
    facts["left alone"] = before == after
    ids = torch.arange(66).view(2, 33)
    engine.train_step(TokenBatch.of(ids[:, :-1], ids[:, 1:]), cross_entropy, 0.05)
    engine.train_step(TokenBatch.of(ids[:, :-1], ids[:, 1:]), cross_entropy, 0.05)
    facts["second"] = generator.generate(PROMPTS, GREEDY, NEW)
    model.weights_version = 40
    facts["anew"] = Generator(model).generate(PROMPTS, GREEDY, NEW)
    return facts


@functools.cache
def facts_of(name):
    ranks, *settings = LAYOUTS[name]
    return run_ranks(looked_at, ranks, *settings)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_generator_has_the_models_tensors_and_none_of_its_own(name):
    for facts in facts_of(name):
        assert all(facts["shared"]) and not any(facts["allocated"])


@pytest.mark.parametrize("name", LAYOUTS)
def test_generation_leaves_the_model_as_it_was(name):
    for facts in facts_of(name):
        assert facts["left alone"]
        assert facts["counted"] == 0


@pytest.mark.parametrize("name", LAYOUTS)
def test_after_an_update_the_new_weights_write(name):
    for facts in facts_of(name):
        tokens = {key: [c.tokens for c in facts[key]] for key in ("first", "second", "anew")}
        assert tokens["second"] == tokens["anew"] != tokens["first"]


@pytest.mark.parametrize("name", LAYOUTS)
def test_completions_say_which_weights_wrote_them(name):
    """None updated, two updates, and a version that was set from outside."""
    for facts in facts_of(name):
        versions = [{c.weights_version for c in facts[k]} for k in ("first", "second", "anew")]
        assert versions == [{0}, {2}, {40}]


def without_prompts(parallel):
    """Between two steps: each data rank's results, one without prompts, and then a wrong id."""
    engine = engine_of("model.preset=tiny-dense", "model.tie_embeddings=true", parallel)
    rank, generator = engine.data_rank, Generator(engine.model)
    ids = torch.arange(66).view(2, 33)[rank : rank + 1]
    engine.train_step(TokenBatch.of(ids[:, :-1], ids[:, 1:]), cross_entropy, 0.05)
    made = generator.generate([[], PROMPTS][rank], GREEDY, NEW)
    with pytest.raises(ValueError) as raised:
        generator.generate([PROMPTS, [[1, 2], [3, 512]]][rank], GREEDY, NEW)
    loss = engine.train_step(TokenBatch.of(ids[:, :-1], ids[:, 1:]), cross_entropy, 0.05)["loss"]
    return rank, [c.tokens for c in made], str(raised.value), loss


@pytest.mark.parametrize("parallel", ["overlap=true", "overlap=false"])
def test_data_ranks_without_prompts_or_with_wrong_ones_leave_no_other_waiting(parallel):
    (_, none, another, loss), (_, made, own, same) = run_ranks(
        without_prompts, 2, parallel, timeout_seconds=60
    )
    assert none == [] and [len(tokens) for tokens in made] == [NEW] * len(PROMPTS)
    assert own == "prompt 1 has token 512, which is no id of a vocabulary of 512"
    assert another.startswith("another data rank") and loss == same
