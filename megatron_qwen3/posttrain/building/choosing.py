"""Chooses few samples that cover all features, with no domain crowding out another.

    chosen = choose(samples, ChoiceSettings(cover=3, balance=2.0))      # numbers, in order

A sample has *features*: within its domain, its source, language, difficulty and length, and the
words of its query that other queries of the domain share. In each domain samples are taken one by
one, always the one that adds most (Nemhauser et al. 1978: within 1 - 1/e of the best choice of that
size), until every feature is covered `cover` times, or as often as it can be. Every domain gets, as
far as it has samples, at least the largest number that a domain needs, divided by `balance`.

The result is a function of samples and settings: ties are broken by ids.
"""

import hashlib
import heapq
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from data_prep.units import split
from megatron_qwen3.fields import setting
from megatron_qwen3.posttrain import options
from megatron_qwen3.posttrain.building.queries import Query

_RAREST = 0.02  # a word counts if this share of a domain's queries has it
_COMMONEST = 0.5
_STEPS_OF_DIFFICULTY = 4


@dataclass(frozen=True)
class ChoiceSettings:
    """How many of the passing samples are taken."""

    per_query: int = setting(1, "most answers taken per query", at_least=1)
    cover: int = setting(3, "samples that must cover each feature", at_least=1)
    balance: float = setting(2.0, "largest ratio of two domains' numbers of samples", at_least=1)
    most_samples: int = setting(0, "samples in all; 0: as many as cover", at_least=0)
    everything: bool = setting(False, "take all that passed, at most per_query per query")

    def __post_init__(self) -> None:
        options.check(self)


@dataclass(frozen=True)
class PassedAnswer:
    """One answer that passed: the `number`-th of its query.

    pass_rate: the share of the query's answers that were right; grade: quality, 0 to 1; numbers:
    measured by the rules.
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
        """A sort key, a digest: independent of order in the file and of the alphabet."""
        return hashlib.sha256(f"{self.query.id}\0{self.number}".encode()).hexdigest()


def choose(samples: Sequence[PassedAnswer], settings: ChoiceSettings) -> list[int]:
    """Numbers of the chosen samples, ascending."""
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
    """The best answers of each query; among equals, those of middle length first, as neither terse
    nor rambling."""
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

    Gains only fall while samples are taken, so an earlier gain is an upper bound: only the top of a
    heap is computed again (Minoux 1978).
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
    """The features of each sample of a domain."""
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
    """Samples to take of each domain, from the numbers it has and needs."""
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
