"""Conversations at the terminal, for `mq3 chat` and `generate --chat`.

    talk(session, conversation, encoders)

All ranks run it. The first one reads standard input and tells the others; a line is a question or a
command (`conversation.py`), from a terminal or a pipe.
"""

import io
import sys
from collections.abc import Iterator, Mapping

import torch.distributed as dist

from megatron_qwen3.chat import ChatError
from megatron_qwen3.config import ConfigError
from megatron_qwen3.generate.conversation import Conversation
from megatron_qwen3.generate.requests import Encoder
from megatron_qwen3.generate.session import Session
from megatron_qwen3.generate.thinking import ThinkingBudget
from megatron_qwen3.shown import shown_text


def talk(session: Session, conversation: Conversation, encoders: Mapping[bool, Encoder]) -> None:
    """Answer until standard input ends, or Ctrl-C at the prompt. conversation: only the first
    rank's is used; encoders: for answers with thinking, and without."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        # Bytes that are not UTF-8 become half characters, which the encoder refuses by name.
        sys.stdin.reconfigure(errors="surrogateescape")
    for question, shared in _questions(session.is_first, conversation):
        answer = _answer(session, shared, encoders, question)
        if answer is not None:
            shared.answered(question, answer)


def _questions(is_first: bool, conversation: Conversation) -> Iterator[tuple[str, Conversation]]:
    """Each question with its conversation, on every rank. Only the first rank runs
    commands, since only it may see the files that they name."""
    while True:
        told = [_next(conversation) if is_first else None, conversation]
        dist.broadcast_object_list(told, src=0)
        question, shared = told
        if question is None:
            return
        if not is_first:
            conversation = shared  # type: ignore[assignment]
        yield str(question), conversation


def _next(conversation: Conversation) -> str | None:
    """The next line that is a question; None at the end."""
    try:
        while not conversation.is_over and (line := _typed()) is not None:
            if not (line := line.strip()):
                continue
            told = conversation.obey(line)
            if told is None:
                return line
            if told:
                _tell(told)
    except KeyboardInterrupt:
        _tell("\nstopped")  # below the prompt
    return None


def _tell(text: str) -> None:
    print(shown_text(text), file=sys.stderr)


def _answer(
    session: Session, conversation: Conversation, encoders: Mapping[bool, Encoder], question: str
) -> str | None:
    """Print the answer to a question; None, after printing why, where there is none."""
    why = "\nstopped; the question is forgotten"
    try:
        budget = None
        if conversation.budget is not None:
            budget = ThinkingBudget.of(session.tokenizer, conversation.budget)
        request = encoders[conversation.thinking].encode(conversation.asked(question))
        return session.stream(request, budget)
    except (ConfigError, ChatError) as error:
        why = f"error: {error}"
    except KeyboardInterrupt:
        if dist.get_world_size() > 1:
            raise  # other ranks may be elsewhere in the pass
    if session.is_first:
        _tell(why)
    return None


def _typed() -> str | None:
    """One line; None at the end. A terminal gets line editing and history."""
    if not sys.stdin.isatty():
        return sys.stdin.readline() or None
    import readline  # noqa: F401  input() uses it once imported

    try:
        return input("> ")
    except EOFError:
        return None
