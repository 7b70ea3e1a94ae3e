"""IFEval's 25 instructions: our checkers, beside those that the field uses.

Each row has the right verdict. if-verifiable, Google's own code, judges alike on all rows
but those of ARGUED, which say why it is wrong. It needs data of nltk to count sentences and words
in capitals; there the rows stand alone.
"""

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_qwen3.config import ConfigError
from megatron_qwen3.posttrain.verifiers import check_spec, verdict
from megatron_qwen3.posttrain.verifiers.ifeval import INSTRUCTIONS

GERMAN = "Das ist ein ganz normaler deutscher Satz über das Wetter und die Arbeit."
ENGLISH = "This is a perfectly ordinary English sentence about the weather."
NEEDS_DATA = ("length_constraints:number_sentences", "change_case:capital_word_frequency")

# instruction, its fields, then texts that follow it and texts that do not
# fmt: off
ROWS = [
    (
        "keywords:existence",
        {"keywords": ["river", "stone"]},
        ["A river, a stone.", "RIVER STONE", "Rivers: river and\nstone"],
        ["A river.", "", "driver and stone"],
    ),
    ("keywords:existence", {"keywords": ["c++", "a b"]}, ["I like C++ and a  b"], ["c and ab"]),
    ("keywords:existence", {"keywords": ["天气"]}, ["今天天气很好"], ["今天很好"]),
    (
        "keywords:forbidden_words",
        {"forbidden_words": ["bad", "so so"]},
        ["All is good.", "He wore a badge."],
        ["That is Bad.", "bad", "It is so so."],
    ),
    (
        "keywords:frequency",
        {"keyword": "cat", "frequency": 3, "relation": "at least"},
        ["cat cat, and a Cat", "cat cat cat cat"],
        ["cat and cat", "concatenation cat cat"],
    ),
    (
        "keywords:frequency",
        {"keyword": "cat", "frequency": 2, "relation": "less than"},
        ["one cat", "a dog", "category cat"],
        ["cat cat", "cat cat cat"],
    ),
    (
        "keywords:letter_frequency",
        {"letter": "z", "let_frequency": 2, "let_relation": "at least"},
        ["Zigzag", "zzz"],
        ["zoo", "none"],
    ),
    (
        "keywords:letter_frequency",
        {"letter": "Z", "let_frequency": 2, "let_relation": "less than"},
        ["zoo", "none"],
        ["Zigzag"],
    ),
    ("language:response_language", {"language": "de"}, [GERMAN], [ENGLISH, "12345 !!!"]),
    ("language:response_language", {"language": "en"}, [ENGLISH], [GERMAN]),
    (
        "language:response_language",
        {"language": "hi"},
        ["यह मौसम और काम के बारे में एक साधारण वाक्य है।"],
        [ENGLISH],
    ),
    (
        "language:response_language",
        {"language": "fa"},
        ["این یک جملهٔ معمولی دربارهٔ آب و هوا و کار است."],
        [ENGLISH],
    ),
    (
        "language:response_language",
        {"language": "sw"},
        ["Hii ni sentensi ya kawaida kuhusu hali ya hewa na kazi ya kila siku."],
        [ENGLISH],
    ),
    (
        "language:response_language",
        {"language": "ja"},
        ["これは天気と仕事についての文です。"],
        [ENGLISH],
    ),
    (
        "change_case:english_capital",
        {},
        ["ALL CAPITAL LETTERS HERE PLEASE", "THE WEATHER IS FINE TODAY, AND WE STAY AT HOME."],
        [
            "Not all capitals",
            "DAS WETTER IST HEUTE SCHÖN UND WIR BLEIBEN ALLE ZU HAUSE.",
            "123",
            "",
        ],
    ),
    (
        "change_case:english_lowercase",
        {},
        ["the quick brown fox jumps over the lazy dog."],
        [
            "The quick brown fox.",
            "it is raining in Paris today.",
            "123 456",
            "das wetter ist heute schön und wir bleiben alle zu hause.",
        ],
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        ["This is VERY GOOD stuff", "NASA's report on COVID-19", "I and A"],
        ["VERY well", "Nothing", "McDONALD is one"],
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "less than"},
        ["VERY well", "none"],
        ["VERY GOOD"],
    ),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 2, "relation": "at least"},
        ["One here. Two here.", "Really? Yes!", "One.\n\nTwo", 'He said "go." She went.'],
        ["One here", "Dr. Smith paid 3.50 to J. Doe.", "Wait... no"],
    ),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 3, "relation": "less than"},
        ["One. Two.", "e.g. this one. And that one."],
        ["One. Two. Three.", "A b? C d! E f."],
    ),
    (
        "length_constraints:number_words",
        {"num_words": 5, "relation": "at least"},
        ["one two three four five", "one, two; three -- four five six"],
        ["one two three four", ""],
    ),
    (
        "length_constraints:number_words",
        {"num_words": 5, "relation": "less than"},
        ["one two three four"],
        ["one two three four five"],
    ),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        [
            "One.\n***\nTwo.",
            "One.\n***\nTwo.\n***",
            "***\nOne.\n***\nTwo.",
            "One. *** Two.",
            "One ***bold*** word.\n***\nTwo.",
        ],
        ["One.", "One.\n***\nTwo.\n***\nThree.", "One.\n***\n***\nTwo.", "One.\n\nTwo."],
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 3, "nth_paragraph": 2, "first_word": "Hello"},
        [
            "A.\n\nHello there.\n\nC.",
            'A.\n\n"hello," he said.\n\nC.',
            "A\nB\n\nHELLO!\n\nC",
            "A.\n\n\n\nHello.\n\nC.",
            "A.\n\n**Hello** you.\n\nC.",
        ],
        [
            "Hello.\n\nB.\n\nC.",
            "A.\n\nHello.",
            "A.\n\nHello.\n\nC.\n\nD.",
            "A.\n\nHelloo.\n\nC.",
            "",
        ],
    ),
    (
        "detectable_content:number_placeholders",
        {"num_placeholders": 2},
        ["Dear [name], meet at [place].", "[a] [b] [c]"],
        ["Dear [name].", "Dear [] and [ ].", "See [this](http://a.b) and [that](http://c.d)."],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.S."},
        ["Bye.\nP.S. call me", "Bye.\n\n**P.S.** call me", "Bye. p.s. call", "P. S. you"],
        ["Bye.", "HTTPS is safe"],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.P.S"},
        ["Bye.\nP.P.S call me", "Bye.\nP.P.S. call me"],
        ["Bye.\nP.S. call me"],
    ),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        [
            "* a\n* b",
            "- a\n- b\nend",
            "Here:\n  * a\n  * b",
            "- a\n- b\n---\nend",
            "* a\n* b\n* * *\n",
            "- a\n- b\n-5 degrees",
            "* a\n* b\n*really* so",
        ],
        ["* a", "* a\n* b\n* c", "a\nb", "```\n- x\n- y\n```"],
    ),
    (
        "detectable_format:constrained_response",
        {},
        ["My answer is yes.", "My answer is no.", "  My answer is maybe.\n"],
        ["Yes, sure.", "My answer is certainly not.", ""],
    ),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        ["*one* and *two*", "**one** and **two words**", "***one*** *two*", "* *one*\n* *two*"],
        ["*one* only", "2 * 3 * 4 * 5", "** ** and *x*", "* a\n* b"],
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "SECTION", "num_sections": 2},
        [
            "SECTION 1\na\nSECTION 2\nb",
            "**SECTION 1**\na\n**SECTION 2**\nb",
            "# SECTION 1\n# SECTION 2",
        ],
        [
            "SECTION 1\na",
            "Section 1\nSection 2",
            "SUBSECTION 1 SUBSECTION 2",
            "SECTION 1 SECTION 1",
        ],
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "Day", "num_sections": 3},
        ["Day 1: a\nDay 2: b\nDay 3: c", "Day 1\nDay 2\nDay 3\nDay 4"],
        ["Day 1\nDay 2"],
    ),
    (
        "detectable_format:json_format",
        {},
        ['{"a": [1, 2]}', '```json\n{"a": 1}\n```', "[1]", '```\n{"a": 1}\n```'],
        ['Here: {"a": 1}', "{'a': 1}", "", '{"a": 1', "NaN"],
    ),
    (
        "detectable_format:title",
        {},
        ["<<My poem>>\nText", "Text <<t>>"],
        ["# My poem", "<<>>", "<< >>", "<<a\nb>>"],
    ),
    (
        "combination:two_responses",
        {},
        ["One way.\n******\nAnother way.", "******\nOne\n******\nTwo\n******"],
        [
            "One way.\n******\nOne way.",
            "A\n******\nB\n******\nC",
            "A",
            "A\n***\nB",
            "A\n******\n",
            "A b\n******\nA  b",
        ],
    ),
    (
        "combination:repeat_prompt",
        {"prompt_to_repeat": "Write a haiku."},
        ["Write a haiku. Snow falls", "  write a HAIKU. Snow"],
        ["Snow falls. Write a haiku.", "Write a poem.", ""],
    ),
    (
        "startend:end_checker",
        {"end_phrase": "Any other questions?"},
        ["Done. Any other questions?", 'Done. "Any other questions?"', "any OTHER questions?\n"],
        ["Any other questions? No.", "Done.", ""],
    ),
    (
        "startend:quotation",
        {},
        ['"All of it."', ' "All of it." ', "“All of it.”"],
        ['"Only the start', "No", '"', '""', "'single'", 'A "part" of it'],
    ),
    ("punctuation:no_comma", {}, ["No commas at all."], ["One, two.", "一，二", ""]),
]
# fmt: on
# Rows where if-verifiable says otherwise, and why it is wrong.
ARGUED = {
    "driver and stone": "counts keywords within words",
    "I like C++ and a  b": "reads keywords as regular expressions",
    "concatenation cat cat": "counts keywords within words",
    "category cat": "counts keywords within words",
    "12345 !!!": "takes no language for any",
    "ALL CAPITAL LETTERS HERE PLEASE": "takes short texts in capitals for foreign",
    "One ***bold*** word.\n***\nTwo.": "takes bold italics for dividers",
    "A.\n\n\n\nHello.\n\nC.": "counts an empty paragraph",
    "A.\n\n**Hello** you.\n\nC.": "takes markup for a part of the word",
    "Dear [] and [ ].": "takes empty brackets for placeholders",
    "See [this](http://a.b) and [that](http://c.d).": "takes links for placeholders",
    "- a\n- b\n---\nend": "takes a rule for a bullet",
    "* a\n* b\n* * *\n": "takes a rule for a bullet",
    "- a\n- b\n-5 degrees": "takes a negative number for a bullet",
    "* a\n* b\n*really* so": "takes emphasis for a bullet",
    "```\n- x\n- y\n```": "takes lines of code for bullets",
    "* *one*\n* *two*": "takes a bullet for the beginning of emphasis",
    "SUBSECTION 1 SUBSECTION 2": "finds the word within another",
    "SECTION 1 SECTION 1": "counts one section twice",
    "NaN": "takes NaN for JSON",
    "A b\n******\nA  b": "takes other spaces for another response",
    "“All of it.”": "knows straight quotation marks only",
    '""': "takes two marks around nothing for an answer in them",
    "一，二": "knows the comma of one script only",
    "": "judges a text that is empty",
}
CASES = [
    (name, fields, text, expected)
    for name, fields, followed, not_followed in ROWS
    for texts, expected in ((followed, 1.0), (not_followed, 0.0))
    for text in texts
]


@pytest.mark.parametrize(("name", "fields", "text", "expected"), CASES)
def test_an_instruction_is_followed_or_not(name, fields, text, expected):
    spec = {"kind": f"ifeval/{name}"} | fields
    check_spec(spec)
    judged = verdict(spec, text)
    assert judged.score == expected, judged
    assert bool(judged.reason) == (expected == 0)


def theirs(name, fields, text):
    """The verdict of if-verifiable, where it has one."""
    langdetect = pytest.importorskip("langdetect")
    registry = pytest.importorskip("if_verifiable.ifeval.instructions_registry")
    langdetect.DetectorFactory.seed = 0
    checker = registry.INSTRUCTION_DICT[name](name)
    checker.build_description(**fields)
    return bool(checker.check_following(text))


@pytest.mark.parametrize(
    ("name", "fields", "text", "expected"), [case for case in CASES if case[0] not in NEEDS_DATA]
)
def test_if_verifiable_agrees_but_where_it_is_wrong(name, fields, text, expected):
    if text not in ARGUED:
        assert theirs(name, fields, text) == bool(expected)


def test_no_row_is_argued_with_for_nothing():
    differing = {t for n, f, t, e in CASES if n not in NEEDS_DATA and theirs(n, f, t) != bool(e)}
    assert {text for text, reason in ARGUED.items() if reason} == differing


def test_every_instruction_is_tested_and_there_are_25():
    assert {name for name, *_ in ROWS} == set(INSTRUCTIONS) and len(INSTRUCTIONS) == 25
    registry = pytest.importorskip("if_verifiable.ifeval.instructions_registry")
    assert set(INSTRUCTIONS) == set(registry.INSTRUCTION_DICT)


VOCABULARY = ("the", "cat", "saw", "a", "dog", "Zoo,", "run.", "big", "red")
WORDS = st.lists(st.sampled_from(VOCABULARY), max_size=30)


@settings(max_examples=60, deadline=None)
@given(WORDS, st.integers(0, 12), st.sampled_from(["at least", "less than"]))
def test_counts_compare_as_they_say(words, number, relation):
    text = " ".join(["word", *words])
    count = sum(word.strip(",.") == "cat" for word in words)
    followed = count >= number if relation == "at least" else count < number
    spec = {"kind": "ifeval/keywords:frequency", "keyword": "cat", "frequency": number}
    assert verdict(spec | {"relation": relation}, text).score == float(followed)
    spec = {"kind": "ifeval/length_constraints:number_words", "num_words": number}
    followed = (len(words) + 1 >= number) == (relation == "at least")
    assert verdict(spec | {"relation": relation}, text).score == float(followed)
    spec = {"kind": "ifeval/keywords:letter_frequency", "letter": "o", "let_frequency": number}
    followed = (text.count("o") >= number) == (relation == "at least")
    assert verdict(spec | {"let_relation": relation}, text).score == float(followed)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.randoms(use_true_random=False))
def test_parts_are_counted_however_many_there_are(number, asked, chance):
    def judge(name, text, **fields):
        return verdict({"kind": f"ifeval/{name}"} | fields, text).score

    parts = ["".join(chance.choices("abcdefg ", k=8)).strip() or "a" for _ in range(number)]
    exact, least = float(number == asked), float(number >= asked)
    paragraphs = "length_constraints:number_paragraphs"
    assert judge(paragraphs, "\n***\n".join(parts), num_paragraphs=asked) == exact
    bullets = "".join(f"* {part}\n" for part in parts)
    assert judge("detectable_format:number_bullet_lists", bullets, num_bullets=asked) == exact
    marked = " and ".join(f"*{part}*" for part in parts)
    highlighted = "detectable_format:number_highlighted_sections"
    assert judge(highlighted, marked, num_highlights=asked) == least
    brackets = " ".join(f"[{part}]" for part in parts)
    placeholders = "detectable_content:number_placeholders"
    assert judge(placeholders, brackets, num_placeholders=asked) == least
    sections = "\n".join(f"Part {k}\n{part}" for k, part in enumerate(parts, 1))
    spec = {"section_spliter": "Part", "num_sections": asked}
    assert judge("detectable_format:multiple_sections", sections, **spec) == least
    text, place = "\n\n".join(f"{part}." for part in parts), min(asked, number)
    spec = {"num_paragraphs": number, "nth_paragraph": place}
    first = re.match(r"\w+", parts[place - 1]).group()
    begins = "length_constraints:nth_paragraph_first_word"
    assert judge(begins, text, **spec, first_word=first) == 1.0
    assert judge(begins, text, **spec, first_word="zebra") == 0.0
    assert judge(begins, f"{text}\n\nMore.", **spec, first_word=first) == 0.0


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"kind": "ifeval/keywords:frequence"}, "did you mean ifeval/keywords:frequency"),
        ({"kind": "ifeval/keywords:existence", "keywords": "a"}, "a list, each of it a text"),
        ({"kind": "ifeval/keywords:existence", "keywords": [" "]}, "empty"),
        ({"kind": "ifeval/startend:end_checker"}, "needs end_phrase"),
        ({"kind": "ifeval/startend:end_checker", "end_phrase": ""}, "end_phrase is empty"),
        (
            {"kind": "ifeval/length_constraints:number_words", "num_words": 3, "relation": "over"},
            '"at least" or "less than"',
        ),
        (
            {"kind": "ifeval/length_constraints:number_words", "num_words": -3}
            | {"relation": "at least"},
            "valid: at least 0",
        ),
        ({"kind": "ifeval/language:response_language", "language": "xx"}, "none of the 119"),
        (
            {"kind": "ifeval/keywords:letter_frequency", "letter": "ab", "let_frequency": 1}
            | {"let_relation": "at least"},
            "one letter",
        ),
        ({"kind": "ifeval", "instruction_id_list": ["a"], "kwargs": []}, "1 instruction_id_list"),
        (
            {"kind": "ifeval", "instruction_id_list": ["startend:quote"], "kwargs": [{}]},
            "did you mean ifeval/startend:quotation",
        ),
    ],
)
def test_fields_that_no_text_could_be_judged_by_are_refused(spec, message):
    with pytest.raises(ConfigError, match=message):
        check_spec(spec)


def test_a_row_of_the_data_set_is_followed_where_all_its_instructions_are():
    row = {
        "kind": "ifeval",
        "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
        "kwargs": [
            {"num_words": None, "relation": None},
            {"num_words": 3, "relation": "at least", "keywords": None},
        ],
    }
    check_spec(row)
    assert verdict(row, "<think>\na, b\n</think>\n\none two three").score == 1.0
    judged = verdict(row, "one, two three")
    assert judged.score == 0.0
    assert judged.reason == "ifeval/punctuation:no_comma: with a comma"
    assert verdict(row, "one two").score == 0.0


def test_the_identification_of_languages_is_the_same_each_time():
    random.seed(3)
    spec = {"kind": "ifeval/language:response_language", "language": "de"}
    assert {verdict(spec, GERMAN).score for _ in range(20)} == {1.0}
