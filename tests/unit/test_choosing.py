"""The fewest samples that cover, balanced over domains, whatever order they come in."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_qwen3.posttrain.building.choosing import (
    ChoiceSettings,
    PassedAnswer,
    _features,
    choose,
)
from megatron_qwen3.posttrain.building.queries import Query

WORDS = [
    "river",
    "stone",
    "apple",
    "engine",
    "number",
    "prime",
    "circle",
    "triangle",
    "salt",
    "harbour",
    "dawn",
    "ninety",
]


def sample(k, domain="math", words="", number=0, rate=0.5, size=100, source="s", grade=1.0):
    messages = ({"role": "user", "content": words or f"w{k}"},)
    query = Query(f"q{k}", messages, f"f:{k}", domain, source)
    return PassedAnswer(query, number, size, rate, "eng_Latn", grade)


def made(seed, count=200):
    lots = random.Random(seed)
    return [
        sample(
            k,
            lots.choice(["math", "math", "math", "code", "logic"]),
            " ".join(lots.choices(WORDS, k=5)),
            rate=lots.random(),
            size=lots.randint(10, 10_000),
            source=lots.choice("abc"),
        )
        for k in range(count)
    ]


def by_domain(samples, numbers):
    found = {}
    for n in numbers:
        found.setdefault(samples[n].query.domain, []).append(n)
    return found


@settings(max_examples=25)
@given(st.integers(0, 30), st.integers(1, 4), st.sampled_from([1.0, 2.0, 100.0]))
def test_every_feature_is_covered_as_often_as_asked_or_as_can_be(seed, cover, balance):
    samples = made(seed, 80)
    chosen = choose(samples, ChoiceSettings(cover=cover, balance=balance))
    for domain, numbers in by_domain(samples, range(len(samples))).items():
        features = dict(zip(numbers, _features([samples[n] for n in numbers]), strict=True))
        taken = [n for n in chosen if samples[n].query.domain == domain]
        for feature in {f for own in features.values() for f in own}:
            there = sum(feature in own for own in features.values())
            assert sum(feature in features[n] for n in taken) >= min(cover, there)


def test_few_are_taken_where_few_cover_and_all_where_that_is_asked_for():
    samples = made(0, 600)
    few = choose(samples, ChoiceSettings(cover=1, balance=100.0))
    more = choose(samples, ChoiceSettings(cover=5, balance=100.0))
    assert len(few) < len(more) < 200
    assert choose(samples, ChoiceSettings(everything=True)) == list(range(600))


def test_none_of_what_covers_could_be_left_out_for_nothing():
    """A domain of pairs of equal samples: one of each is enough."""
    samples = [sample(k, words=WORDS[k // 2], rate=0.5) for k in range(2 * len(WORDS))]
    chosen = choose(samples, ChoiceSettings(cover=1))
    assert len({samples[n].query.text for n in chosen}) == len(chosen) == len(WORDS)


@pytest.mark.parametrize("balance", [1.0, 2.0, 4.0])
def test_no_domain_has_more_than_its_share_while_others_have_samples(balance):
    samples = made(1, 500)
    there = {d: len(n) for d, n in by_domain(samples, range(500)).items()}
    taken = {
        d: len(n)
        for d, n in by_domain(samples, choose(samples, ChoiceSettings(balance=balance))).items()
    }
    most = max(taken.values())
    assert all(n * balance >= most or n == there[d] for d, n in taken.items())


@pytest.mark.parametrize("most", [1, 7, 40])
def test_as_many_are_taken_at_most_as_are_asked_for_equally(most):
    samples = made(2)
    chosen = choose(samples, ChoiceSettings(most_samples=most, balance=1.0))
    sizes = [len(n) for n in by_domain(samples, chosen).values()]
    assert len(chosen) == most and max(sizes) - min(sizes) <= 1


def test_the_order_of_the_samples_does_not_matter():
    samples = made(3)
    order = list(range(len(samples)))
    random.Random(0).shuffle(order)
    first = {samples[n].key for n in choose(samples, ChoiceSettings())}
    mixed = [samples[n] for n in order]
    assert {mixed[n].key for n in choose(mixed, ChoiceSettings())} == first


def test_of_one_querys_answers_the_best_and_of_those_the_middle_one_is_taken():
    sizes = [10, 1000, 20, 30, 5000]
    samples = [sample(0, number=k, size=size) for k, size in enumerate(sizes)]
    assert choose(samples, ChoiceSettings()) == [3]
    graded = [sample(0, number=k, size=s, grade=k == 4) for k, s in enumerate(sizes)]
    assert choose(graded, ChoiceSettings()) == [4]
    assert len(choose(samples, ChoiceSettings(per_query=3, everything=True))) == 3


def test_of_nothing_nothing_is_chosen():
    assert choose([], ChoiceSettings()) == []
