"""Samples rollouts with the model in training, in its layout: `OwnEngine(model, …).sample(asks)`.

    engine = OwnEngine(run.engine.model, ends, temperature=1.0, rows=64, budget_of=budget_of)
    engine.refit(version=step)               # uses the model's own weights: copies nothing
    groups = engine.sample(asks)             # all ranks call it; the same groups on each

Data ranks share the prompts of a batch, short ones together. Samples travel between ranks as a few
arrays, so that many tokens take few messages. A rank with short answers waits for the others, and
gives signs of life with them. Tokens are drawn from the whole distribution at the temperature,
without top-k or top-p, so that log-probs are those of the sampling distribution.

Legend: N samples of this data rank, T their tokens.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from megatron_qwen3.generate.completion import Completion
from megatron_qwen3.generate.engine import Generator
from megatron_qwen3.generate.sampling import Sampling
from megatron_qwen3.generate.thinking import ThinkingBudget
from megatron_qwen3.posttrain.rollouts.rollout import LENGTH, STOP, Ask, Rollout
from megatron_qwen3.training.model import Model

_PASSES = 32  # forward passes of a data rank between questions whether the others are done


@dataclass(frozen=True, eq=False)
class _Sampled:
    """Samples one after another. lengths_N int32; is_done_N: ended by an end token; tokens_T int32,
    log_probs_T float32, forced_T bool."""

    lengths_N: npt.NDArray[np.int32]
    is_done_N: npt.NDArray[np.bool_]
    tokens_T: npt.NDArray[np.int32]
    log_probs_T: npt.NDArray[np.float32]
    forced_T: npt.NDArray[np.bool_]


class OwnEngine:
    """A RolloutEngine. ends: ids that end an answer; rows: samples of a data rank at once;
    budget_of: makes a thinking budget of a number of tokens; beat: called now and then on all ranks
    alike while it samples, and may raise to end that; alive: called for each token, by each rank
    for itself; everywhere: whether all ranks get the samples, or only the first."""

    def __init__(
        self,
        model: Model,
        ends: Sequence[int],
        temperature: float,
        rows: int,
        budget_of: Callable[[int], ThinkingBudget],
        beat: Callable[[], None] = lambda: None,
        alive: Callable[[], None] = lambda: None,
        everywhere: bool = True,
    ) -> None:
        self._model, self._generator = model, Generator(model)
        self._gets_rollouts = everywhere or dist.get_rank() == 0
        self._ends, self._rows = tuple(ends), rows
        self._sampling = Sampling(temperature=temperature)
        self._budget_of, self._beat, self._alive = budget_of, beat, alive
        self._version = 0

    def refit(self, version: int) -> dict[str, float]:
        """Note the version of the current weights, which are used in place."""
        self._version = version
        return {}

    def sample(self, asks: Sequence[Ask]) -> list[list[Rollout]]:
        """The samples of each ask; [] on a rank that does not get them."""
        found: dict[int, list[Rollout]] = {}
        for numbers in self._parts(asks):
            self._beat()
            part = [asks[n] for n in numbers]
            of_ranks = self._of_all_ranks(self._sampled(part))
            if self._gets_rollouts:
                rollouts, size = self._rollouts(part, of_ranks), part[0].samples
                for place, n in enumerate(numbers):
                    found[n] = rollouts[place * size : (place + 1) * size]
        return [found[n] for n in sorted(found)]

    def _parts(self, asks: Sequence[Ask]) -> Iterator[list[int]]:
        """Numbers of asks that all data ranks answer at once: equal in their number of samples, in
        order of prompt length."""
        alike: dict[int, list[int]] = defaultdict(list)
        for n, ask in enumerate(asks):
            alike[ask.samples].append(n)
        for samples, numbers in alike.items():
            numbers.sort(key=lambda n: (len(asks[n].prompt), n))
            size = max(1, self._rows // samples) * self._model.layout.data
            for start in range(0, len(numbers), size):
                yield numbers[start : start + size]

    def _sampled(self, asks: Sequence[Ask]) -> list[Completion]:
        """The completions of this data rank's share: every `layout.data`-th ask."""
        mine = asks[self._model.data_rank :: self._model.layout.data]
        budgets = [self._budget_of(n) if (n := ask.thinking_budget) else None for ask in mine]
        together = _Together(self._model, self._beat, self._alive)
        completions = self._generator.generate(
            [ask.prompt for ask in mine],
            self._sampling,
            [ask.max_new_tokens for ask in mine],
            self._ends,
            budgets,
            samples=asks[0].samples,
            seeds=[ask.seed for ask in mine],
            on_pass=together.passed,
        )
        together.wait()
        return completions

    def _of_all_ranks(self, completions: Sequence[Completion]) -> list[_Sampled]:
        """The samples of each data rank, on all ranks."""
        mine = _arrays(completions)
        if self._model.layout.data == 1:
            return [mine]
        sizes = torch.tensor([[len(mine.lengths_N), len(mine.tokens_T)]], device=self._model.device)
        sizes_D2 = self._model.gather_over_data(sizes).tolist()
        of_samples = self._gathered([mine.lengths_N, mine.is_done_N], [n for n, _ in sizes_D2])
        of_tokens = self._gathered(
            [mine.tokens_T, mine.log_probs_T.view(np.int32), mine.forced_T],
            [t for _, t in sizes_D2],
        )
        return [
            _Sampled(
                lengths_N,
                is_done_N.astype(bool),
                ids_T,
                bits_T.view(np.float32),
                forced.astype(bool),
            )
            for (lengths_N, is_done_N), (ids_T, bits_T, forced) in zip(
                of_samples, of_tokens, strict=True
            )
        ]

    def _gathered(
        self, columns: Sequence[npt.NDArray[np.generic]], sizes: Sequence[int]
    ) -> Iterator[list[npt.NDArray[np.int32]]]:
        """Columns of each data rank, as int32; sizes: their length on each data rank."""
        padded = np.zeros((1, len(columns), max(sizes)), np.int32)
        for row, column in zip(padded[0], columns, strict=True):
            row[: len(column)] = column
        every = self._model.gather_over_data(torch.from_numpy(padded).to(self._model.device))
        for rows, size in zip(every.cpu().numpy(), sizes, strict=True):
            yield [np.ascontiguousarray(row[:size]) for row in rows]

    def _rollouts(self, asks: Sequence[Ask], of_ranks: Sequence[_Sampled]) -> list[Rollout]:
        """The rollouts of all asks, in order."""
        ranks, versions = len(of_ranks), (self._version, self._version)
        own = [iter(_rollouts(asks[d::ranks], s, versions)) for d, s in enumerate(of_ranks)]
        return [next(own[n % ranks]) for n, ask in enumerate(asks) for _ in range(ask.samples)]


class _Together:
    """Data ranks that sample different prompts until all are done. Every _PASSES passes they tell
    each other, so that none waits longer for a sign of life or a request to stop."""

    def __init__(self, model: Model, beat: Callable[[], None], alive: Callable[[], None]) -> None:
        self._model, self._beat, self._alive = model, beat, alive
        self._count = 0

    def passed(self) -> None:
        """Called before each pass of this rank."""
        self._alive()
        self._count += 1
        if self._count % _PASSES == 0:
            self._are_done(False)

    def wait(self) -> None:
        """Called when this rank is done: wait until all are."""
        while not self._are_done(True):
            pass

    def _are_done(self, am_done: bool) -> bool:
        self._beat()
        if self._model.layout.data == 1:
            return am_done
        mine = torch.tensor([int(am_done)], device=self._model.device)
        return bool(self._model.gather_over_data(mine).all())


def _arrays(completions: Sequence[Completion]) -> _Sampled:
    def joined(name: str, dtype: type) -> npt.NDArray[np.generic]:
        parts = [np.array(getattr(each, name), dtype) for each in completions]
        return np.concatenate([np.zeros(0, dtype), *parts])

    forced_T = joined("inserted", np.bool_)
    log_probs_T = joined("sampled_log_probs", np.float32)
    log_probs_T[forced_T] = 0
    return _Sampled(
        np.array([len(each.tokens) for each in completions], np.int32),
        np.array([each.finish_reason == STOP for each in completions], np.bool_),
        joined("tokens", np.int32),
        log_probs_T,
        forced_T,
    )


def _rollouts(
    asks: Sequence[Ask], sampled: _Sampled, versions: tuple[int, int]
) -> Iterator[Rollout]:
    of_asks = [ask for ask in asks for _ in range(ask.samples)]
    ends = [0, *np.cumsum(sampled.lengths_N).tolist()]
    for n, (ask, (first, last)) in enumerate(zip(of_asks, pairwise(ends), strict=True)):
        yield Rollout(
            ask.task,
            ask.prompt,
            tuple(sampled.tokens_T[first:last].tolist()),
            tuple(sampled.log_probs_T[first:last].tolist()),
            tuple((~sampled.forced_T[first:last]).tolist()),
            STOP if sampled.is_done_N[n] else LENGTH,
            versions,
            ask.thinking,
            ask.seed,
        )
