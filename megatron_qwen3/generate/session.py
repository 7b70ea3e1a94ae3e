"""A loaded model at the terminal: streams one answer, or completes many prompts.

    session = Session(generator, tokenizer, encoder, budget, stop_ids, options)
    session.file(requests, Path("answers.jsonl"))

All ranks run the same session; the first one reads, writes and prints.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers
import torch.distributed as dist

from megatron_qwen3.bar import Bar
from megatron_qwen3.chat import split_thinking
from megatron_qwen3.generate.completion import Completion, OnToken
from megatron_qwen3.generate.engine import Generator
from megatron_qwen3.generate.requests import RESULT, Encoder, PromptRequest, batches
from megatron_qwen3.generate.stream import TextStream
from megatron_qwen3.generate.thinking import ThinkingBudget
from megatron_qwen3.json_lines import lines_to
from megatron_qwen3.shown import shown, shown_text


class Session:
    """One model, one tokenizer, and the options of the command line."""

    def __init__(
        self,
        generator: Generator,
        tokenizer: tokenizers.Tokenizer,
        encoder: Encoder,
        budget: ThinkingBudget | None,
        stop_ids: Sequence[int],
        options: argparse.Namespace,
        reach: int = 0,
    ) -> None:
        """reach: length up to which the model reads as trained; 0: any length."""
        self.generator, self.tokenizer, self.encoder = generator, tokenizer, encoder
        self.budget, self.stop_ids, self.options = budget, stop_ids, options
        self.is_first = dist.get_rank() == 0
        self._reach = reach

    def prompts(self, requests: Sequence[PromptRequest]) -> None:
        """Continue texts: one is streamed, several are completed together."""
        if len(requests) == 1:
            self.stream(requests[0], self.budget)
            return
        for request, completion in zip(
            requests, self._complete(requests, 0, self.budget), strict=True
        ):
            self._print(f"=== {request.line['prompt']}\n{self._text(completion)}\n")

    def file(self, requests: Sequence[PromptRequest], out: Path | None) -> None:
        """Write each line of a file again, with its completion under RESULT."""
        size = self.options.batch * self.generator.layout.data
        bar = Bar("prompts", len(requests), is_shown=self.is_first)
        with lines_to(out, self.is_first) as write, bar:
            done = 0
            for batch in batches(requests, size):
                completions = self._complete(batch, done, self.budget)
                for request, completion in zip(batch, completions, strict=True):
                    write(request.line | {RESULT: self._record(completion)})
                done += len(batch)
                bar.advance(len(batch))

    def _complete(
        self,
        requests: Sequence[PromptRequest],
        first_row: int,
        budget: ThinkingBudget | None,
        on_token: OnToken | None = None,
    ) -> list[Completion]:
        """Completions of requests of equal sampling; data ranks share the work, all get the
        result."""
        share = -(-len(requests) // self.generator.layout.data)
        start = self.generator.model.data_rank * share
        mine = self.generator.generate(
            [request.prompt for request in requests[start : start + share]],
            requests[0].sampling,
            self.options.max_new_tokens,
            self.stop_ids,
            budget,
            on_token,
            first_row + start,
        )
        gathered: list[Any] = [None] * self.generator.layout.data
        dist.all_gather_object(gathered, mine, group=self.generator.model.groups.ranks.dp)
        found = [completion for completions in gathered for completion in completions]
        self._note_reach(requests, found)
        return found

    def _note_reach(self, requests: Sequence[PromptRequest], found: Sequence[Completion]) -> None:
        """Note once that a text is longer than the model was trained for."""
        pairs = zip(requests, found, strict=True)
        longest = max(len(request.prompt) + len(one.tokens) for request, one in pairs)
        if not self._reach or longest <= self._reach:
            return
        if self.is_first:
            note = (
                f"note: a text of {longest:,} tokens, and the model reads {self._reach:,} as it "
                "was trained; rope.yarn_factor and rope.yarn_original_length, or "
                "rope.dca_chunk_size and rope.dca_local_size, reach further"
            )
            print(shown(note), file=sys.stderr)
        self._reach = 0

    def stream(self, request: PromptRequest, budget: ThinkingBudget | None) -> str:
        """Print one answer while it is generated; returns its text. budget: of thinking."""
        stream, began = TextStream(self.tokenizer), time.perf_counter()

        def show(row: int, token: int, inserted: bool) -> None:
            self._print(stream.add(token))

        (completion,) = self._complete([request], 0, budget, show)
        self._print(stream.end() + "\n")
        if self.is_first:
            count, seconds = len(completion.tokens), time.perf_counter() - began
            speed = f"{count} tokens, {count / seconds:.1f} tokens/s"
            print(shown(f"[{speed}, {completion.finish_reason}]"), file=sys.stderr)
        return self._text(completion)

    def _record(self, completion: Completion) -> dict[str, Any]:
        text = self._text(completion)
        thinking, answer = split_thinking(text)
        return {
            "text": text,
            "thinking": thinking,
            "answer": answer,
            "finish_reason": completion.finish_reason,
            "tokens": completion.tokens,
            "log_probs": [round(log_prob, 6) for log_prob in completion.log_probs],
            "inserted": [k for k, inserted in enumerate(completion.inserted) if inserted],
        }

    def _text(self, completion: Completion) -> str:
        return str(self.tokenizer.decode(completion.tokens, skip_special_tokens=True))

    def _print(self, text: str) -> None:
        """Print text with its own lines and tabs; control characters are escaped."""
        if self.is_first:
            print(shown_text(text), end="", flush=True)
