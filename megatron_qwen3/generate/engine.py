"""Generates with a model in any layout, also during training: `Generator(model)`.

    generator = Generator(engine.model)
    completions = generator.generate(prompts, Sampling(temperature=0.6), 256, stop_ids=[151645])

All ranks call `generate`; those of one data rank with the same prompts, those of different data
ranks with their own, as many as they have. Hidden states pass from pipeline stage to stage, one
tensor rank of the last stage chooses the tokens and sends them to the others: completions are equal
on all ranks of a data rank. Where experts are spread over data ranks, all run equally many passes:
a rank that is done goes on until all are.

Legend: B rows, S places of a pass, H hidden, V vocabulary, v = V/tp.
"""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_qwen3.generate.cache import KVCache, Timeline
from megatron_qwen3.generate.completion import Completion, GeneratedRow, OnToken
from megatron_qwen3.generate.sampler import Sampler, log_probs
from megatron_qwen3.generate.sampling import Sampling
from megatron_qwen3.generate.thinking import Thinking, ThinkingBudget
from megatron_qwen3.model.build import view
from megatron_qwen3.model.linear import Products
from megatron_qwen3.model.logits import Logits
from megatron_qwen3.training.model import Model


class Generator:
    """Generates with a model, between training steps or without training."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.chunks = view(model.config, model.layout, model.groups, model.chunks)
        self.config, self.layout, self.device = model.config, model.layout, model.device
        layout = self.layout
        self.dtype = self.chunks[0].config.params_dtype
        self.pipeline, self.tensor = model.groups.ranks.pp, model.groups.ranks.tp
        # The last pipeline stage has the logits; its first tensor rank chooses.
        self.is_last_stage = self.pipeline.rank() == layout.pipeline - 1
        self.chooses = self.is_last_stage and self.tensor.rank() == 0

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        max_new_tokens: int | Sequence[int],
        stop_ids: Sequence[int] = (),
        budget: ThinkingBudget | None | Sequence[ThinkingBudget | None] = None,
        on_token: OnToken | None = None,
        first_row: int = 0,
        samples: int = 1,
        seeds: Sequence[int] | None = None,
        on_pass: Callable[[], None] = lambda: None,
    ) -> list[Completion]:
        """`samples` completions for each prompt, those of one prompt after each other.

        Prompts are ids, at least one in each; a data rank may have no prompt. `max_new_tokens` is
        one limit, or one for each prompt, and `budget` likewise. Row i, which is sample i % samples
        of prompt i // samples, draws from the random sequence of (sampling.seed, first_row + i),
        whatever else is in the batch; a prompt is read once for all its samples. With `seeds`, one
        for each prompt, its sample k draws from (its seed, k) instead, independent of its place
        among other prompts.
        `on_token` is called on every rank for each token, `on_pass` before each pass; an exception
        of the latter, on all ranks alike, ends the generation. ValueError, on all ranks, where one
        of them has an argument out of range.
        """
        self.model.synchronize()  # all data ranks take part, even one without prompts
        with self.model.together():
            limits = _limits(prompts, max_new_tokens, samples)
            budgets = _budgets(prompts, budget)
            draws = _draws(prompts, samples, seeds)
            _check_ids(prompts, self.config.model.vocab_size)
        if not prompts and not self.layout.data_ranks_share_experts:
            return []
        version = self.model.weights_version
        asked = zip(prompts, limits, budgets, strict=True)
        of_rows = [each for each in asked for _ in range(samples)]
        rows = [
            GeneratedRow(index, limit, Completion(weights_version=version), _thinking(own, prompt))
            for index, (prompt, limit, own) in enumerate(of_rows)
        ]
        completions = [row.completion for row in rows]
        with self.model.groups.current():
            room = max(limits, default=0)
            batch = _Batch(self, prompts, sampling, first_row, room, samples, draws)
            while self._any_rank(not all(row.is_done for row in rows)):
                on_pass()
                rows = batch.without_done(rows)
                logits_BV = batch.of_all_samples(self._forward(batch))
                forced = [row.forced() for row in rows] or [None]
                for row, *chosen in zip(rows, *batch.choose(logits_BV, forced), strict=False):
                    row.take(*chosen, stop_ids, on_token)
        return completions

    def _forward(self, batch: "_Batch") -> Tensor | None:
        """Float32 logits [B, V] of each row's next token, on the ranks of the last stage."""
        tokens_BS, time = batch.next_BS, batch.timeline
        time.begin(tokens_BS.shape[1])
        sequences = time.sequences(batch.caches, batch.products)
        output = None
        for chunk in self.chunks:
            if not chunk.pre_process:
                chunk.set_input_tensor(self._receive(tokens_BS))
            output = chunk(tokens_BS, sequences)
            chunk.set_input_tensor(None)  # otherwise it would keep them until the next pass
            if not chunk.post_process:
                dist.send(output, group_dst=self._neighbour(1), group=self.pipeline)
        if not self.is_last_stage:
            return None
        assert isinstance(output, Logits)
        return self._whole_logits(output.of_places(time.last_B(), batch.products))

    def _receive(self, tokens_BS: Tensor) -> Tensor:
        """Receive the hidden states of the previous stage, [S, B, H]."""
        B, S = tokens_BS.shape
        shape = (S, B, self.config.model.hidden_size)
        hidden_SBH = torch.empty(shape, dtype=self.dtype, device=self.device)
        dist.recv(hidden_SBH, group_src=self._neighbour(-1), group=self.pipeline)
        return hidden_SBH

    def _neighbour(self, direction: int) -> int:
        """Stage c · pipeline + r is chunk c of rank r: the last rank's neighbour is the first."""
        return (self.pipeline.rank() + direction) % self.layout.pipeline

    def _whole_logits(self, logits_Bv: Tensor) -> Tensor:
        if self.layout.tensor == 1:
            return logits_Bv.float()
        gathered = logits_Bv.new_empty((self.layout.tensor, *logits_Bv.shape))
        dist.all_gather_into_tensor(gathered.view(-1), logits_Bv.reshape(-1), group=self.tensor)
        return gathered.transpose(0, 1).flatten(1).float()

    def tell(self, chosen_3B: Tensor) -> Tensor:
        """Send the choosing rank's `chosen_3B` to all ranks that hold parts of the same model."""
        if self.layout.tensor * self.layout.pipeline > 1:
            # First to the last stage's tensor ranks, then from each of them along its own pipeline.
            if self.is_last_stage and self.layout.tensor > 1:
                dist.broadcast(chosen_3B, group_src=0, group=self.tensor)
            if self.layout.pipeline > 1:
                last = self.layout.pipeline - 1
                dist.broadcast(chosen_3B, group_src=last, group=self.pipeline)
        return chosen_3B

    def _any_rank(self, mine: bool) -> bool:
        """Whether `mine` is true on any of the data ranks that have to keep step."""
        if not self.layout.data_ranks_share_experts:
            return mine
        flag = torch.tensor([int(mine)], device=self.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self.model.groups.ranks.dp)
        return bool(flag.item())


class _Batch:
    """The tensors of the rows that are still in the batch."""

    def __init__(
        self,
        generator: Generator,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        first_row: int,
        room: int,
        samples: int,
        draws: Sequence[tuple[int, int]] | None,
    ) -> None:
        """`room`: tokens expected after a prompt; `draws`: a seed and a number for each row."""
        prompts = prompts or [[0]]  # a rank without prompts keeps step with a dummy one
        self.generator, self.samples = generator, samples
        self.sampling, device = sampling, generator.device
        lengths_B = [len(prompt) for prompt in prompts]
        padded = [[*prompt, *[0] * (max(lengths_B) - len(prompt))] for prompt in prompts]
        self.next_BS = torch.tensor(padded, device=device)
        dual = generator.chunks[0].dual_chunk
        self.timeline = Timeline(lengths_B, room, device, generator.dtype, dual)
        layers = [layer for chunk in generator.chunks for layer in chunk.decoder.layers]
        self.caches = {layer.layer_number: KVCache(self.timeline) for layer in layers}
        self.products = Products()
        self.sampler: Sampler | None = None
        if generator.chooses:
            rows = [prompt for prompt in prompts for _ in range(samples)]
            vocabulary = generator.config.model.vocab_size
            self.sampler = Sampler(sampling, rows, first_row, vocabulary, device, draws or None)

    def of_all_samples(self, logits_BV: Tensor | None) -> Tensor | None:
        """After the prompts: repeat each one's caches and logits for every sample."""
        if self.samples == 1 or not self.timeline.is_at_prompts:
            return logits_BV
        prompts = torch.arange(len(self.next_BS), device=self.next_BS.device)
        of_rows = prompts.repeat_interleave(self.samples)
        self._pick(of_rows)
        return None if logits_BV is None else logits_BV[of_rows]

    def choose(
        self, logits_BV: Tensor | None, forced: Sequence[int | None]
    ) -> tuple[list[int], list[float], list[float]]:
        """The next token of each row, log p of it, and log p at the sampling temperature."""
        B = self.timeline.padding_B.shape[0]
        chosen_3B = torch.empty(3, B, dtype=torch.float64, device=self.generator.device)
        if self.sampler and logits_BV is not None:
            tokens_B = self.sampler.choose(logits_BV)
            for place, token in enumerate(forced):
                if token is not None:
                    tokens_B[place] = token
            self.sampler.remember(tokens_B)
            log_p_2B = log_probs(logits_BV, tokens_B, self.sampling.temperature)
            chosen_3B = torch.stack([tokens_B.double(), *log_p_2B.double()])
        chosen_3B = self.generator.tell(chosen_3B)
        self.next_BS = chosen_3B[0].long()[:, None]
        tokens, log_p, sampled_log_p = chosen_3B.tolist()
        return [int(token) for token in tokens], log_p, sampled_log_p

    def without_done(self, rows: list[GeneratedRow]) -> list[GeneratedRow]:
        """Drop the rows that are done once they are half of the batch."""
        left = [place for place, row in enumerate(rows) if not row.is_done]
        if self.timeline.is_at_start or not left or 2 * len(left) > len(rows):
            return rows
        places = torch.tensor(left, device=self.next_BS.device)
        self._pick(places)
        self.next_BS = self.next_BS[places]
        if self.sampler:
            self.sampler.keep(places)
        return [rows[place] for place in left]

    def _pick(self, places_B: Tensor) -> None:
        """Keep the rows at these places, each as often as it is listed."""
        for cache in self.caches.values():
            cache.pick(places_B)
        self.timeline.pick(places_B)


def _limits(
    prompts: Sequence[Sequence[int]], max_new_tokens: int | Sequence[int], samples: int
) -> list[int]:
    """The limit of each prompt's new tokens. ValueError where an argument is out of range."""
    if not all(prompts):
        raise ValueError("a prompt needs at least one token")
    if samples < 1:
        raise ValueError(f"samples = {samples}; valid: at least 1")
    is_one = isinstance(max_new_tokens, int)
    limits = [max_new_tokens] * len(prompts) if is_one else list(max_new_tokens)
    if len(limits) != len(prompts):
        raise ValueError(
            f"max_new_tokens has {len(limits)} limits for {len(prompts)} prompts; valid: one for "
            "each, or a number for all"
        )
    if any(limit < 0 for limit in limits):
        raise ValueError(f"max_new_tokens = {max_new_tokens}; valid: at least 0")
    return limits


def _budgets(
    prompts: Sequence[Sequence[int]],
    budget: ThinkingBudget | None | Sequence[ThinkingBudget | None],
) -> list[ThinkingBudget | None]:
    """Each prompt's thinking budget. ValueError where their number differs."""
    if budget is None or isinstance(budget, ThinkingBudget):
        return [budget] * len(prompts)
    if len(budget) != len(prompts):
        raise ValueError(f"{len(budget)} budgets for {len(prompts)} prompts; valid: one for each")
    return list(budget)


def _check_ids(prompts: Sequence[Sequence[int]], vocabulary: int) -> None:
    for place, prompt in enumerate(prompts):
        for token in (min(prompt), max(prompt)):
            if not 0 <= token < vocabulary:
                raise ValueError(
                    f"prompt {place} has token {token:,}, which is no id of a vocabulary of "
                    f"{vocabulary:,}"
                )


def _draws(
    prompts: Sequence[Sequence[int]], samples: int, seeds: Sequence[int] | None
) -> list[tuple[int, int]] | None:
    """Seed and number of each row; None where all share one seed."""
    if seeds is None:
        return None
    if len(seeds) != len(prompts):
        raise ValueError(f"{len(seeds)} seeds for {len(prompts)} prompts; valid: one for each")
    return [(seed, number) for seed in seeds for number in range(samples)]


def _thinking(budget: ThinkingBudget | None, prompt: Sequence[int]) -> Thinking | None:
    return Thinking(budget, prompt) if budget else None
