"""Exchanges between context ranks: one that a run cannot have is an error before it begins."""

import pytest

from megatron_qwen3.config import ConfigError, load
from megatron_qwen3.planner.job import Job

TE = ("model.kind=te", "parallel.context=2")


def config(*settings):
    return load([], ["model.preset=tiny-moe", "train.steps=1", *settings])


@pytest.mark.parametrize("exchange", ["p2p", "all_gather"])
def test_transformer_engines_exchange_can_be_had_by_its_layers(exchange):
    assert config(*TE, f"parallel.context_exchange={exchange}")


@pytest.mark.parametrize(
    ("exchange", "settings", "says"),
    [
        ("p2p", ("parallel.context=2",), 'model.kind = "auto"; set model.kind = "te"'),
        ("p2p", ("model.kind=te",), "parallel.context = 1: no ranks share a row"),
        ("a2a", (*TE, "train.precision=fp32"), 'train.precision = "fp32"; set "bf16" or'),
        (
            "all_gather",
            (*TE, "rope.dca_chunk_size=24", "rope.dca_local_size=8"),
            'rope.dca_chunk_size = 24; set parallel.context_exchange = "own"',
        ),
        (
            "p2p",
            (*TE, "parallel.pipeline=2", "parallel.virtual_pipeline=2"),
            "virtual_pipeline = 2 does not take; set that to 1",
        ),
        (
            "a2a",
            (*TE, "parallel.tensor=2"),
            'num_query_groups / parallel.tensor = 2 / 2 is no multiple of 2, which.*"all_gather"',
        ),
        (
            "p2p",
            (*TE, "parallel.tensor=2", "overlap.tensor=true"),
            "pads documents to longer ones; leave it out",
        ),
        (
            "p2p",
            (*TE, "parallel.expert=2", "parallel.dispatch=hybridep"),
            'takes as many tokens from every rank, and .* set parallel.dispatch = "deepep"',
        ),
        ("a2a+p2p", TE, "is not one of own, p2p, all_gather, a2a"),
    ],
)
def test_what_an_exchange_cannot_do_is_refused_with_the_way_out(exchange, settings, says):
    with pytest.raises(ConfigError, match=says):
        config(*settings, f"parallel.context_exchange={exchange}")


@pytest.mark.parametrize(
    "settings", [("model.num_query_groups=3", "model.num_attention_heads=6"), ()]
)
def test_heads_for_places_take_even_numbers_that_context_ranks_divide(settings):
    wanted = ("model.kind=te", "parallel.context=3", "data.sequence_length=48")
    with pytest.raises(ConfigError, match="num_query_groups.* is no multiple of 6, which"):
        config(*wanted, *settings, "parallel.context_exchange=a2a")


def test_the_planner_knows_who_holds_all_keys():
    base = ("model.kind=te", "fp8.recipe=tensorwise", "parallel.context=2")
    ours = Job.of(config(*base), 2)
    ring = Job.of(config(*base, "parallel.context_exchange=p2p"), 2)
    assert ours.gathers_keys and not ring.gathers_keys
