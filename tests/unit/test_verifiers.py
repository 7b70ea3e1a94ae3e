"""Verifiers without mathematics and IFEval: answers accepted, refused, and not judged."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_qwen3.config import ConfigError
from megatron_qwen3.posttrain.verifiers import KINDS, check_spec, final, verdict

RIGHT, WRONG, NOBODY_KNOWS = 1.0, 0.0, None
CAPITAL = "The capital of this country is a large city by the river."


def score(kind, text, **fields):
    return verdict({"kind": kind} | fields, text).score


@pytest.mark.parametrize(
    ("text", "fields", "expected"),
    [
        ("42", {"gold": "42"}, RIGHT),
        (" 42\n", {"gold": "42"}, RIGHT),
        ("a  b\nc", {"gold": "a b c"}, RIGHT),
        ("It is 42", {"gold": "42"}, WRONG),
        ("It is \\boxed{42}", {"gold": "42", "part": "box"}, RIGHT),
        ("It is 42", {"gold": "42", "part": "box"}, WRONG),
        ("\\boxed{42} wait \\boxed{43", {"gold": "42", "part": "box"}, WRONG),
        ("so\n42", {"gold": "42", "part": "last_line"}, RIGHT),
        ("", {"gold": "42", "part": "last_line"}, WRONG),
        ("Yes", {"gold": ["no", "yes"], "ignore_case": True}, RIGHT),
        ("Yes", {"gold": ["no", "yes"]}, WRONG),
    ],
)
def test_exact(text, fields, expected):
    assert score("exact", text, **fields) == expected


@pytest.mark.parametrize(
    ("text", "fields", "expected"),
    [
        ("\\boxed{42}", {"gold": 42}, RIGHT),
        ("first 41, then 42.", {"gold": 42}, RIGHT),
        ("42, not 41", {"gold": 42}, RIGHT),
        ("\\boxed{41} or \\boxed{42}", {"gold": 42}, RIGHT),
        ("\\boxed{41, 42}", {"gold": 42}, WRONG),
        ("\\boxed{42 \\text{ cm}}", {"gold": 42}, RIGHT),
        ("It is 1,234.5 in all.", {"gold": 1234.5}, RIGHT),
        ("\\boxed{1\\,234\\,567}", {"gold": 1234567}, RIGHT),
        ("\\boxed{1{,}234}", {"gold": 1234}, RIGHT),
        ("1.2e-4", {"gold": 0.00012}, RIGHT),
        ("\\boxed{1.2 \\times 10^{-4}}", {"gold": 0.00012}, RIGHT),
        ("0.1", {"gold": 0.1}, RIGHT),
        ("\\boxed{\\frac{1}{3}}", {"gold": "1/3"}, RIGHT),
        ("It is $\\frac{1}{3}$.", {"gold": "1/3"}, RIGHT),
        ("It is $\\frac{1}{3}$.", {"gold": 3}, WRONG),
        ("It is \\dfrac{ 1 }{ 3 }", {"gold": "1/3"}, RIGHT),
        ("\\boxed{x = \\frac{1}{3}}", {"gold": "1/3"}, RIGHT),
        ("$-\\frac{1}{3}$", {"gold": "-1/3"}, RIGHT),
        ("3 1/2 hours", {"gold": 3.5}, RIGHT),
        ("3 1/2 hours", {"gold": 0.5}, WRONG),
        ("$3\\frac{1}{2}$ hours", {"gold": 3.5}, RIGHT),
        ("$3\\frac{1}{2}$ hours", {"gold": 2}, WRONG),
        ("first 3, then 1/2", {"gold": 0.5}, RIGHT),
        ("0.333", {"gold": "1/3"}, WRONG),
        ("0.333", {"gold": "1/3", "tolerance": 0.001}, RIGHT),
        ("98", {"gold": 100, "relative": 0.02}, RIGHT),
        ("97.9", {"gold": 100, "relative": 0.02}, WRONG),
        ("-5", {"gold": -5}, RIGHT),
        ("\u22125", {"gold": -5}, RIGHT),
        ("3-5", {"gold": -5}, WRONG),
        ("50%", {"gold": 0.5}, RIGHT),
        ("3,14", {"gold": 3.14}, WRONG),
        ("version2", {"gold": 2}, WRONG),
        ("none", {"gold": 2}, WRONG),
        ("\\boxed{4", {"gold": 4}, WRONG),
        ("4", {"gold": "four"}, NOBODY_KNOWS),
        ("4", {"gold": 4, "tolerance": -1}, NOBODY_KNOWS),
        ("4", {"gold": 4, "tolerance": float("inf")}, NOBODY_KNOWS),
        ("4", {"gold": 4, "tolerance": float("nan")}, NOBODY_KNOWS),
        ("1e400", {"gold": 4}, WRONG),
        ("1e9999", {"gold": 4}, WRONG),
        ("x = 5.0 cm^2", {"gold": 5}, RIGHT),
        ("5^2", {"gold": 2}, WRONG),
        ("The answer is 5, not 6", {"gold": 5}, RIGHT),
    ],
)
def test_numeric(text, fields, expected):
    assert score("numeric", text, **fields) == expected


@given(st.integers(-(10**12), 10**12), st.integers(0, 6))
def test_every_way_to_write_a_number_is_the_same_number(whole, places):
    text = f"{whole / 10**places:.{places}f}"
    gold = f"{whole}/{10**places}"
    sign, digits = ("-", text[1:]) if text[0] == "-" else ("", text)
    left, dot, right = digits.partition(".")
    grouped = f"{int(left):,}"
    written = [text, f"${text}$", f"\\boxed{{{text}}}", f"the answer is {text}.", f"{text}e0"]
    written += [sign + grouped + dot + right, sign + grouped.replace(",", "\\,") + dot + right]
    assert [score("numeric", one, gold=gold) for one in written] == [RIGHT] * len(written)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\\boxed{B}", "B"),
        ("\\boxed{\\text{(B)}}", "B"),
        ("\\boxed{b}", "B"),
        ("\\boxed{A} no, \\boxed{B}", "B"),
        ("\\boxed{\\text{Both}}", None),
        ("B", "B"),
        ("(B)", "B"),
        ("**B**", "B"),
        ("[B]", "B"),
        ("`B`", "B"),
        ("A is wrong.\n<answer>B</answer>", "B"),
        ("<answer> (B) Paris </answer> rather than A.", "B"),
        ("<answer>A or B</answer>", None),
        ("B. Paris", "B"),
        ("B) Paris", "B"),
        ("The answer is B.", "B"),
        ("The answer is (B).", "B"),
        ("Answer: **B**", "B"),
        ("**Answer:** B", "B"),
        ("Final answer: $B$", "B"),
        ("The correct option is B", "B"),
        ("At first A seems right, but the answer is B, since C is wrong.", "B"),
        ("The answer is A. Wait: the answer is B", "B"),
        ("A. Rome\nB. Paris", None),
        ("A good question about a city.", None),
        ("I do not know", None),
        ("The answer is Berlin", None),
        ("", None),
        ("\\boxed{B", None),
        ("\\boxed{A, B}", None),
        ("\\boxed{A or B}", None),
        ("\\boxed{\\text{A and B}}", None),
        ("\\boxed{A} or \\boxed{B}", None),
        ("\\boxed{a, b}", None),
        ("\\boxed{B. A cat}", "B"),
        ("\\boxed{B) 5}", "B"),
        ("The answer is A or B.", None),
        ("The answer is A, B, C or D.", None),
        ("The answer is (A) and (B).", None),
        ("The answer is either A or B.", None),
        ("A or B.", None),
        ("Both (A) and (B)", None),
        ("The answer is not B.", None),
        ("The answer isn't B.", None),
        ("The answer is neither A nor B.", None),
        ("The answer is B. No, the answer is not B.", None),
        ("The answer is not A. It is B.", "B"),
        ("The answer is not A but B.", "B"),
        ("The answer is A. Wait, actually B is right.", "B"),
        ("A is not right. B is the correct answer.", "B"),
        ("Answer: I think it is B.", "B"),
        ("The answer I believe is B", "B"),
        ("My answer: I'd go with B", "B"),
        ("The best answer is clearly B.", "B"),
        ("Answer: A good question.", None),
        ("The answer is b.", "B"),
        ("Answer: (b)", "B"),
        ("The answer is a, b or c.", None),
        ("The answer is a city.", None),
        ("B is the answer.", "B"),
        ("A or B is the answer.", None),
        ("I would choose B", "B"),
        ("Answer: \\textbf{B}", "B"),
        ("Answer: B. because A is wrong", "B"),
        ("The answer is B, A is wrong.", "B"),
        ("The answer is B, I think.", "B"),
        ("Option A: Rome\nOption B: Paris", None),
        ("Option A is wrong. Option B is correct.", "B"),
        ("Answer:\nB", "B"),
        ("The answer to question 3 is B.", "B"),
    ],
)
def test_choice(text, expected):
    for letter in "ABCD":
        assert score("choice", text, gold=letter) == float(letter == expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("答案是B", "B"),
        ("答案是B。", "B"),
        ("答案：B", "B"),
        ("正确答案是 B。", "B"),
        ("正确选项为（B）。", "B"),
        ("故选B。", "B"),
        ("因此选择 B", "B"),
        ("答案是B，因为A错了。", "B"),
        ("选项A是错误的，选项B是正确的。", "B"),
        ("A不正确，B正确", "B"),
        ("答案不是A，而是B。", "B"),
        ("答案不是B。", None),
        ("不选B", None),
        ("答案是A或者B", None),
        ("A和B都正确", None),
        ("A. 罗马\nB. 巴黎", None),
        ("答えはBです。", "B"),
        ("B。", "B"),
        ("คำตอบคือB", "B"),
        ("我不知道", None),
    ],
)
def test_choice_in_writings_without_spaces(text, expected):
    for letter in "ABCD":
        assert score("choice", text, gold=letter) == float(letter == expected)


def test_the_pronoun_is_no_choice_and_the_letter_is():
    for text, expected in [
        ("Answer: I think it is B.", "B"),
        ("Answer: I am not sure.", None),
        ("The answer is I.", "I"),
        ("Answer: I", "I"),
        ("I is correct.", "I"),
    ]:
        for letter in "ABI":
            assert score("choice", text, gold=letter) == float(letter == expected), text


@pytest.mark.parametrize(
    ("text", "fields", "expected"),
    [
        ("one two three", {"least": 3, "most": 3}, RIGHT),
        ("one two", {"least": 3}, WRONG),
        ("don't well-known", {"most": 2}, RIGHT),
        ("äöü", {"unit": "characters", "most": 3}, RIGHT),
        ("One. Two! Three?", {"unit": "sentences", "least": 3, "most": 3}, RIGHT),
        ("Dr. Who met J. Doe at 3.5 km. He left", {"unit": "sentences", "most": 2}, RIGHT),
        ("Dr. Who met J. Doe at 3.5 km. He left", {"unit": "sentences", "most": 1}, WRONG),
        ("The answer is no. Cats, dogs, etc. Yes.", {"unit": "sentences", "least": 3}, RIGHT),
        ("No. 5 and the U.S. army, Inc. or not", {"unit": "sentences", "most": 1}, RIGHT),
        ("It is vitamin C. Then it ended.", {"unit": "sentences", "least": 2}, RIGHT),
        ("We made Plan B. It failed.", {"unit": "sentences", "least": 2}, RIGHT),
        ("George W. Bush met J. Doe.", {"unit": "sentences", "most": 1}, RIGHT),
        ("He went to Washington, D.C. yesterday.", {"unit": "sentences", "most": 1}, RIGHT),
        ("1. One thing\n2. Another thing", {"unit": "sentences", "most": 2}, RIGHT),
        ('"Really?" she asked... "Yes."', {"unit": "sentences", "most": 3}, RIGHT),
        ("一个。两个!三个？", {"unit": "sentences", "least": 2}, RIGHT),
        ("a\n\nb\n \nc", {"unit": "paragraphs", "least": 3, "most": 3}, RIGHT),
        ("a\n\nb", {"unit": "lines", "least": 2, "most": 2}, RIGHT),
        ("", {"least": 1}, WRONG),
        ("a", {"least": 3, "most": 2}, NOBODY_KNOWS),
    ],
)
def test_length(text, fields, expected):
    assert score("length", text, **fields) == expected


@pytest.mark.parametrize(
    ("text", "language", "expected"),
    [
        (CAPITAL, "en", RIGHT),
        (CAPITAL, "eng_Latn", RIGHT),
        (CAPITAL, "de", WRONG),
        ("Das ist ein ganz normaler deutscher Satz über das Wetter.", "de", RIGHT),
        ("这是一个关于天气和工作的普通句子，没有别的意思。", "zh", RIGHT),
        ("Это обычное предложение о погоде и о работе.", "ru", RIGHT),
        ("12345 !!!", "en", WRONG),
        ("", "en", WRONG),
        (f"```python\nwhile True: print(x)\n```\n{CAPITAL}", "en", RIGHT),
        (CAPITAL, "klingon", NOBODY_KNOWS),
    ],
)
def test_language(text, language, expected):
    assert score("language", text, language=language) == expected


PERSON = {"type": "object", "required": ["age"], "properties": {"age": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("text", "fields", "expected"),
    [
        ('{"age": 3}', {}, RIGHT),
        ('{"age": 3}', {"schema": PERSON}, RIGHT),
        ('```json\n{"age": 3}\n```', {"schema": PERSON}, RIGHT),
        ('```\n{"age": 3}```', {"schema": PERSON}, RIGHT),
        ('```json\r\n{"age": 3}\r\n```', {"schema": PERSON}, RIGHT),
        ('```json {"age": 3} ```', {"schema": PERSON}, RIGHT),
        ("{}", {"schema": {"$ref": "#"}}, NOBODY_KNOWS),
        (
            "[1]",
            {"schema": {"$defs": {"n": {"type": "integer"}}, "items": {"$ref": "#/$defs/n"}}},
            RIGHT,
        ),
        (
            '["1"]',
            {
                "schema": {
                    "definitions": {"n": {"type": "integer"}},
                    "items": {"$ref": "#/definitions/n"},
                }
            },
            WRONG,
        ),
        ("[[]]", {"schema": {"$id": "http://a/b", "items": {"$ref": "b"}, "type": "array"}}, RIGHT),
        (
            "[1]",
            {
                "schema": {
                    "items": {"$ref": "#n"},
                    "$defs": {"n": {"$anchor": "n", "type": "string"}},
                }
            },
            WRONG,
        ),
        ('{"$ref": 1}', {"schema": {"properties": {"$ref": {"const": {"$ref": "x"}}}}}, WRONG),
        ('Here: {"age": 3}', {"schema": PERSON}, WRONG),
        ('{"age": "3"}', {"schema": PERSON}, WRONG),
        ("{}", {"schema": PERSON}, WRONG),
        ("{'age': 3}", {"schema": PERSON}, WRONG),
        ('{"age": NaN}', {}, WRONG),
        ('{"age": 3', {}, WRONG),
        ("", {}, WRONG),
        ("[" * 100_000, {}, WRONG),
        ("3", {"equals": 3.0}, RIGHT),
        ("true", {"equals": 1}, WRONG),
        ('{"b": [1], "a": null}', {"equals": {"a": None, "b": [1]}}, RIGHT),
        ('{"a": 1}', {"equals": {"a": 1, "b": 2}}, WRONG),
        ("null", {"equals": None}, RIGHT),
        ("{}", {"schema": {"type": "thing"}}, NOBODY_KNOWS),
        ("{}", {"schema": {"$ref": "http://127.0.0.1:9/x.json"}}, NOBODY_KNOWS),
    ],
)
def test_json(text, fields, expected):
    assert score("json", text, **fields) == expected


@pytest.mark.parametrize(
    ("text", "thinks", "does_not"),
    [
        ("<think>\nplan\n</think>\n\nanswer", RIGHT, WRONG),
        ("\n<think>plan</think>answer", RIGHT, WRONG),
        ("<think>\n\n</think>\n\nanswer", WRONG, RIGHT),
        ("<think></think>answer", WRONG, RIGHT),
        ("answer", WRONG, RIGHT),
        ("", WRONG, WRONG),
        ("<think>plan</think>\n", WRONG, WRONG),
        ("<think>\n\n</think>\n", WRONG, WRONG),
        ("<think>plan", WRONG, WRONG),
        ("plan</think>answer", WRONG, WRONG),
        ("well <think>plan</think>answer", WRONG, WRONG),
        ("<think>a<think>b</think></think>answer", WRONG, WRONG),
        ("<think>a</think><think>b</think>answer", WRONG, WRONG),
        ("<think>a</think>answer</think>", WRONG, WRONG),
        ("</think>a<think>answer", WRONG, WRONG),
    ],
)
def test_format_of_the_think_block(text, thinks, does_not):
    assert score("think_format", text, mode="think") == thinks
    assert score("think_format", text, mode="no_think") == does_not


NUMBERS = {"numbers": [3, 7, 25, 50], "target": 75}


@pytest.mark.parametrize(
    ("text", "fields", "expected"),
    [
        ("50 + 25", NUMBERS, RIGHT),
        ("25 * 3", NUMBERS, RIGHT),
        ("25 * 3 = 75", NUMBERS, RIGHT),
        ("75 = 25 x 3", NUMBERS, RIGHT),
        ("25 * 3 = 80", NUMBERS, WRONG),
        ("25 * 3 = 50 + 25", NUMBERS, WRONG),
        ("(50 - 25) * 3 = 25 * 3 = 75", NUMBERS, RIGHT),
        ("\\boxed{(50 - 25) \\times 3 = 25 \\times 3 = 75}", NUMBERS, RIGHT),
        ("(50 - 25) * 3 = 24 * 3 = 75", NUMBERS, WRONG),
        ("(50 - 25) * 3 = 25 * 3 = 74", NUMBERS, WRONG),
        ("(50 - 25) * 5 = 25 * 3 = 75", NUMBERS, WRONG),
        ("(50 - 25) * 3 = 25 * 3 =", NUMBERS, WRONG),
        ("So we take\n\n**Answer:** 25 × 3 = 75", NUMBERS, RIGHT),
        ("\\boxed{25 \\times 3}", NUMBERS, RIGHT),
        ("\\boxed{\\frac{50}{25} \\cdot 3} ", NUMBERS | {"target": 6}, RIGHT),
        ("<answer>(50 - 25) * 3</answer>", NUMBERS, RIGHT),
        ("25 + 50\nno: 25 + 3", NUMBERS, WRONG),
        ("25 + 25 + 25", NUMBERS, WRONG),
        ("75", NUMBERS, WRONG),
        ("50 + 20 + 5", NUMBERS, WRONG),
        ("50 25 +", NUMBERS, WRONG),
        ("(50 + 25", NUMBERS, WRONG),
        ("50 / (3 - 3)", {"numbers": [50, 3, 3], "target": 0}, WRONG),
        ("3 ** 2", {"numbers": [3, 2], "target": 9}, WRONG),
        ("9**9**9**9", {"numbers": [9, 9, 9, 9], "target": 9}, WRONG),
        ("__import__('os').system('id') or 6", {"numbers": [2, 3], "target": 6}, WRONG),
        ("2 * 3 if True else 0", {"numbers": [2, 3], "target": 6}, WRONG),
        ("-2 + 8", {"numbers": [2, 8], "target": 6}, RIGHT),
        ("8 / 3 * 3", {"numbers": [8, 3, 3], "target": 8}, RIGHT),
        ("The final sum is 25 * 3 = 75.", NUMBERS, RIGHT),
        ("The final sum is **25 * 3 = 75**.", NUMBERS, RIGHT),
        ("\\(25 \\times 3 = 75\\)", NUMBERS, RIGHT),
        ("\\[25 \\times 3 = 75\\]", NUMBERS, RIGHT),
        ("1. 25*3 = 75", NUMBERS, RIGHT),
        ("- 25*3 = 75", NUMBERS, RIGHT),
        ("25*3 = 75 ✓", NUMBERS, RIGHT),
        ("\\boxed{\\text{25*3}}", NUMBERS, RIGHT),
        ("\\boxed{25 \\ast 3}", NUMBERS, RIGHT),
        ("(50-25)*3 = 75\nResult: 75", NUMBERS, RIGHT),
        ("(50-25)*3 = 75\n\nTarget: 75", NUMBERS, RIGHT),
        ("25*3 = 76\n75", NUMBERS, WRONG),
        ("25*3 = 75\nSo there is no way to do it, I give up.", NUMBERS, WRONG),
        ("(" * 400 + "25*3" + ")" * 400, NUMBERS, RIGHT),
        ("(1+" * 200 + "1" + ")" * 200, {"numbers": [1] * 201, "target": 201}, WRONG),
        ("50 + 25", NUMBERS | {"all_numbers": True}, WRONG),
        ("50 + 25 + 7 - 7", NUMBERS | {"numbers": [50, 25, 7, 7], "all_numbers": True}, RIGHT),
        ("", NUMBERS, WRONG),
        ("(" * 5000, NUMBERS, WRONG),
        ("1 + 1", {"numbers": [], "target": 2}, NOBODY_KNOWS),
    ],
)
def test_countdown(text, fields, expected):
    assert score("countdown", text, **fields) == expected


@st.composite
def expressions(draw):
    """Numbers, an expression of all of them, and its value as Python counts it."""
    numbers = draw(st.lists(st.integers(1, 99), min_size=2, max_size=6))
    parts = [str(number) for number in numbers]
    while len(parts) > 1:
        place = draw(st.integers(0, len(parts) - 2))
        sign = draw(st.sampled_from("+-*"))
        parts[place : place + 2] = [f"({parts[place]} {sign} {parts[place + 1]})"]
    return numbers, parts[0], eval(parts[0])


@given(expressions(), st.integers(1, 9))
def test_countdown_counts_as_python_does(made, other):
    numbers, text, value = made
    spec = {"numbers": numbers, "target": value, "all_numbers": True}
    assert score("countdown", text, **spec) == RIGHT
    assert score("countdown", text, **(spec | {"target": value + other})) == WRONG
    assert score("countdown", f"{text} + {other}", numbers=numbers, target=value + other) == WRONG


def test_thinking_is_no_answer_and_an_answer_that_never_left_it_is_wrong():
    for answer, expected in [
        ("<think>\n41\n</think>\n\n42", RIGHT),
        ("<think>\n42\n</think>\n\n41", WRONG),
        ("<think>\n42", WRONG),
        ("41</think>42", RIGHT),
        ("<think>\n\n</think>\n\n42", RIGHT),
        ("<think>a</think>42<think>42", WRONG),
        ("42 <think>", WRONG),
    ]:
        assert score("numeric", answer, gold=42) == expected, answer


def test_every_spec_of_several_has_to_find_the_answer_right():
    specs = [{"kind": "language", "language": "en"}, {"kind": "length", "most": 20}]
    assert score("every", CAPITAL, specs=specs) == RIGHT
    judged = verdict({"kind": "every", "specs": specs}, CAPITAL * 3)
    assert judged.score == WRONG and judged.reason.startswith("length: ")


def test_a_letter_with_its_accent_is_one_however_it_is_encoded():
    one, two = "caf\u00e9", "cafe\u0301"
    for ours, theirs in ((one, two), (two, one)):
        assert score("exact", theirs, gold=ours) == RIGHT
        assert score("exact", theirs, gold=["x", ours]) == RIGHT
        assert score("json", f'{{"{theirs}": 1}}', equals={ours: 1}) == RIGHT
        assert score("ifeval/keywords:existence", f"The {theirs} is", keywords=[ours]) == RIGHT
        forbidden = {"forbidden_words": [ours]}
        assert score("ifeval/keywords:forbidden_words", f"The {theirs} is", **forbidden) == WRONG
        assert score("length", theirs, unit="characters", least=4, most=4) == RIGHT


def test_marks_of_emphasis_hide_no_forbidden_word():
    for text, expected in [("_rain_", WRONG), ("__Rain__", WRONG), ("train", RIGHT)]:
        words = {"forbidden_words": ["rain"]}
        assert score("ifeval/keywords:forbidden_words", text, **words) == expected


def test_a_part_that_judges_thinking_gets_it_and_the_others_do_not():
    thinks, plain = "<think>long, yes</think>\n\nno", "no"
    for mode, text, expected in [
        ("think", thinks, RIGHT),
        ("no_think", thinks, WRONG),
        ("think", plain, WRONG),
        ("no_think", plain, RIGHT),
    ]:
        specs = [{"kind": "think_format", "mode": mode}, {"kind": "exact", "gold": "no"}]
        for nested in (specs, [{"kind": "every", "specs": specs}]):
            assert score("every", text, specs=nested) == expected
    comma = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    assert score("ifeval", thinks, **comma) == RIGHT
    assert score("ifeval", "<think>no", **comma) == WRONG


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"kind": "every", "specs": []}, "empty list"),
        ({"kind": "ifeval", "instruction_id_list": [], "kwargs": []}, "is empty"),
        ({"kind": "ifeval/keywords:existence", "keywords": []}, "empty list"),
        ({"kind": "ifeval/keywords:forbidden_words", "forbidden_words": []}, "empty list"),
        ({"kind": "nummeric", "gold": 1}, "did you mean numeric"),
        ({"kind": "xyz"}, "valid: .*choice, exact, numeric"),
        ({}, "kind = None"),
        ({"kind": ["exact"]}, "is no kind"),
        ({"kind": "numeric", "gold": 1, "tolerence": 1}, "did you mean tolerance"),
        ({"kind": "numeric"}, "needs gold"),
        ({"kind": "numeric", "gold": True}, "valid: a number or a text"),
        ({"kind": "numeric", "gold": "one"}, "is no number"),
        ({"kind": "exact", "gold": [1]}, "a list, each of it a text"),
        ({"kind": "exact", "gold": []}, "empty list"),
        ({"kind": "choice", "gold": "AB"}, "one letter"),
        ({"kind": "length", "unit": "tokens"}, '"words" or "characters"'),
        ({"kind": "length", "least": 1.5}, "a whole number"),
        ({"kind": "length", "least": 2, "most": 1}, "least <= most"),
        ({"kind": "language", "language": "xx"}, "known"),
        ({"kind": "json", "schema": {"type": 3}}, "no JSON Schema"),
        ({"kind": "json", "schema": {"$ref": "#"}}, "without an end"),
        ({"kind": "json", "schema": {"$ref": "#/$defs/x"}}, "outside of itself"),
        (
            {"kind": "json", "schema": {"properties": {"a": {"$ref": "#/$defs/x"}}}},
            "outside of itself",
        ),
        (
            {"kind": "json", "schema": {"items": {"anyOf": [{"$ref": "b.json"}]}}},
            "outside of itself",
        ),
        (
            {"kind": "json", "schema": {"$defs": {"b": {"not": {"$ref": "#c"}}}, "type": "object"}},
            "outside of itself",
        ),
        ({"kind": "countdown", "numbers": [], "target": 3}, "needs numbers"),
        ({"kind": "countdown", "numbers": [1.5], "target": 3}, "a whole number"),
        ({"kind": "every", "specs": [{"kind": "exact"}]}, "verifier exact needs gold"),
    ],
)
def test_a_spec_that_nothing_could_be_judged_by_is_refused_in_one_line(spec, message):
    with pytest.raises(ConfigError) as error:
        check_spec(spec)
    assert "\n" not in str(error.value)
    assert re.search(message, str(error.value)), error.value
    if spec.get("kind") != "every":
        assert verdict(spec, "1").score is NOBODY_KNOWS


@pytest.mark.parametrize(
    ("text", "expected", "is_open"),
    [
        (r"\boxed{a} \fbox{b}", ["a", "b"], False),
        (r"\boxed{\boxed{a} b}", [r"\boxed{a} b"], False),
        (r"\boxed{\frac{1}{2}}", [r"\frac{1}{2}"], False),
        (r"\boxed{\{1,2\}}", [r"\{1,2\}"], False),
        (r"\boxed{a \boxed{b}", ["b"], False),
        (r"\boxed{b} \boxed{a", ["b"], True),
        (r"} { \boxed {b} }", ["b"], False),
        (r"\boxed{\}", [], True),
        ("", [], False),
    ],
)
def test_boxes_are_the_outermost_closed_ones(text, expected, is_open):
    assert final.boxes(text) == expected and final.has_open_box(text) == is_open


def test_boxes_of_a_long_text_are_found_in_one_pass():
    """Quadratic time would be minutes."""
    text = "\\boxed{" * 100_000 + "5}" + "{" * 100_000
    assert final.boxes(text) == ["5"] and not final.has_open_box(text)


def test_no_text_is_too_strange_to_be_judged():
    strange = ["", "\0", "\ud800", "é" * 10_000, "{" * 5000, "\\boxed{" * 500, "1" * 5000]
    strange += ["(" * 3000, "-" * 3000, "1/" * 3000]
    specs = [
        {"kind": "exact", "gold": "x"},
        {"kind": "numeric", "gold": 7},
        {"kind": "choice", "gold": "A"},
        {"kind": "length", "least": 10**6},
        {"kind": "json", "schema": PERSON},
        {"kind": "think_format", "mode": "think"},
        {"kind": "countdown", "numbers": [1, 2], "target": 3},
    ]
    assert {spec["kind"] for spec in specs} <= set(KINDS)
    for spec in specs:
        for text in strange:
            assert verdict(spec, text).score == WRONG, (spec, text[:20])
