"""A conversation at the terminal: its messages, the settings of answers, and its commands.

    conversation = Conversation.begun("You are terse.", thinking=True, budget=None)
    conversation.obey("/budget 512")     # the reply to show; None where the line is a question
    line = conversation.asked("What is 17 * 23?")  # for Encoder.encode
    conversation.answered("What is 17 * 23?", "<think>…</think>391")

Nothing here imports torch.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_qwen3.chat import split_thinking
from megatron_qwen3.chat_check import check
from megatron_qwen3.config import ConfigError
from megatron_qwen3.generate.requests import check_characters
from megatron_qwen3.storage.whole import write_whole
from megatron_qwen3.toml import did_you_mean

_MOST_CHARACTERS = 1 << 26  # of a conversation's line: more than any model reads

HELP = """\
/mode think | no_think   whether answers have thinking; a line of only /think or /no_think does the
                         same; within a question a flag holds for it and later ones
/budget N | none         most tokens of thinking, after which the answer begins
/system TEXT             set the system message; without TEXT, remove it
/history                 show the conversation so far
/undo                    forget the last question and its answer
/reset                   forget all but the system message
/save FILE               save the conversation, as a line for `mq3 generate --file` and /load
/load FILE               continue a saved one in which every question has its answer
/exit                    end; so does Ctrl-D
"""


@dataclass
class Conversation:
    """messages: so far, the system's too; thinking: whether answers may have it; budget: most
    tokens of thinking, None for any number."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    thinking: bool = True
    budget: int | None = None
    is_over: bool = False

    @classmethod
    def begun(
        cls,
        system: str | None,
        thinking: bool = True,
        budget: int | None = None,
        history: Path | None = None,
    ) -> "Conversation":
        """A new conversation, or one that continues `history`, whose system message `system`
        replaces. ConfigError for a budget below 0 and a file that cannot be continued."""
        conversation = cls(load(history) if history else [], thinking)
        if system:
            conversation._system(system)
        if budget is not None:
            conversation._budget(str(budget))
        return conversation

    def obey(self, line: str) -> str | None:
        """Run the command of a line that begins with `/`; returns the reply, None for a question.

        A wrong command changes nothing; the reply then says so.
        """
        word, rest = (*line.split(maxsplit=1), "")[:2]
        if line in ("/think", "/no_think"):
            word, rest = "/mode", line.removeprefix("/")
        if word in ("/think", "/no_think") or not word.startswith("/") or "/" in word[1:]:
            return None
        commands: dict[str, Callable[[str], str]] = {
            "/mode": self._mode,
            "/budget": self._budget,
            "/system": self._system,
            "/history": self._history,
            "/undo": self._undo,
            "/reset": self._reset,
            "/save": self._save,
            "/load": self._load,
            "/help": lambda _: HELP.rstrip(),
            "/exit": self._exit,
        }
        if word not in commands:
            known = did_you_mean(word, commands) or f"; valid: {' '.join(commands)}"
            return f"error: {word} is no command{known}"
        try:
            return commands[word](rest.strip())
        except (OSError, ValueError) as error:  # ConfigError and ChatError are ValueErrors
            return f"error: {word}: {error}"

    def asked(self, question: str) -> dict[str, Any]:
        """The line to be encoded for an answer to `question`."""
        return {"messages": [*self.messages, {"role": "user", "content": question}]}

    def answered(self, question: str, text: str) -> None:
        """Append a question and the model's text."""
        thinking, answer = split_thinking(text)
        reply: dict[str, Any] = {"role": "assistant", "content": answer}
        if thinking:
            reply["reasoning_content"] = thinking
        self.messages += [{"role": "user", "content": question}, reply]

    def _mode(self, word: str) -> str:
        if word not in ("think", "no_think"):
            raise ConfigError(f"{word or 'nothing'}; valid: think, no_think")
        self.thinking = word == "think"
        return f"mode: {word}"

    def _budget(self, word: str) -> str:
        if word != "none" and not (word.isascii() and word.isdigit()):
            raise ConfigError(f"{word or 'nothing'}; valid: none, or a number of tokens, as 512")
        self.budget = None if word == "none" else int(word)
        return f"thinking budget: {word}"

    def _system(self, text: str) -> str:
        check_characters({"system": text})
        said = [message for message in self.messages if message["role"] != "system"]
        self.messages = [{"role": "system", "content": text}, *said] if text else said
        return "the system message is set" if text else "there is no system message"

    def _history(self, _: str) -> str:
        said = (f"{message['role']}: {message.get('content') or ''}" for message in self.messages)
        return "\n".join(said) or "nothing was said yet"

    def _undo(self, _: str) -> str:
        questions = [k for k, message in enumerate(self.messages) if message["role"] == "user"]
        if not questions:
            return "nothing was asked yet"
        del self.messages[questions[-1] :]
        return "the last question is forgotten"

    def _reset(self, _: str) -> str:
        self.messages = [message for message in self.messages if message["role"] == "system"]
        return "all but the system message is forgotten"

    def _save(self, name: str) -> str:
        if not name:
            raise ConfigError("nothing; valid: a file, as talk.jsonl")
        line = json.dumps({"messages": self.messages}, ensure_ascii=False)
        write_whole(Path(name), [line.encode(), b"\n"])
        return f"wrote {name}"

    def _load(self, name: str) -> str:
        if not name:
            raise ConfigError("nothing; valid: a file, as talk.jsonl")
        self.messages = load(Path(name))
        return f"{len(self.messages)} messages"

    def _exit(self, _: str) -> str:
        self.is_over = True
        return ""


def load(path: Path) -> list[dict[str, Any]]:
    """The messages of a file that /save wrote, or others that a question may follow.

    ConfigError names the file and its fault.
    """
    try:
        with path.open(encoding="utf-8") as file:
            line = json.loads(file.readline(_MOST_CHARACTERS))
        messages = line["messages"]
        check(messages, None)
        check_characters(line)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(
            f'{path} has no conversation in its first line, as {{"messages": […]}} ({error})'
        ) from None
    if why := _unfit(messages, bool(line.get("tools"))):
        raise ConfigError(
            f"{path}: {why}; valid: an optional system message, then questions, each "
            "with its answer"
        )
    loaded: list[dict[str, Any]] = messages
    return loaded


def _unfit(messages: Sequence[dict[str, Any]], has_tools: bool) -> str:
    """Why a conversation at the terminal cannot go on from messages, or ""."""
    if has_tools or any(m["role"] == "tool" or m.get("tool_calls") for m in messages):
        return "tools are called in it, and here nobody runs them"
    first = bool(messages) and messages[0]["role"] == "system"
    for k, message in enumerate(messages[first:]):
        wanted = ("user", "a question (user)"), ("assistant", "an answer (assistant)")
        if message["role"] != wanted[k % 2][0]:
            return f"message {k + first} ({message['role']}) stands where {wanted[k % 2][1]} is due"
    if (len(messages) - first) % 2:
        return f"question {(len(messages) - first + 1) // 2} has no answer"
    return ""
