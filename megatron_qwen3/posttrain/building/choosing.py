"""Of the samples that passed, the fewest that cover, with no domain crowding out another.

    chosen = choose(samples, ChoiceSettings(cover=3, balance=2.0))      # numbers, in order

A sample has *features*: its source, language, difficulty and length, within its domain, and the
words of its query that others of the domain have, too. In each domain samples are taken one by
one, always the one that adds most (Nemhauser et al. 1978: within 1 - 1/e of the best of that many),
until every feature is covered `cover` times, or as often as it can be. The largest number that a
domain needs, divided by `balance`, is what every domain gets where it has as many.

The result is a function of samples and settings: equal ones are told apart by their ids.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from data_prep.units import split
from megatron_qwen3.fields import setting
from megatron_qwen3.posttrain import options
from megatron_qwen3.posttrain.building.queries import Query

_RAREST = 0.02  # of a domain's queries have a word that counts
_COMMONEST = 0.5
_STEPS_OF_DIFFICULTY = 4


@dataclass(frozen=True)
class ChoiceSettings:
    """How many of the samples that passed are taken."""

    per_query: int = setting(1, "answers of one query that are taken, at most", at_least=1)
    cover: int = setting(3, "samples that each feature is covered by", at_least=1)
    balance: float = setting(
        2.0, "times as many samples as any other that a domain may have", at_least=1
    )
    most_samples: int = setting(0, "samples in all; 0 is as many as cover", at_least=0)
    everything: bool = setting(False, "take all that passed, at most per_query of a query")

    def __post_init__(self) -> None:
        options.check(self)


@dataclass(frozen=True)
class PassedAnswer:
    """One answer that passed: the `number`-th of its query.

    pass_rate: the share of the query's answers that were right; grade: how good it was found, 0 to
    1; numbers: that it was judged by.
    """

    query: Query
    number: int
    characters: int
    pass_rate: float
    language: str = ""
    grade: float = 1.0
    numbers: Mapping[str, float] = field(default_factory=dict, compare=False)

    @property
    def key(self) -> str:
        """An order of its own: neither that of the file nor that of the alphabet."""
        return hashlib.sha256(f"{self.query.id}\0{self.number}".encode()).hexdigest()


def choose(samples: Sequence[PassedAnswer], settings: ChoiceSettings) -> list[int]:
    """Numbers of the samples that are taken, ascending."""
    of_domain: dict[str, list[int]] = defaultdict(list)
    for number in _best_of_queries(samples, settings.per_query):
        of_domain[samples[number].query.domain].append(number)
    if settings.everything:
        return sorted(number for numbers in of_domain.values() for number in numbers)
    orders = {
        domain: _order([samples[n] for n in numbers], numbers, settings.cover)
        for domain, numbers in sorted(of_domain.items())
    }
    shares = _shares({d: (len(o), needed) for d, (o, needed) in orders.items()}, settings)
    return sorted(n for domain, (order, _) in orders.items() for n in order[: shares[domain]])


def _best_of_queries(samples: Sequence[PassedAnswer], per_query: int) -> list[int]:
    """Of each query's answers the best, and of those the ones of middle length first: neither
    terse nor rambling."""
    of_query: dict[str, list[int]] = defaultdict(list)
    for number, sample in enumerate(samples):
        of_query[sample.query.id].append(number)
    taken: list[int] = []
    for numbers in of_query.values():
        by_length = sorted(numbers, key=lambda n: (samples[n].characters, samples[n].key))
        middle = (len(by_length) - 1) // 2
        distance = {n: abs(place - middle) for place, n in enumerate(by_length)}
        best_first = sorted(numbers, key=lambda n: (-samples[n].grade, distance[n], samples[n].key))
        taken += best_first[:per_query]
    return taken


def _order(
    samples: Sequence[PassedAnswer], numbers: Sequence[int], cover: int
) -> tuple[list[int], int]:
    """Numbers, those that add most first, and how many of them cover every feature.

    Gains only fall while samples are taken, so a gain that was computed before is a bound: only the
    best of a heap is computed anew (Minoux 1978).
    """
    features = _features(samples)
    left = Counter[Hashable](f for own in features for f in own)
    left = Counter({f: min(count, cover) for f, count in left.items()})
    heap = [(-len(own), s.key, k) for k, (s, own) in enumerate(zip(samples, features, strict=True))]
    heapq.heapify(heap)
    order, needed = list[int](), 0
    while heap:
        _, key, k = heapq.heappop(heap)
        gain = sum(1 for feature in features[k] if left[feature])
        if heap and gain < -heap[0][0]:
            heapq.heappush(heap, (-gain, key, k))
            continue
        order.append(numbers[k])
        if gain:
            needed = len(order)
        for feature in features[k]:
            left[feature] -= left[feature] > 0
    return order, needed


def _features(samples: Sequence[PassedAnswer]) -> list[list[Hashable]]:
    """What each sample of a domain stands for."""
    words = [set(split(sample.query.text).hashes.tolist()) for sample in samples]
    having = Counter(word for own in words for word in own)
    fewest, most = max(2.0, _RAREST * len(samples)), max(2.0, _COMMONEST * len(samples))
    return [
        [
            ("source", sample.query.source),
            ("language", sample.language),
            ("difficulty", min(int(sample.pass_rate * _STEPS_OF_DIFFICULTY), 3)),
            ("length", sample.characters.bit_length()),
            *(("word", word) for word in sorted(own) if fewest <= having[word] <= most),
        ]
        for sample, own in zip(samples, words, strict=True)
    ]


def _shares(domains: Mapping[str, tuple[int, int]], settings: ChoiceSettings) -> dict[str, int]:
    """Samples of each domain, of how many there are and how many it needs."""
    largest = max((needed for _, needed in domains.values()), default=0)
    least = -(-largest // settings.balance)
    wanted = {d: min(there, max(needed, int(least))) for d, (there, needed) in domains.items()}
    most = settings.most_samples
    if not most or sum(wanted.values()) <= most:
        return wanted
    shares: dict[str, int] = dict.fromkeys(wanted, 0)
    left = most
    for place, domain in enumerate(sorted(wanted, key=lambda d: (wanted[d], d))):
        shares[domain] = min(wanted[domain], left // (len(wanted) - place))
        left -= shares[domain]
    return shares
