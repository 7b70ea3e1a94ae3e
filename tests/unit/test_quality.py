"""Rules drop text not written to be read, in languages with and without spaces, and in code."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep import characters, normalize, scripts
from data_prep.domains import domain_of
from data_prep.quality import JudgedText, judge, judge_code
from data_prep.repeats import Repeats
from data_prep.units import split
from tests import plain_quality, plain_text
from tests.judged import LINES, TEXTS

ENGLISH = (
    "The river rises in the hills of the north, where rain falls on most days of the year. For the "
    "first forty miles it runs through woods; below the mill (built in 1820) it becomes wide and "
    "slow.\nFarmers take water from it between May and September. An old law says how much each of "
    "them may take: two hours in the morning, and one in the evening.\nWhen snow melts late, the "
    "lower meadows stand under water until June, and storks come in great numbers."
)
CHINESE = (
    "这条河发源于北方的山区，那里一年中大部分日子都会下雨。最初的四十公里，河水穿过森林；到了一八二〇年建成的"
    "磨坊以下，河面变得宽阔而平缓。\n每年五月到九月，农民从河里取水灌溉田地。一条古老的法律规定了每户人家可以"
    "取用的水量：早上两个小时，傍晚一个小时。\n如果雪融化得晚，下游的草地到六月还泡在水里，许多白鹳会飞来觅食。"
)
AGAIN = (
    "Whoever buys two of these fine garden chairs before Monday gets a third one free, delivered "
    "to any house in town by our own people."
)
CODE = Path(__file__).read_text(encoding="utf-8")


def _judge(text: str, language: str = "eng_Latn") -> JudgedText:
    return judge(text, split(text), language)


@pytest.mark.parametrize(("text", "language"), [(ENGLISH, "eng_Latn"), (CHINESE, "zho_Hans")])
def test_prose_passes_with_scores_between_0_and_1(text: str, language: str) -> None:
    judged = _judge(text, language)
    assert judged.fault is None
    assert 0 < judged.quality <= 1
    assert 0 < judged.education <= 1


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("A short note.", "too short"),
        ("12/03 4.5 | 13/03 4.7 | " * 60, "few letters"),
        ("w q e r t y u i o p " * 30, "odd word lengths"),
        ("- " + ENGLISH.replace(". ", ".\n").replace("\n", "\n- "), "bullet points"),
        ("\n".join(f"{line} …" for line in ENGLISH.replace(", ", "\n").split("\n")), "cut off"),
        (ENGLISH.replace(" ", "\n"), "short lines"),
        (ENGLISH.replace(".", ""), "no sentences"),
        (f"{ENGLISH} Lorem ipsum dolor sit amet.", "placeholder"),
        ((ENGLISH + "\n") * 3, "repeated lines"),
        (ENGLISH + f" {AGAIN}" * 6, "repeated phrases"),
    ],
)
def test_each_rule_drops_what_it_is_there_for(text: str, fault: str) -> None:
    assert _judge(text) == JudgedText(fault, 0.0, 0.0)


def test_repetition_is_found_where_words_are_not_separated() -> None:
    advert = "点击这里领取今天的优惠券，然后把它送给住在河边磨坊里的朋友们。"
    again = "".join(f"{k}{advert}" for k in range(5))
    assert _judge(CHINESE + again, "zho_Hans").fault == "repeated phrases"


def test_long_words_are_usual_in_some_languages() -> None:
    words = "epäjärjestelmällisyydestä keskustelemattomuudelleen "
    text = "".join(f"{words[:-k]} {words[k:]} aihe{k} on {k}. " for k in range(1, 20))
    assert _judge(text, "fin_Latn").fault is None
    assert _judge(text, "vie_Latn").fault == "odd word lengths"


def test_code_is_judged_as_code() -> None:
    assert judge_code(CODE, split(CODE)).fault is None
    assert _judge_code("x = [" + "1234567, " * 400 + "]\n" + CODE) == "long lines"
    assert _judge_code("# Auto-generated, do not edit\n" + CODE) == "generated"
    assert _judge_code("a = 1\n") == "too short"


def _judge_code(text: str) -> str | None:
    return judge_code(text, split(text)).fault


@pytest.mark.parametrize(
    ("text", "domain"),
    [
        (CODE.partition("def _judge(")[2], "code"),
        ('int main(void) {\n  int x = 3;\n  if (x > 2) {\n    puts("x");\n  }\n}\n', "code"),
        (
            r"Let $x \in \mathbb{R}$ with $x^2 \leq 2$; then $\int_0^x t\,dt \leq 1$.",
            "stem",
        ),
        ("It costs $18 an hour, or $12 with $3 off for those who paid $5 before. " * 5, None),
        (ENGLISH, None),
        (CHINESE, None),
        ("", None),
    ],
)
def test_code_and_mathematics_are_recognised(text: str, domain: str | None) -> None:
    assert domain_of(text) == domain


def test_every_character_is_of_the_kinds_that_the_plain_rules_give_it() -> None:
    every = "".join(map(chr, range(0x110000)))
    marks = {match.start() for match in plain_quality._SENTENCE_MARK.finditer(every)}
    signs = {match.start() for match in plain_quality._EXPOSITION.finditer(every)}
    kinds = characters._kind_of_point()
    assert {ord(mark) for mark in characters.SENTENCE_MARKS} == marks
    assert {int(point) for point in (kinds == characters._A_SIGN).nonzero()[0]} == signs
    assert (kinds == characters._LETTER).tolist() == scripts.is_letter().tolist()
    assert characters.count(every).letters == scripts.count_letters(every)


@given(st.lists(st.sampled_from([*LINES, "i.e. e.g. 3.", "xe.g. (:)", "。」 . !?"])).map("".join))
def test_characters_are_counted_as_the_plain_expressions_find_them(text: str) -> None:
    counts = characters.count(text)
    assert counts.letters == scripts.count_letters(text)
    assert counts.blanks == sum(map(text.count, " \n\t"))
    assert counts.signs == len(plain_quality._EXPOSITION.findall(text))
    assert counts.sentences == len(plain_quality._SENTENCE_END.findall(text))


@given(st.lists(st.sampled_from(["a", "b", "c", "d", "河", "水"])), st.sampled_from([1, 2]))
def test_runs_that_repeat_are_measured_as_each_length_alone_would_be(
    words: list[str], scale: int
) -> None:
    units = split(" ".join(words))
    repeats, letters = Repeats(units), units.ends - units.starts
    for size in (2, 3, 4):
        plain = plain_quality._top_share(units, letters, size * scale)
        assert repeats.top_share(size * scale) == plain
    for size in range(5, 11):
        plain = plain_quality._repeated_share(units, letters, size * scale)
        assert repeats.share(size * scale) == plain


@given(TEXTS | st.text())
def test_text_is_normalized_split_and_given_a_domain_as_plainly_written(text: str) -> None:
    for is_code in (False, True):
        assert normalize.normalize(text, is_code) == plain_text.normalized(text, is_code)
    assert domain_of(text) == plain_text.domain_of(text)
    units = split(text)
    rows = zip(units.hashes, units.starts, units.ends, units.alone, strict=True)
    assert [(int(h), int(a), int(b), bool(c)) for h, a, b, c in rows] == plain_text.unit_hashes(
        text
    )


@given(st.text(" \t\u00a0\u3000\u2003\na\r&;\x85", max_size=20))
def test_blanks_and_line_ends_are_normalized_as_plainly_written(text: str) -> None:
    assert normalize.normalize(text) == plain_text.normalized(text)
