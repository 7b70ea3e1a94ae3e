"""Generation on the weights in training, in any layout: `Generator(model)`.

    generator = Generator(engine.model)
    completions = generator.generate(prompts, Sampling(temperature=0.6), 256, stop_ids=[151645])

All ranks call `generate`; those of one data rank with the same prompts, those of different data
ranks with their own, as many as they have. Hidden states go from pipeline stage to stage, one
tensor rank of the last stage chooses the tokens and tells the others: what a rank holds of a
completion is the same on all. Where experts are spread over data ranks, all run equally many
passes: who is done goes on until all are.

Legend: B rows, S places of a pass, H hidden, V vocabulary, v = V/tp.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_qwen3.generate.cache import KVCache, Timeline
from megatron_qwen3.generate.sampler import Sampler, log_probs
from megatron_qwen3.generate.sampling import Sampling
from megatron_qwen3.generate.thinking import Thinking, ThinkingBudget
from megatron_qwen3.model.build import view
from megatron_qwen3.model.linear import Products
from megatron_qwen3.model.logits import Logits
from megatron_qwen3.model.sequences import Sequences
from megatron_qwen3.training.model import Model

OnToken = Callable[[int, int, bool], None]  # row, token, whether it was inserted


@dataclass
class Completion:
    """What came after one prompt, token by token, the stop token included.

    log_probs: log p(token) under the model alone, before temperature and penalties.
    inserted: True where a thinking budget put the token; such tokens are not to be trained.
    finish_reason: "stop" after a stop token, "length" after max_new_tokens.
    """

    tokens: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    inserted: list[bool] = field(default_factory=list)
    finish_reason: str = ""


class Generator:
    """Generates with a model, between training steps or without any."""

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
        self.data_ranks_share_experts = layout.expert * layout.expert_tensor > layout.tensor

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        max_new_tokens: int,
        stop_ids: Sequence[int] = (),
        budget: ThinkingBudget | None = None,
        on_token: OnToken | None = None,
        first_row: int = 0,
    ) -> list[Completion]:
        """A completion for each prompt.

        Prompts are ids, one at least in each; where data ranks share experts a rank may have no
        prompt. Row i draws from the random sequence of (sampling.seed, first_row + i), whatever
        else is in the batch. `on_token` is called on every rank as tokens come. `max_new_tokens`
        is the same on all ranks.
        """
        if not all(prompts):
            raise ValueError("a prompt needs at least one token")
        if not prompts and not self.data_ranks_share_experts:
            return []
        self.model.synchronize()
        batch = _Batch(self, prompts, sampling, first_row, max_new_tokens)
        completions = [Completion() for _ in prompts]
        rows = [
            _Row(index, completion, Thinking(budget, prompt) if budget else None)
            for index, (completion, prompt) in enumerate(zip(completions, prompts, strict=True))
        ]
        tokens_BS = batch.prompts_BS
        with self.model.groups.current():
            for count in range(1, max_new_tokens + 1):
                logits_BV = self._forward(tokens_BS, batch)
                forced = [row.forced() for row in rows] or [None]
                tokens_B, chosen = batch.choose(logits_BV, forced)
                for row, token, log_prob in zip(rows, *chosen, strict=False):
                    row.take(token, log_prob, stop_ids, count == max_new_tokens, on_token)
                if not self._any_rank(not all(row.is_done for row in rows)):
                    break
                rows, tokens_B = batch.without_done(rows, tokens_B)
                tokens_BS = tokens_B[:, None]
        return completions

    def _forward(self, tokens_BS: Tensor, batch: "_Batch") -> Tensor | None:
        """Float32 logits [B, V] after the last place, on the ranks of the last stage."""
        batch.timeline.begin(tokens_BS.shape[1])
        sequences = Sequences(
            positions_BS=batch.timeline.positions_BS(),
            caches=batch.caches,
            products=batch.products,
        )
        output = None
        for chunk in self.chunks:
            if not chunk.pre_process:
                chunk.set_input_tensor(self._receive(tokens_BS))
            output = chunk(tokens_BS, sequences)
            chunk.set_input_tensor(None)  # or it would keep them until the next pass
            if not chunk.post_process:
                dist.send(output, group_dst=self._neighbour(1), group=self.pipeline)
        if not self.is_last_stage:
            return None
        assert isinstance(output, Logits)
        return self._whole_logits(output.of_last_position(batch.products))

    def _receive(self, tokens_BS: Tensor) -> Tensor:
        """The hidden states of the stage before, [S, B, H]."""
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

    def tell(self, chosen_2B: Tensor) -> Tensor:
        """The choosing rank's `chosen_2B` on all ranks that hold parts of the same model."""
        if self.layout.tensor * self.layout.pipeline > 1:
            # First along the last stage's tensor ranks, then each of them down its own pipeline.
            if self.is_last_stage and self.layout.tensor > 1:
                dist.broadcast(chosen_2B, group_src=0, group=self.tensor)
            if self.layout.pipeline > 1:
                last = self.layout.pipeline - 1
                dist.broadcast(chosen_2B, group_src=last, group=self.pipeline)
        return chosen_2B

    def _any_rank(self, mine: bool) -> bool:
        """Whether it is so on one of the data ranks that have to keep step."""
        if not self.data_ranks_share_experts:
            return mine
        flag = torch.tensor([int(mine)], device=self.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self.model.groups.ranks.dp)
        return bool(flag.item())


@dataclass
class _Row:
    """One prompt's generation while it lasts."""

    index: int
    completion: Completion
    thinking: Thinking | None

    @property
    def is_done(self) -> bool:
        return bool(self.completion.finish_reason)

    def forced(self) -> int | None:
        return self.thinking.forced() if self.thinking else None

    def take(
        self,
        token: int,
        log_prob: float,
        stop_ids: Sequence[int],
        is_last: bool,
        on_token: OnToken | None,
    ) -> None:
        """Add the token that was chosen or forced; a row that is done ignores it."""
        if self.is_done:
            return
        inserted = self.forced() is not None
        self.completion.tokens.append(token)
        self.completion.log_probs.append(log_prob)
        self.completion.inserted.append(inserted)
        if self.thinking:
            self.thinking.saw(token)
        if token in stop_ids and not inserted:
            self.completion.finish_reason = "stop"
        elif is_last:
            self.completion.finish_reason = "length"
        if on_token:
            on_token(self.index, token, inserted)


class _Batch:
    """The tensors of the rows that are still in the batch."""

    def __init__(
        self,
        generator: Generator,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        first_row: int,
        max_new_tokens: int,
    ) -> None:
        prompts = prompts or [[0]]  # a rank without prompts keeps step with one of no use
        self.generator = generator
        device, vocabulary = generator.device, generator.config.model.vocab_size
        lengths_B = [len(prompt) for prompt in prompts]
        self.prompts_BS = torch.tensor(
            [[0] * (max(lengths_B) - len(prompt)) + list(prompt) for prompt in prompts],
            device=device,
        )
        self.timeline = Timeline(lengths_B, max_new_tokens, device, generator.dtype)
        layers = [layer for model in generator.chunks for layer in model.decoder.layers]
        self.caches = {layer.layer_number: KVCache(self.timeline) for layer in layers}
        self.products = Products()
        self.sampler: Sampler | None = None
        if generator.chooses:
            self.sampler = Sampler(sampling, prompts, first_row, vocabulary, device)

    def choose(
        self, logits_BV: Tensor | None, forced: Sequence[int | None]
    ) -> tuple[Tensor, tuple[list[int], list[float]]]:
        """The next token of each row, as a tensor, and as numbers with its log-probability."""
        B = self.timeline.padding_B.shape[0]
        chosen_2B = torch.empty(2, B, dtype=torch.float64, device=self.generator.device)
        if self.sampler and logits_BV is not None:
            tokens_B = self.sampler.choose(logits_BV)
            for place, token in enumerate(forced):
                if token is not None:
                    tokens_B[place] = token
            self.sampler.remember(tokens_B)
            chosen_2B = torch.stack([tokens_B.double(), log_probs(logits_BV, tokens_B).double()])
        chosen_2B = self.generator.tell(chosen_2B)
        token_numbers, log_prob_numbers = chosen_2B.tolist()
        return chosen_2B[0].long(), ([int(token) for token in token_numbers], log_prob_numbers)

    def without_done(self, rows: list[_Row], tokens_B: Tensor) -> tuple[list[_Row], Tensor]:
        """Drop the rows that are done once they are half of the batch."""
        left = [place for place, row in enumerate(rows) if not row.is_done]
        if not left or 2 * len(left) > len(rows):
            return rows, tokens_B
        places = torch.tensor(left, device=tokens_B.device)
        for cache in self.caches.values():
            cache.keep(places)
        self.timeline.keep(places)
        if self.sampler:
            self.sampler.keep(places)
        return [rows[place] for place in left], tokens_B[places]
