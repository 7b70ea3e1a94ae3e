"""Renders conversations in Qwen3's chat format, to text and to tokens, and takes answers apart.

A conversation is a list of messages in OpenAI's form; the text is the one that Qwen3's template
renders. It is written twice, here for training and in chat_template.jinja for exported models
(`chat_template.py`); a test holds the two together. No torch, so that data preparation can use it.

    chat = ChatTokenizer(data_prep.tokenizer.load("runs/tokenizer"))
    chat.encode_conversation(messages, tools)  # ids, and which of them the model has to emit
    chat.encode_prompt(messages)  # ids up to where the model goes on
    split_thinking(answer)  # (thinking, answer)

A message has a `role` (system, user, assistant, tool) and `content`; the assistant's may have
`reasoning_content`, which some clients call `reasoning`, and `tool_calls`, and its reasoning may
stand in the content before `</think>`. A tool's may say whose call it answers: results follow each
other in the order of the calls, so the text does not. No other field may say anything.
A *query* is a user message that is not a tool's result. Turns before the last query are *history*:
their reasoning is not shown. So adding a message changes the text before it, and only the renderer
knows which tokens the model has to emit: masks from prefixes of a conversation would be wrong.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, pairwise, takewhile
from typing import Any, NamedTuple

import tokenizers

from megatron_qwen3.chat_check import REASONING, ChatError, Message, check

TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
THINK, END_THINK = "<think>", "</think>"
TOOL_CALL, END_TOOL_CALL = "<tool_call>", "</tool_call>"
TOOL_RESPONSE, END_TOOL_RESPONSE = "<tool_response>", "</tool_response>"
MARKUP = (THINK, END_THINK, TOOL_CALL, END_TOOL_CALL, TOOL_RESPONSE, END_TOOL_RESPONSE)
EMPTY_THINKING = f"{THINK}\n\n{END_THINK}\n\n"

# `/no_think` means nothing else, but `/think` is also a part of paths, addresses and `</think>`.
SOFT_SWITCH = re.compile(r"(?:(?<![A-Za-z0-9_<./:-])/think|/no_think)(?![A-Za-z0-9_/])")


@dataclass(frozen=True)
class Turn:
    """One turn of the text: `<|im_start|>`, the given part, the model's part, `<|im_end|>`."""

    given: str
    emitted: str | None = None  # None where the model has no part in the turn
    history: bool = False  # before the last query
    closed: bool = True  # False where the model goes on
    results: tuple[tuple[int, int], ...] = ()  # begin and end of each tool's words in the body

    @property
    def body(self) -> str:
        return self.given + (self.emitted or "")

    @property
    def text(self) -> str:
        return TURN_START + self.body + (f"{TURN_END}\n" if self.closed else "")

    @property
    def stretches(self) -> Iterator[tuple[int, str, bool]]:
        """(begin, text, whether a tool said it) of parts that are the body, end to end."""
        end = 0
        for first, last in self.results:
            yield end, self.body[end:first], False
            yield first, self.body[first:last], True
            end = last
        yield end, self.body[end:], False


class EncodedChat(NamedTuple):
    """A conversation in tokens: two lists of one length."""

    ids: list[int]
    trained: list[bool]


def render(
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] | None = None,
    *,
    add_generation_prompt: bool = False,
    enable_thinking: bool = True,
) -> str:
    """The text of a conversation, equal in every character to that of the published template.

    As the template does, it leaves out messages of other roles and content that is not text. Raises
    ChatError where the template fails: no message at all, a first system message without text, a
    tool call without arguments. enable_thinking=False ends a generation prompt with an empty think
    block.
    """
    turns = turns_of(messages, tools, enable_thinking)
    text = "".join(turn.text for turn in turns)
    return text + (_generation_prompt(enable_thinking).text if add_generation_prompt else "")


class ChatTokenizer:
    """A tokenizer of Qwen's kind (`data_prep.tokenizer.load`) that reads and writes conversations.

    Only the format opens and closes turns: a control token such as `<|im_end|>` in the text of a
    message stays text, so nobody who wrote a part of the data can end a turn or open another. The
    tags of MARKUP stay text in a tool's result, too: it cannot end its block, nor think or call in
    the model's place. The published template lets them, as `control_tokens_in_text=True` does.
    Elsewhere tags are tokens: content may carry calls, results and thinking already written out.
    """

    def __init__(
        self, tokenizer: tokenizers.Tokenizer, *, control_tokens_in_text: bool = False
    ) -> None:
        ids = [tokenizer.token_to_id(token) for token in (TURN_START, TURN_END, *MARKUP)]
        known = [index for index in ids if index is not None]
        if len(known) < len(ids):
            needed = ", ".join((TURN_START, TURN_END, *MARKUP))
            raise ChatError(f"not a tokenizer for chat: it needs each of {needed} as a token")
        self.turn_start, self.turn_end = known[:2]
        self._published, self._lets_all = tokenizer, control_tokens_in_text
        self._tokenizer = tokenizer if control_tokens_in_text else _without(tokenizer, MARKUP)
        self.after_turn: list[int] = tokenizer.encode("\n", add_special_tokens=False).ids

    def encode_conversation(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        enable_thinking: bool = True,
        train_history: bool = True,
    ) -> EncodedChat:
        """Token ids of the whole conversation, and for each whether it is trained.

        The model is trained on the tokens that it must emit when it generates: in each assistant
        turn those after the header, up to and with `<|im_end|>`, where generation stops; the
        newline after it comes with the next turn. With enable_thinking=False the empty think block
        is part of the prompt; otherwise, also under /no_think, the model emits it.
        train_history=False leaves out the assistant's turns before the last query: they stand there
        without the thinking that the model has to emit (see `split_by_query`).

        The ids are those of the whole text. A token that joins the prompt's last newline with line
        ends at the beginning of the answer is not trained: generation never asks for it.
        """
        ids: list[int] = []
        trained: list[bool] = []
        for turn in turns_to_train(messages, tools, enable_thinking):
            turn_ids, starts = self.encode_turn(turn)
            learnt = turn.emitted is not None and (train_history or not turn.history)
            ids += turn_ids
            trained += [learnt and start >= len(turn.given) for start in starts]
        return EncodedChat(ids, trained)

    def encode_prompt(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        enable_thinking: bool = True,
    ) -> list[int]:
        """Token ids of the conversation and of the header after which the model goes on."""
        check(messages, tools)
        turns = [*turns_of(messages, tools, enable_thinking), _generation_prompt(enable_thinking)]
        return [index for turn in turns for index in self.encode_turn(turn)[0]]

    def encode_turn(self, turn: Turn) -> tuple[list[int], list[int]]:
        """The turn's ids, and for each the character of its body where it begins (-1: outside)."""
        ids, starts = [self.turn_start], [-1]
        for begin, text, is_result in turn.stretches:
            tokenizer = self._of_tools if is_result else self._tokenizer
            encoded = tokenizer.encode(text, add_special_tokens=False)
            ids += encoded.ids
            starts += [begin + start for start, _ in encoded.offsets]
        if turn.closed:
            ids += [self.turn_end, *self.after_turn]
            starts += [len(turn.body), *[-1] * len(self.after_turn)]
        return ids, starts

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, with the tags of MARKUP and the tokens that open and close turns."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    @cached_property
    def _of_tools(self) -> tokenizers.Tokenizer:
        """The tokenizer of tools' results, in which no tag is a token."""
        return self._published if self._lets_all else _without(self._published, ())

    def cut(self, text: str, most: int) -> str:
        """The beginning of a tool's result that `most` tokens give, up to a character's end."""
        encoded = self._of_tools.encode(text, add_special_tokens=False)
        return text if len(encoded.ids) <= most else text[: encoded.offsets[most - 1][1]]


def split_thinking(text: str) -> tuple[str, str]:
    """(thinking, answer) of generated text, without the newlines between the tags and them.

    The answer is the text after the last `</think>`, as in the history of the next turn. Without
    that tag everything after `<think>` is thinking that was cut off, and without either tag all is
    answer. Given back as `reasoning_content` and `content`, the two render to the same text.
    """
    before, end, answer = text.rpartition(END_THINK)
    opened = re.match(rf"\s*{THINK}", text)
    if not end and opened:
        before, answer = text, ""
    thinking = before[opened.end() :] if opened else before
    return thinking.strip("\n"), answer.lstrip("\n")


def soft_switch(messages: Sequence[Message]) -> bool | None:
    """The mode that the last switch sets: /think (True), /no_think (False), None without either.

    Switches count in messages of system and users, and not in tools' results.
    """
    texts = [_content(m) for m in messages if m.get("role") == "system" or _is_query(m)]
    text = "\n".join(texts)
    flags = SOFT_SWITCH.findall(text) if "think" in text else []
    return flags[-1] == "/think" if flags else None


def thinks(messages: Sequence[Message], enable_thinking: bool = True) -> bool:
    """Whether the next answer is to have thinking; enable_thinking=False overrules all switches."""
    return enable_thinking and soft_switch(messages) is not False


def split_by_query(messages: Sequence[Message]) -> list[Sequence[Message]]:
    """For each query with an answer the conversation up to its last assistant turn.

    Trained with train_history=False, together they train every answer once, with its thinking.
    """
    queries = [k for k, message in enumerate(messages) if _is_query(message)]
    parts = []
    for query, end in pairwise([*queries, len(messages)]):
        answers = [k for k in range(query, end) if messages[k].get("role") == "assistant"]
        parts += [messages[: answers[-1] + 1]] if answers else []
    return parts


def turns_of(
    messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None, enable_thinking: bool
) -> Iterator[Turn]:
    """The turns, whose texts end to end are the text of `render`; raises ChatError as it does."""
    if not messages:
        raise ChatError("a conversation needs at least one message")
    if tools or messages[0].get("role") == "system":
        yield Turn("system\n" + _first_system_text(messages[0], tools))
    last_query = _last_query(messages)
    for k, message in enumerate(messages):
        role = message.get("role")
        if role == "user" or (role == "system" and k > 0):
            yield Turn(f"{role}\n{_content(message)}")
        elif role == "assistant":
            is_last = k == len(messages) - 1
            yield _assistant_turn(message, k <= last_query, is_last, enable_thinking)
        elif role == "tool" and (k == 0 or not _is_tool(messages[k - 1])):
            results = takewhile(_is_tool, islice(messages, k, None))
            yield _results_turn(results)


def turns_to_train(
    messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None, enable_thinking: bool
) -> list[Turn]:
    """The turns of a conversation. Raises ChatError where the text would lack something that the
    messages have, or where an answer with thinking would follow an empty think block."""
    check(messages, tools)
    turns = list(turns_of(messages, tools, enable_thinking))
    for turn in turns:
        if enable_thinking is False and not turn.history and _opens_thinking(turn):
            raise ChatError(
                "enable_thinking=False, but the conversation's last answer has thinking: "
                f"{turn.emitted!r:.80}; drop its reasoning or leave enable_thinking True"
            )
    return turns


def _generation_prompt(enable_thinking: bool) -> Turn:
    block = EMPTY_THINKING if enable_thinking is False else ""
    return Turn(f"assistant\n{block}", closed=False)


def _assistant_turn(message: Message, history: bool, is_last: bool, enable_thinking: bool) -> Turn:
    reasoning, content = reasoning_and_content(message)
    block, answer = "", content
    if not history and (is_last or reasoning):
        stripped = reasoning.strip("\n")
        block, answer = f"{THINK}\n{stripped}\n{END_THINK}\n\n", content.lstrip("\n")
    answer += _tool_calls(message, after_text=bool(content))
    if enable_thinking is False and block == EMPTY_THINKING:
        return Turn(f"assistant\n{block}", answer, history)
    return Turn("assistant\n", block + answer, history)


def reasoning_and_content(message: Message) -> tuple[str, str]:
    """Reasoning and content of an assistant's message, as the template takes it apart."""
    content = _content(message)
    for name in REASONING:
        if isinstance(reasoning := message.get(name), str):
            return reasoning, content
    if END_THINK not in content:
        return "", content
    parts = content.split(END_THINK)
    return parts[0].split(THINK)[-1].strip("\n"), parts[-1].lstrip("\n")


def _tool_calls(message: Message, after_text: bool) -> str:
    calls = [_tool_call(call) for call in message.get("tool_calls") or ()]
    return ("\n" if calls and after_text else "") + "\n".join(calls)


def _tool_call(call: Any) -> str:
    call = (isinstance(call, Mapping) and call.get("function")) or call
    if not isinstance(call, Mapping) or "arguments" not in call:
        raise ChatError(f"tool call {call!r} needs a name and arguments")
    arguments = call["arguments"]
    if not isinstance(arguments, str):
        arguments = _json(arguments)
    name = call.get("name", "")
    return f'{TOOL_CALL}\n{{"name": "{name}", "arguments": {arguments}}}\n{END_TOOL_CALL}'


def _results_turn(messages: Iterable[Message]) -> Turn:
    """The turn of tools' results, each in a block of its own, with the line ends around it."""
    given, places = "user", []
    for message in messages:
        said = f"\n{_content(message)}\n"
        begin = len(given) + len(f"\n{TOOL_RESPONSE}")
        given += f"\n{TOOL_RESPONSE}{said}{END_TOOL_RESPONSE}"
        places.append((begin, begin + len(said)))
    return Turn(given, results=tuple(places))


def _first_system_text(first: Message, tools: Sequence[Mapping[str, Any]] | None) -> str:
    own = first.get("content") if first.get("role") == "system" else ""
    if not isinstance(own, str):
        raise ChatError(f"the first system message needs text as content, and has {own!r}")
    if not tools:
        return own
    signatures = "".join(f"\n{_json(tool)}" for tool in tools)
    return (
        (f"{own}\n\n" if first.get("role") == "system" else "")
        + "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
        + "You are provided with function signatures within <tools></tools> XML tags:\n"
        + f"<tools>{signatures}\n</tools>\n\n"
        + "For each function call, return a json object with function name and arguments within "
        + f"{TOOL_CALL}{END_TOOL_CALL} XML tags:\n{TOOL_CALL}\n"
        + f'{{"name": <function-name>, "arguments": <args-json-object>}}\n{END_TOOL_CALL}'
    )


def _last_query(messages: Sequence[Message]) -> int:
    """Index of the last query; of the last message where there is none, so that all is history."""
    queries = [k for k, message in enumerate(messages) if _is_query(message)]
    return queries[-1] if queries else len(messages) - 1


def _is_query(message: Message) -> bool:
    content = message.get("content")
    if message.get("role") != "user" or not isinstance(content, str):
        return False
    return not (content.startswith(TOOL_RESPONSE) and content.endswith(END_TOOL_RESPONSE))


def _is_tool(message: Message) -> bool:
    return message.get("role") == "tool"


def _content(message: Message) -> str:
    content = message.get("content")
    return content if isinstance(content, str) else ""


def _opens_thinking(turn: Turn) -> bool:
    return turn.emitted is not None and turn.emitted.startswith(THINK)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _without(tokenizer: tokenizers.Tokenizer, kept: Sequence[str]) -> tokenizers.Tokenizer:
    """A copy with the same ids, which cuts only the kept ones of its added tokens out of a text."""
    spec = json.loads(tokenizer.to_str())
    for token in spec["added_tokens"]:
        token["special"] = token["content"] not in kept
    copy = tokenizers.Tokenizer.from_str(json.dumps(spec))
    copy.encode_special_tokens = True  # special tokens are encoded like any other text
    return copy
