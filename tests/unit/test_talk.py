"""Typed lines reach a conversation, and nothing typed ends it unasked."""

import io
import sys

from megatron_qwen3.generate import talk
from megatron_qwen3.generate.conversation import Conversation
from megatron_qwen3.generate.requests import check_characters


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_ctrl_c_at_the_prompt_ends_the_conversation_in_one_line(monkeypatch, capsys):
    def interrupted(prompt):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr("builtins.input", interrupted)
    assert talk._next(Conversation()) is None
    assert capsys.readouterr().err == "\nstopped\n"


def test_bytes_that_are_no_text_are_refused_and_the_next_line_is_read(monkeypatch, capsys):
    asked = []

    def questions(is_first, conversation):
        while (line := talk._next(conversation)) is not None:
            asked.append(line)
            yield line, conversation

    def answer(session, conversation, encoders, question):
        check_characters(conversation.asked(question))
        return "b"

    def refused(*arguments):
        try:
            return answer(*arguments)
        except ValueError as error:
            talk._tell(f"error: {error}")

    monkeypatch.setattr(talk, "_questions", questions)
    monkeypatch.setattr(talk, "_answer", refused)
    typed = io.BytesIO(b"caf\xe9\n/system \xff\nwhat?\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(typed, "utf-8"))
    conversation = Conversation()
    session = type("Session", (), {"is_first": True})
    talk.talk(session, conversation, {})
    told = capsys.readouterr().err
    assert len(asked) == 2 and [m["content"] for m in conversation.messages] == ["what?", "b"]
    assert told.count("in it is no character") == 2 and told.count("\n") == 2
