"""A conversation at the terminal: its commands change the next answer, and nothing else."""

import json

import pytest

from megatron_qwen3.chat import render
from megatron_qwen3.config import ConfigError
from megatron_qwen3.generate.conversation import HELP, Conversation, load


def told(conversation, line):
    answer = conversation.obey(line)
    assert answer is not None, line
    return answer


def asked_twice():
    conversation = Conversation.begun("be terse")
    conversation.answered("a?", "<think>\nwhy\n</think>\n\nb")
    conversation.answered("c?", "d")
    return conversation


def test_answers_are_kept_as_the_format_renders_them():
    messages = asked_twice().asked("e?")["messages"]
    assert [m["role"] for m in messages] == ["system", *["user", "assistant"] * 2, "user"]
    assert messages[2] == {"role": "assistant", "content": "b", "reasoning_content": "why"}
    assert "<think>" not in render(messages)  # of history


def test_modes_and_budgets_hold_for_the_next_answers():
    conversation = Conversation.begun(None, thinking=False, budget=7)
    assert (conversation.thinking, conversation.budget) == (False, 7)
    for line, mode in (("/think", True), ("/mode no_think", False), ("/mode think", True)):
        told(conversation, line)
        assert conversation.thinking is mode
    told(conversation, "/budget 512")
    assert conversation.budget == 512
    told(conversation, "/budget none")
    assert conversation.budget is None


@pytest.mark.parametrize(
    "line", ["hello", "/no_think what is 1 + 1?", "/usr/bin is a path?", "1/2"]
)
def test_what_is_no_command_is_a_question(line):
    assert asked_twice().obey(line) is None


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/mode loud", "error: /mode: loud; valid: think, no_think"),
        ("/budget -1", "error: /budget: -1; valid: none, or a number of tokens"),
        ("/budget", "error: /budget: nothing; valid: none"),
        ("/rest", "error: /rest is no command; did you mean /reset?"),
        ("/quack", "error: /quack is no command; valid: /mode /budget"),
        ("/save", "error: /save: nothing; valid: a file"),
        ("/save no/such/folder/x", "error: /save: "),
        ("/load gone.jsonl", "error: /load: gone.jsonl has no conversation in its first line"),
        ("/load", "error: /load: nothing; valid: a file"),
        ("/load /dev/null", "error: /load: /dev/null has no conversation in its first line"),
        ("/load x\0y", "error: /load: "),
        ("/save x\0y", "error: /save: "),
        ("/budget\t-1", "error: /budget: -1; valid: none"),
        ("/budget " + "9" * 5000, "error: /budget: "),
        ("/system half a pair \udcff", "error: /system: '\\udcff' in it is no character"),
    ],
)
def test_a_wrong_command_is_one_line_and_changes_nothing(line, said):
    conversation, before = asked_twice(), asked_twice()
    answer = told(conversation, line)
    assert answer.startswith(said) and "\n" not in answer
    assert conversation == before


def test_questions_are_undone_and_all_but_the_system_message_reset():
    conversation = asked_twice()
    told(conversation, "/undo")
    assert [m["content"] for m in conversation.messages] == ["be terse", "a?", "b"]
    told(conversation, "/reset")
    assert conversation.messages == [{"role": "system", "content": "be terse"}]
    told(conversation, "/system be kind")
    assert conversation.messages == [{"role": "system", "content": "be kind"}]
    told(conversation, "/system")
    assert conversation.messages == [] and told(conversation, "/undo") == "nothing was asked yet"
    told(conversation, "/exit")
    assert conversation.is_over


def test_a_saved_conversation_is_a_line_of_messages_and_is_loaded_again(tmp_path):
    path = tmp_path / "talk.jsonl"
    conversation = asked_twice()
    assert told(conversation, f"/save {path}") == f"wrote {path}"
    assert json.loads(path.read_text()) == {"messages": conversation.messages}
    other = Conversation()
    told(other, f"/load {path}")
    assert other.messages == conversation.messages == load(path)


@pytest.mark.parametrize("text", ["", "[]", '{"messages": 3}', '{"messages": [{"role": "x"}]}'])
def test_a_file_without_a_conversation_is_named(text, tmp_path):
    (tmp_path / "x").write_text(text)
    with pytest.raises(ConfigError, match="x has no conversation in its first line"):
        load(tmp_path / "x")


ANSWERED = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}]
CALLS = {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": {}}]}


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ({"messages": ANSWERED, "tools": [{"name": "f"}]}, "tools"),
        ({"messages": [ANSWERED[0], CALLS, {"role": "tool", "content": "1"}, ANSWERED[1]]}, "tool"),
        ({"messages": [*ANSWERED, {"role": "user", "content": "c?"}]}, "question 2 has no answer"),
        ({"messages": ANSWERED[1:]}, "message 0 (assistant) stands where a question"),
        ({"messages": [ANSWERED[0], *ANSWERED]}, "message 1 (user) stands where an answer"),
        ({"messages": [*ANSWERED, {"role": "system", "content": "x"}]}, "message 2 (system)"),
    ],
)
def test_a_history_that_cannot_go_on_at_a_terminal_is_refused_in_one_line(line, why, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(line))
    with pytest.raises(ConfigError) as told:
        load(path)
    text = str(told.value)
    assert text.startswith(f"{path}: ") and why in text and "\n" not in text
    conversation, before = asked_twice(), asked_twice()
    assert why in conversation.obey(f"/load {path}") and conversation == before


def test_a_history_without_a_text_in_an_answer_is_told_and_goes_on(tmp_path):
    path = tmp_path / "x.jsonl"
    answer = {"role": "assistant", "reasoning": "r"}
    path.write_text(json.dumps({"messages": [ANSWERED[0], answer]}))
    conversation = Conversation()
    told(conversation, f"/load {path}")
    assert told(conversation, "/history") == "user: a?\nassistant: "


def test_a_history_and_a_system_message_go_together(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"messages": [{"role": "system", "content": "old"}, *ANSWERED]}))
    conversation = Conversation.begun("new", history=path)
    assert conversation.messages == [{"role": "system", "content": "new"}, *ANSWERED]
    assert Conversation.begun(None, history=path).messages[0]["content"] == "old"


def test_help_has_every_command():
    conversation = Conversation()
    words = [line.split()[0] for line in HELP.splitlines() if line.startswith("/")]
    for word in set(words) - {"/exit"}:
        assert "is no command" not in told(conversation, word)
    valid = told(conversation, "/quack").partition("valid: ")[2].split()
    assert {*words, "/help"} == {*valid}
