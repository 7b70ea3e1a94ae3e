"""A model of ours as a generator; a prompt is read once for all its samples.

    with OwnGenerator(Path("runs/post_2_reasoning"), Local(rows=64)) as generator: ...

The first rank sends requests and gets the answers. The other ranks `follow`: they do their share of
each task, in any layout. An answer depends on its request's seed, not on the other requests of its
batch. torch is imported on entering.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from megatron_qwen3 import launcher
from megatron_qwen3.chat import ChatTokenizer, thinks
from megatron_qwen3.chat_check import ChatError
from megatron_qwen3.generate.load import load, stop_ids, tokenizer_of
from megatron_qwen3.generate.opening import checked, close, joined
from megatron_qwen3.generate.sampling import NOT_THINKING, THINKING, Sampling
from megatron_qwen3.generate.thinking import ThinkingBudget
from megatron_qwen3.posttrain.generators.answers import Answer, Request, failed, said
from megatron_qwen3.posttrain.generators.settings import Local

if TYPE_CHECKING:
    from megatron_qwen3.generate.completion import Completion

_OF_A_MODEL = ("*.safetensors", "*.distcp", ".metadata", "*config.*", "tokenizer*", "*.jinja")
_BATCHES_READ = 8  # at a time, so that neighbours of a batch are about equally long


@dataclass(frozen=True)
class _Task:
    """One task of all ranks: a pass over prompts with the same sampling settings."""

    prompts: Sequence[Sequence[int]]
    limits: Sequence[int]
    seeds: Sequence[int]
    sampling: Sampling
    samples: int
    budget: int | None


class OwnGenerator:
    """A generator; ConfigError where the folder has no model, or the layout does not fit."""

    def __init__(self, path: Path, local: Local) -> None:
        # Followers wait for as long as the first rank is busy with other things.
        self._source, self._config = checked(path, ["guard.hang_seconds=0", *local.local])
        self.notes: list[str] = []
        self.leads, self._rows = launcher.rank() == 0, local.rows
        self._is_under_way = False  # all ranks work on a task
        self.label = label_of(self._source.path)  # for a run, that of its checkpoint
        self._tokenizer = tokenizer_of(self._config)
        self._chat = ChatTokenizer(self._tokenizer)
        self._ends = stop_ids(self._source, self._config, self._tokenizer)

    def __enter__(self) -> Self:
        layout = joined(self._config)
        from megatron_qwen3.generate.engine import Generator

        self._generator = Generator(load(self._source, self._config, layout))
        return self

    def __exit__(self, *_: object) -> None:
        if self.leads and not self._is_under_way:
            self._tell(None)  # the others wait between tasks, so they hear it
        close()

    def answers(self, requests: Iterable[Request]) -> Iterator[tuple[int, list[Answer]]]:
        """(number, answers), batch by batch; requests of the next batches are read ahead."""
        numbered = enumerate(requests)
        while part := list(islice(numbered, _BATCHES_READ * self._rows)):
            encoded: list[tuple[int, Request, list[int]]] = []
            for number, request in part:
                try:
                    encoded.append((number, request, self._encoded(request)))
                except ChatError as error:
                    yield number, failed(request, str(error), is_refused=True)
            for batch in self._batches(encoded):
                yield from self._answered(batch)

    def follow(self) -> None:
        """Do this rank's share of each task, until the first rank leaves."""
        while (task := self._tell(None)) is not None:
            self._complete(task)

    def _encoded(self, request: Request) -> list[int]:
        return self._chat.encode_prompt(
            request.messages, request.tools, enable_thinking=request.enable_thinking
        )

    def _batches(
        self, encoded: list[tuple[int, Request, list[int]]]
    ) -> Iterator[list[tuple[int, Request, list[int]]]]:
        """Groups of requests that one pass can answer, of similar length."""
        encoded.sort(key=lambda row: (repr(_alike(row[1])), len(row[2]), row[0]))
        for _, group in groupby(encoded, key=lambda row: _alike(row[1])):
            alike = list(group)
            size = max(1, self._rows // alike[0][1].samples)
            for start in range(0, len(alike), size):
                yield alike[start : start + size]

    def _answered(
        self, batch: list[tuple[int, Request, list[int]]]
    ) -> Iterator[tuple[int, list[Answer]]]:
        sampling, samples, budget = _alike(batch[0][1])
        task = _Task(
            [prompt for _, _, prompt in batch],
            [request.max_tokens for _, request, _ in batch],
            [request.seed for _, request, _ in batch],
            sampling,
            samples,
            budget,
        )
        self._is_under_way = True
        self._tell(task)
        completions = self._complete(task)
        self._is_under_way = False
        answers = [self._answer(completion) for completion in completions]
        for place, (number, _, _) in enumerate(batch):
            yield number, answers[place * samples : (place + 1) * samples]

    def _tell(self, task: _Task | None) -> _Task | None:
        """The first rank's task, on every rank."""
        import torch.distributed as dist

        told: list[Any] = [task]
        if launcher.world_size() > 1:
            dist.broadcast_object_list(told, src=0)
        found: _Task | None = told[0]
        return found

    def _complete(self, task: _Task) -> list[Completion]:
        """The completions of all prompts, on every rank; data ranks share the prompts."""
        import torch.distributed as dist

        generator, budget = self._generator, None
        share = -(-len(task.prompts) // generator.layout.data)
        start = generator.model.data_rank * share
        mine = slice(start, start + share)
        if task.budget is not None:
            budget = ThinkingBudget.of(self._tokenizer, task.budget)
        made = generator.generate(
            task.prompts[mine],
            task.sampling,
            task.limits[mine],
            self._ends,
            budget,
            samples=task.samples,
            seeds=task.seeds[mine],
        )
        gathered: list[Any] = [None] * generator.layout.data
        dist.all_gather_object(gathered, made, group=generator.model.groups.ranks.dp)
        return [completion for completions in gathered for completion in completions]

    def _answer(self, completion: Completion) -> Answer:
        """The text without the token that ended it; other control tokens stay in it as text."""
        tokens = completion.tokens
        is_whole = completion.finish_reason == "stop"
        text = self._tokenizer.decode(
            tokens[:-1] if is_whole else tokens, skip_special_tokens=False
        )
        return Answer(text, "stop" if is_whole else "length", tuple(tokens))


def _alike(request: Request) -> tuple[Sampling, int, int | None]:
    """The settings that requests of one pass share: sampling without seed, samples, budget."""
    thinking = thinks(request.messages, request.enable_thinking)
    sampling = replace(THINKING if thinking else NOT_THINKING, **said(request, None))
    return sampling, request.samples, request.thinking_budget


def label_of(folder: Path) -> str:
    """A model's folder, and a digest that tells it from another model of the same name.

    The digest is of each file's name, size and time, and of config.json: weights are too large.
    """
    digest = hashlib.sha256()
    for path in sorted({path for form in _OF_A_MODEL for path in folder.glob(form)}):
        status = path.stat()
        digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    if (config := folder / "config.json").is_file():
        digest.update(config.read_bytes())
    return f"{folder} ({digest.hexdigest()[:8]})"
