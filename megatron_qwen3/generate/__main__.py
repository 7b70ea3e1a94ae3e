"""Generate: python -m megatron_qwen3.generate CHECKPOINT_OR_HF_FOLDER [--prompt … | --chat … | …]

Loads the weights in any layout, one rank by default, and writes text to the terminal as it comes,
or JSON lines. Everything that can be checked is checked before torch is imported.
"""

import argparse
import dataclasses
import json
import os
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_qwen3.chat import ChatError, ChatTokenizer, split_thinking, thinks
from megatron_qwen3.config import ConfigError, check_world_size
from megatron_qwen3.generate.load import Source, load, tokenizer_of
from megatron_qwen3.generate.stream import TextStream

EXAMPLES = """\
examples:
  # go on with a text
  python -m megatron_qwen3.generate runs/quickstart --prompt "Once upon a time" --seed 7

  # one question; without a text, a conversation at the terminal
  python -m megatron_qwen3.generate Qwen3-0.6B --chat "What is 17 * 23?" --thinking-budget 512
  python -m megatron_qwen3.generate Qwen3-0.6B --chat --no-think

  # a file of {"prompt": …} or {"messages": […]} lines, on eight ranks
  torchrun --nproc-per-node 8 -m megatron_qwen3.generate runs/sft --file prompts.jsonl \\
      --out answers.jsonl parallel.tensor=2 parallel.expert=4

Sampling, where it is not given: in chat Qwen3's own (thinking: temperature 0.6, top-p 0.95,
top-k 20; without: 0.7, 0.8, 20 and presence penalty 1.5), else temperature 1 and nothing cut.
"""
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty")
_ENDS = ("<|im_end|>", "<|endoftext|>")


def main(arguments: list[str] | None = None) -> int:
    """The exit status: 0 done, 2 something that was given is wrong."""
    given = _parser().parse_intermixed_args(arguments)
    try:
        run(given)
    except (ConfigError, ChatError) as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run(given: argparse.Namespace) -> None:
    """Load and generate, on this rank."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    source = Source(given.source)
    config = source.config(given.settings, world_size)
    check_world_size(config, world_size)
    tokenizer = tokenizer_of(config)
    lines = _read_lines(given.file) if given.file else []
    if config.run.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    warnings.filterwarnings("ignore", module=r"torch|megatron")
    from megatron_qwen3.generate.engine import Generator
    from megatron_qwen3.parallel import runtime

    layout = runtime.start(config)
    generator = Generator(load(source, config, layout), config, layout)
    session = Session(generator, tokenizer, given)
    if given.file:
        session.file(lines, given.out)
    elif given.chat is not None:
        session.chat(given.chat)
    else:
        session.prompts(given.prompt)
    runtime.stop()


class Session:
    """One model, one tokenizer, and the options of the command line."""

    def __init__(self, generator: Any, tokenizer: Any, given: argparse.Namespace) -> None:
        import torch.distributed as dist
        from megatron.core import parallel_state

        from megatron_qwen3.generate.thinking import ThinkingBudget

        self.generator, self.tokenizer, self.given = generator, tokenizer, given
        self.is_first = dist.get_rank() == 0
        self.data_rank = parallel_state.get_data_parallel_rank()
        self.data_group = parallel_state.get_data_parallel_group()
        ids = [tokenizer.token_to_id(token) for token in _ENDS]
        self.stop_ids = [index for index in ids if index is not None]
        self.budget = None
        if given.thinking_budget is not None:
            self.budget = ThinkingBudget.of(tokenizer, given.thinking_budget)

    def prompts(self, texts: list[str]) -> None:
        """Go on with texts: one while it comes, several one after the other."""
        rows = [self._encode({"prompt": text}) for text in texts]
        if len(rows) == 1:
            self._stream(*rows[0])
            return
        completions = self._complete([ids for ids, _ in rows], rows[0][1], 0)
        for text, completion in zip(texts, completions, strict=True):
            self._print(f"=== {text}\n{self._text(completion)}\n")

    def chat(self, question: str) -> None:
        """Answer one question, or where it is empty one after the other from standard input."""
        messages: list[dict[str, Any]] = []
        if self.given.system:
            messages.append({"role": "system", "content": self.given.system})
        for text in [question] if question else self._questions():
            messages.append({"role": "user", "content": text})
            answer = self._stream(*self._encode({"messages": messages}))
            messages.append({"role": "assistant", "content": answer})

    def file(self, lines: list[dict[str, Any]], out: Path | None) -> None:
        """Each line again, with what was generated beside what was given."""
        rows = [self._encode(line) for line in lines]
        size = self.given.batch * self.generator.layout.data
        # Only this rank writes; the others generate.
        target = out.open("w", encoding="utf-8") if out and self.is_first else sys.stdout
        for start, end in _batches([sampling for _, sampling in rows], size):
            prompts = [ids for ids, _ in rows[start:end]]
            completions = self._complete(prompts, rows[start][1], start)
            if self.is_first:
                for line, completion in zip(lines[start:end], completions, strict=True):
                    record = line | self._record(completion)
                    print(json.dumps(record, ensure_ascii=False), file=target, flush=True)
        if target is not sys.stdout:
            target.close()

    def _encode(self, line: dict[str, Any]) -> tuple[list[int], Any]:
        """Ids of a prompt or a conversation, and how to sample after it."""
        if "messages" not in line:
            ids = self.tokenizer.encode(line["prompt"], add_special_tokens=False).ids
            if not ids:
                raise ConfigError("a prompt is empty; it needs at least one character")
            return ids, self._sampling(None)
        ids = ChatTokenizer(self.tokenizer).encode_prompt(
            line["messages"], line.get("tools"), enable_thinking=not self.given.no_think
        )
        return ids, self._sampling(line["messages"])

    def _sampling(self, messages: list[dict[str, Any]] | None) -> Any:
        """Qwen3's own for what is asked, and above it what the command line says."""
        from megatron_qwen3.generate.sampler import NOT_THINKING, THINKING, Sampling

        base = Sampling()
        if messages is not None:
            base = THINKING if thinks(messages, not self.given.no_think) else NOT_THINKING
        options = {name: getattr(self.given, name) for name in _SAMPLING}
        said = {name: value for name, value in options.items() if value is not None}
        return dataclasses.replace(base, seed=self.given.seed, **said)

    def _complete(
        self, prompts: list[list[int]], sampling: Any, first_row: int, on_token: Any = None
    ) -> list[Any]:
        """Completions of all prompts, shared between the data ranks, on every rank."""
        import torch.distributed as dist

        share = -(-len(prompts) // self.generator.layout.data)
        start = self.data_rank * share
        mine = self.generator.generate(
            prompts[start : start + share],
            sampling,
            self.given.max_new_tokens,
            self.stop_ids,
            self.budget,
            on_token,
            first_row + start,
        )
        gathered: list[Any] = [None] * self.generator.layout.data
        dist.all_gather_object(gathered, mine, group=self.data_group)
        return [completion for completions in gathered for completion in completions]

    def _stream(self, prompt: list[int], sampling: Any) -> str:
        """Print one answer while it comes; its text."""
        stream, began = TextStream(self.tokenizer), time.perf_counter()

        def show(row: int, token: int, inserted: bool) -> None:
            self._print(stream.add(token))

        (completion,) = self._complete([prompt], sampling, 0, show)
        self._print(stream.end() + "\n")
        seconds = time.perf_counter() - began
        if self.is_first:
            count = len(completion.tokens)
            print(
                f"[{count} tokens, {count / seconds:.1f} tokens/s, {completion.finish_reason}]",
                file=sys.stderr,
            )
        return self._text(completion)

    def _record(self, completion: Any) -> dict[str, Any]:
        text = self._text(completion)
        thinking, answer = split_thinking(text)
        return {
            "completion": text,
            "thinking": thinking,
            "answer": answer,
            "finish_reason": completion.finish_reason,
            "tokens": completion.tokens,
            "log_probs": [round(log_prob, 6) for log_prob in completion.log_probs],
            "inserted": [k for k, inserted in enumerate(completion.inserted) if inserted],
        }

    def _text(self, completion: Any) -> str:
        return str(self.tokenizer.decode(completion.tokens, skip_special_tokens=True))

    def _questions(self) -> Iterator[str]:
        """Lines of the first rank's standard input, on every rank, until it ends."""
        import torch.distributed as dist

        while True:
            self._print("> " if sys.stdin.isatty() else "")
            line = [sys.stdin.readline() if self.is_first else ""]
            dist.broadcast_object_list(line, src=0)
            if not line[0]:
                return
            if line[0].strip():
                yield line[0].strip()

    def _print(self, text: str) -> None:
        if self.is_first:
            print(text, end="", flush=True)


def _batches(samplings: list[Any], size: int) -> Iterator[tuple[int, int]]:
    """Ranges of at most `size` neighbours that are sampled alike."""
    start = 0
    for place in range(1, len(samplings) + 1):
        is_end = place == len(samplings) or samplings[place] != samplings[start]
        if is_end or place - start == size:
            yield start, place
            start = place


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file. ConfigError names the line that is none with a prompt."""
    try:
        texts = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--file {path}: cannot be read ({error})") from None
    lines = []
    for number, text in enumerate(texts, start=1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"{path}, line {number}: not JSON ({error})") from None
        has_prompt = isinstance(line, dict) and isinstance(line.get("prompt"), str)
        if not has_prompt and not (
            isinstance(line, dict) and isinstance(line.get("messages"), list)
        ):
            raise ConfigError(f'{path}, line {number}: needs "prompt" (text) or "messages" (list)')
        lines.append(line)
    return lines


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m megatron_qwen3.generate",
        description="Generate text with a checkpoint or a folder of Hugging Face's format.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path, metavar="CHECKPOINT_OR_HF_FOLDER")
    parser.add_argument(
        "settings", nargs="*", metavar="key=value", help="such as parallel.tensor=2"
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", action="append", metavar="TEXT", help="may be repeated")
    what.add_argument("--chat", nargs="?", const="", metavar="TEXT", help="empty: a conversation")
    what.add_argument("--file", type=Path, metavar="JSONL")
    parser.add_argument("--out", type=Path, metavar="JSONL", help="of --file; default: stdout")
    parser.add_argument(
        "--batch", type=int, default=16, help="rows of --file at once, per data rank"
    )
    parser.add_argument("--system", metavar="TEXT", help="system message of --chat")
    thinking = parser.add_mutually_exclusive_group()
    thinking.add_argument("--think", action="store_true", help="the default")
    thinking.add_argument("--no-think", action="store_true", help="begin with an empty think block")
    parser.add_argument("--thinking-budget", type=int, metavar="N", help="tokens of thinking")
    parser.add_argument("--max-new-tokens", type=int, default=1024, metavar="N")
    for name in _SAMPLING:
        kind = int if name == "top_k" else float
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar="X")
    parser.add_argument("--seed", type=int, default=0, help="the same text again, or another")
    return parser


if __name__ == "__main__":
    sys.exit(main())
