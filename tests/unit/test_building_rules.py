"""Rules that drop queries and answers: each finds its fault, and good ones have none."""

import json

import pytest
from scripted import InProcess, thought

from data_prep import tokenizer
from data_prep.passages import Passages
from data_prep.units import split
from megatron_qwen3.config import ConfigError
from megatron_qwen3.posttrain.building.answer_rules import AnswerRules, AnswerSettings, repetition
from megatron_qwen3.posttrain.building.checking import Checker
from megatron_qwen3.posttrain.building.languages import LanguageUse
from megatron_qwen3.posttrain.building.queries import Query, read
from megatron_qwen3.posttrain.building.query_rules import (
    is_several,
    reference_faults,
    several_questions,
)
from megatron_qwen3.posttrain.generators.answers import Answer

ASK = {"messages": [{"role": "user", "content": "q"}]}
REASONED = (
    "We need the number of apples that are left. Anna had twelve apples in her basket and gave "
    "five of them to her brother, so seven remain. Then she bought three more at the market, which "
    "makes 7 + 3 = 10. Let me check it: twelve minus five is seven, and seven plus three is ten."
)
SUMMARY = "Anna had twelve apples, gave away five and bought three more, so she has \\boxed{10}."
CHINESE = (
    "我们需要计算剩下的苹果数量。安娜的篮子里有十二个苹果，她把其中五个给了弟弟，所以还剩七个。"
)


def query(text="How many apples has Anna now?", domain="math", gold="10", kind="math"):
    messages = ({"role": "user", "content": text},)
    return Query("id", messages, "f:1", domain, "s", {"kind": kind, "gold": gold})


def answer(thinking=REASONED, content=SUMMARY, finish="stop"):
    return Answer(thought(thinking, content), finish)


def lines(tmp_path, *rows):
    path = tmp_path / "q.jsonl"
    path.write_bytes(
        b"\n".join(r if isinstance(r, bytes) else json.dumps(r).encode() for r in rows)
    )
    return path


BAD_LINES = [
    (b"{", "not JSON"),
    (b"\xff", "not JSON"),
    (b"[" * 99_999, "not JSON"),
    (b'{"messages": "\\ud800"}', "not JSON"),
    (b"[]", "not a query"),
    ({}, "not a query"),
    ({"messages": []}, "not a query"),
    ({"messages": [{"role": "assistant", "content": "a"}]}, "not a query"),
    ({"messages": [{"role": "user", "content": None}]}, "not a query"),
    ({"messages": [{"role": "user", "content": " \n"}]}, "not a query"),
    ({"messages": [{"role": "judge", "content": "a"}, *ASK["messages"]]}, "not a query"),
    ({"messages": [*ASK["messages"], {"role": "system", "content": "a"}]}, "not a query"),
    (ASK | {"verifier": "math"}, "not a query"),
    (ASK | {"tools": {"a": 1}}, "not a query"),
    (ASK | {"checklist": [1]}, "not a query"),
    (ASK | {"domain": ["math"]}, "not a query"),
    (ASK | {"id": "x" * 201}, "not a query"),
    (ASK | {"id": "first"}, "id again"),
]


def test_bad_lines_are_told_by_file_and_line_and_the_rest_is_read(tmp_path):
    first, last = ASK | {"id": "first"}, ASK | {"domain": "d"}
    path = lines(tmp_path, first, *(line for line, _ in BAD_LINES), b"  ", last)
    queries, problems = read([path], stop_at_problem=False)
    assert [q.id for q in queries] == ["first", f"q.jsonl:{len(BAD_LINES) + 3}"]
    assert [(q.source, q.place) for q in queries] == [
        ("q", f"{path}:1"),
        ("d", f"{path}:{len(BAD_LINES) + 3}"),
    ]
    found = [(p.file, p.line, p.kind) for p in problems]
    assert found == [(str(path), n, kind) for n, (_, kind) in enumerate(BAD_LINES, 2)]
    with pytest.raises(ConfigError, match=f"{path}:2: not JSON"):
        read([path], stop_at_problem=True)


def test_a_file_without_a_query_is_an_error_that_names_its_first_problem(tmp_path):
    path = lines(tmp_path, {})
    with pytest.raises(ConfigError, match="not one query; the first problem: .*:1: not a query"):
        read([path], stop_at_problem=False)
    with pytest.raises(ConfigError, match="cannot be read"):
        read([tmp_path / "gone"], stop_at_problem=False)


@pytest.mark.parametrize(
    ("text", "several"),
    [
        ("What is 1 + 1?", False),
        ("What is 1 + 1? And what is 2 + 2?", True),
        ("Find x. Then explain why it is prime.", False),
        ("(a) Find x. (b) Prove that x is prime.", True),
        ("Solve:\n1. Compute 2+2.\n2. Compute 3+3.", True),
        ("Which of these is prime?\n(A) 4 (B) 6 (C) 7 (D) 8", False),
        ("Steps: 1. boil water 2. add tea 3. wait. Which step is longest?", False),
        ('He asked "Why? How?" and left. Who is he?', False),
        ("What does `a ? b : c` do in ```x ? y : z```?", False),
        ("See http://x.org/?a=1&b=2 for the data. What is its mean?", False),
        ("1+1等于几？2+2等于几？", True),
        ("Really?? What is 5!?", True),
    ],
)
def test_several_questions_are_told_from_one(text, several):
    assert is_several(several_questions(text)) is several


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({"kind": "math", "gold": "42"}, ""),
        ({"kind": "math", "gold": "\\frac{1}{2}"}, ""),
        ({"kind": "exact", "gold": "Paris"}, ""),
        ({"kind": "math", "gold": "  "}, "valid: a formula"),
        ({"kind": "maths", "gold": "4"}, "did you mean math"),
        ({"kind": "math"}, "needs gold"),
        ({"gold": "4"}, "no kind of verifier"),
        (None, "there is no verifier"),
    ],
)
def test_a_reference_that_no_answer_can_be_judged_by_is_found(spec, told):
    pytest.importorskip("math_verify")
    (fault,) = reference_faults([spec], InProcess())
    assert told in fault and bool(fault) == bool(told)


@pytest.fixture(scope="module")
def rules():
    return AnswerRules(AnswerSettings(), None)


def reasons(rules, made, asked=None, thinks=True):
    judged = rules.judge(asked or query(), made, thinks)
    return [name for name, _ in judged.faults], judged.numbers


def test_a_good_answer_has_no_fault_and_numbers(rules):
    found, numbers = reasons(rules, answer())
    assert found == []
    assert numbers["words of thinking"] == len(split(REASONED))
    assert numbers["foreign in thinking"] == numbers["repeated"] == 0
    assert reasons(rules, Answer(SUMMARY, "stop"), thinks=False)[0] == []


MIXED = REASONED + CHINESE
LOOP = (
    REASONED + "Wait, let me think about it once more, seven plus three makes ten in the end. " * 12
)
BAD_ANSWERS = [
    (answer(finish="length"), "cut off"),
    (Answer("<think>\n" + REASONED, "length"), "cut off"),
    (answer(content=" \n"), "no answer"),
    (Answer("<think>\n" + REASONED, "stop"), "no answer"),
    (Answer("", "stop"), "no answer"),
    (answer(thinking="  "), "no thinking"),
    (Answer(SUMMARY, "stop"), "no thinking"),
    (answer(content="a </think> b"), "think block broken"),
    (answer(thinking="<think> a"), "think block broken"),
    (answer(content="a <|im_end|>"), "control tokens"),
    (answer(thinking=LOOP), "repetition"),
    (answer(content=SUMMARY * 20), "repetition"),
    (answer(thinking="It is ten."), "no derivation"),
    (answer(thinking=REASONED + " I'll just guess 10."), "no derivation"),
    (answer(thinking=MIXED), "languages mixed"),
]


@pytest.mark.parametrize(("made", "reason"), BAD_ANSWERS, ids=[r for _, r in BAD_ANSWERS])
def test_every_rule_finds_its_fault(rules, made, reason):
    assert reasons(rules, made)[0][0] == reason


def test_an_answer_without_thinking_that_thinks_is_a_fault(rules):
    assert reasons(rules, answer(), thinks=False)[0] == ["thinking where none was asked for"]
    empty = Answer("<think>\n\n</think>\n\n" + SUMMARY, "stop")
    assert reasons(rules, empty, thinks=False)[0] == []
    assert reasons(rules, Answer("a <think> b", "stop"), thinks=False)[0] == ["think block broken"]


def test_repetition_counts_what_stood_there_before():
    words = " ".join(f"w{k}" for k in range(100))
    assert repetition(split(words)) == (0.0, 1)
    share, loops = repetition(split(f"{words} {words}"))
    assert share == pytest.approx(0.5) and loops == 2
    assert repetition(split("")) == (0.0, 0)
    assert repetition(split("a " * 400))[1] > 300
    assert repetition(split("啊" * 400))[0] > 0.9


def test_languages_are_told_part_by_part():
    use = LanguageUse()
    english = REASONED * 4
    assert use.of(english).main == "eng_Latn" and use.of(english).foreign == 0
    mixed = use.of(english + CHINESE * 6)
    assert mixed.foreign > 0.1 and "CJK" in mixed.others and mixed.changes >= 1
    assert use.of(english + CHINESE * 6, query="翻译这个句子").foreign == 0  # the query's own
    german = (
        "Wir brauchen die Anzahl der Äpfel, die noch übrig sind. Anna hatte zwölf Äpfel in ihrem "
        "Korb und gab ihrem Bruder fünf davon, also bleiben sieben. Danach kaufte sie noch drei. "
    )
    assert use.of(english + german * 5).foreign > 0.2
    greek = use.of(english + " The angle α and the number π, ε > 0, give \\alpha and $β + γ$.")
    assert greek.foreign == 0
    assert use.of("").main == use.of("1 + 1 = 2").main == "und"


def test_domains_that_mix_languages_may(rules):
    made = answer(thinking=MIXED)
    assert reasons(rules, made, query(domain="translation"))[0] == []


def test_answers_like_validation_items_are_found_by_thirteen_tokens(tmp_path):
    folder = tmp_path / "t"
    tokenizer.train([REASONED * 5], 400, folder)
    form = "Put the final answer into a box and reason step by step before you do, please. "
    own = ["three ships left the harbour before dawn with ninety barrels of salt and returned"]
    own += [
        f"a question {k} of its own with words {k * 7} that nobody else has {k}" for k in range(4)
    ]
    items = tmp_path / "items.jsonl"
    items.write_text("".join(json.dumps({"question": form + text}) + "\n" for text in own))
    passages = Passages([str(items)], 13, str(folder), most_in_common=3)
    rules = AnswerRules(AnswerSettings(), passages)
    assert reasons(rules, answer(content=form + SUMMARY))[0] == []  # everybody's words
    found, numbers = reasons(rules, answer(content=SUMMARY + " " + own[0]))
    assert found == ["like a validation item"] and numbers["passages of a validation item"] > 0
    assert Passages([str(items)], 13, str(folder)).hits(form)  # unless none is left out


CHECKS = [
    (REASONED + " So \\boxed{10}.", SUMMARY, 1.0, True),
    (REASONED + " So \\boxed{10.0}.", SUMMARY, 1.0, True),
    (REASONED + " So \\boxed{11}.", SUMMARY, 1.0, False),
    (REASONED, SUMMARY, 1.0, True),  # its last equation
    ("The answer is 10.", SUMMARY, 1.0, True),
    ("The answer is 11.", SUMMARY, 1.0, False),
    ("She has 12 - 5 = 7 apples.", SUMMARY, 1.0, False),
    ("Then 7 = 7, so in the end there are 10 of them.", SUMMARY, 1.0, True),
    ("She counts.", SUMMARY, 1.0, None),
    ("7 + 3 = 10. But no, one is lost. So the answer is 9.", SUMMARY, 1.0, False),
    ("The answer is 10? No: the answer is 9.", SUMMARY, 1.0, False),
    ("The answer is 9. Wait, that is wrong: 7 + 3 = 10.", SUMMARY, 1.0, True),
    ("The answer is 10. Wait, that is wrong. The answer: **9**", SUMMARY, 1.0, False),
    ("It is 10 apples, is it? So the answer is 9, since one is lost.", SUMMARY, 1.0, False),
    ("Then 7 + 3 = 10. So the answer is clear.", SUMMARY, 1.0, True),
    ("So the answer is $10$, as 7 + 3 says.", SUMMARY, 1.0, True),
    ("The answer is 10 apples. Let me check: 10 - 3 = 7. Good.", SUMMARY, 1.0, True),
    (REASONED, "It is \\boxed{9}.", 0.0, None),
    ("7 加 3 等于几？答案是11。对。", SUMMARY, 1.0, False),
    ("7 加 3，所以答案是10。对。", SUMMARY, 1.0, True),
    ("最终答案：10，检查 2 = 2。", SUMMARY, 1.0, True),
    ("したがって、答えは11です。", SUMMARY, 1.0, False),
    ("答案是很清楚的。", SUMMARY, 1.0, None),
]


@pytest.mark.parametrize(("thinking", "content", "score", "agrees"), CHECKS)
def test_thinking_that_comes_to_another_result_is_told(thinking, content, score, agrees):
    pytest.importorskip("math_verify")
    (checked,) = Checker(InProcess()).check([(query(), answer(thinking, content))])
    assert (checked.score, checked.agrees) == (score, agrees)


@pytest.mark.parametrize(
    ("thinking", "agrees"), [("Answer: Paris.", True), ("Answer: Rome.", False)]
)
def test_a_word_that_is_the_whole_answer_is_compared_bare(thinking, agrees):
    asked = query(gold="Paris", kind="exact")
    (checked,) = Checker(InProcess()).check([(asked, answer(thinking, "Paris"))])
    assert (checked.score, checked.agrees) == (1.0, agrees)


def test_of_kinds_without_a_short_answer_nothing_is_said_about_agreement():
    asked = query()
    asked = Query(
        "i", asked.messages, "f:1", verifier={"kind": "length", "most": 5, "unit": "words"}
    )
    (checked,) = Checker(InProcess()).check([(asked, answer("a = b", "four words are here"))])
    assert checked.agrees is None
