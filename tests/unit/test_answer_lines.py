"""Lines with answers: each becomes the conversation up to its end, or is refused with its place."""

import json

import pytest

from data_prep import tokenizer as tokenizers
from megatron_qwen3.chat import ChatTokenizer, render
from megatron_qwen3.config import ConfigError
from megatron_qwen3.posttrain.rewards.answer_lines import read_answers

QUESTION = [{"role": "user", "content": "one and one?"}]


def says(text):
    return {"role": "assistant", "content": text}


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizers.train(["one and one is two, or three? "] * 9, 300, folder)
    return ChatTokenizer(tokenizers.load(folder))


@pytest.fixture(scope="module")
def decode(chat):
    return lambda ids: chat._tokenizer.decode([int(n) for n in ids], skip_special_tokens=False)


def asked(tmp_path, chat, *lines):
    path = tmp_path / "answers.jsonl"
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines))
    return list(read_answers(path, chat))


def test_an_answer_is_the_conversation_up_to_the_end_of_its_turn(tmp_path, chat, decode):
    ((_, (ids,)),) = asked(tmp_path, chat, {"messages": QUESTION, "answer": "two"})
    assert decode(ids) + "\n" == render([*QUESTION, says("two")])
    assert ids[-1] == chat.turn_end and (ids == chat.turn_end).sum() == 2


def test_all_ways_to_say_an_answer_give_the_same_ids(tmp_path, chat):
    whole, text, message, several, pair = asked(
        tmp_path,
        chat,
        {"messages": [*QUESTION, says("two")]},
        {"messages": QUESTION, "answer": "two"},
        {"messages": QUESTION, "answer": says("two")},
        {"messages": QUESTION, "answers": ["two", [says("two")], "three"], "id": 7},
        {"messages": QUESTION, "chosen": "two", "rejected": "three", "margin": 2},
    )
    two, three = pair.answers
    same = [whole.answers, text.answers, message.answers, several.answers[:1]]
    same += [several.answers[1:2]]
    assert all(ids.tolist() == two.tolist() for (ids,) in same)
    assert several.answers[2].tolist() == three.tolist()
    assert pair.is_pair and not several.is_pair
    assert text.scored([0.5]) == {"messages": QUESTION, "answer": "two", "score": 0.5}
    assert several.scored([1.0, 2.0, 3.0])["scores"] == [1.0, 2.0, 3.0]
    assert pair.scored([1.0, 2.0])["scores"] == [1.0, 2.0]


def test_a_conversation_of_several_turns_has_one_reward_at_its_last_answer(tmp_path, chat, decode):
    talk = [*QUESTION, says("two"), *QUESTION]
    ((_, (ids,)),) = asked(tmp_path, chat, {"messages": talk, "answer": "three"})
    assert decode(ids) + "\n" == render([*talk, says("three")])


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "not JSON"),
        ("[1]", 'needs "messages", a list'),
        ({"prompt": "x"}, 'needs "messages", a list'),
        ({"messages": []}, "is no assistant's: there is no answer"),
        ({"messages": QUESTION}, "is no assistant's: there is no answer"),
        ({"messages": QUESTION, "answer": 7}, '"answer" = 7; valid: a text, a message or a list'),
        ({"messages": QUESTION, "answers": []}, '"answers" = []; valid: a list of answers'),
        ({"messages": QUESTION, "chosen": "x"}, 'has "chosen"; valid: one of'),
        ({"messages": QUESTION, "answer": "x", "answers": ["y"]}, 'has "answer", "answers"; valid'),
        ({"messages": QUESTION, "answer": "x", "score": 1}, 'has "score" already'),
        ({"messages": [{"role": "nobody", "content": "x"}], "answer": "x"}, "nobody"),
        ('{"messages": [], "answer": "\\ud800"}', "is no character"),
    ],
)
def test_what_is_wrong_is_told_with_file_and_line(tmp_path, chat, line, told):
    good = {"messages": QUESTION, "answer": "two"}
    with pytest.raises(ConfigError) as raised:
        asked(tmp_path, chat, good, "", line)
    assert str(raised.value).startswith(f"{tmp_path}/answers.jsonl, line 3: ")
    assert told in str(raised.value) and "\n" not in str(raised.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path, chat):
    with pytest.raises(ConfigError, match="nothing.jsonl: cannot be read"):
        list(read_answers(tmp_path / "nothing.jsonl", chat))
