"""Verifies IFEval's 25 instructions that a program can check (Zhou et al. 2023, arXiv 2311.07911).

    INSTRUCTIONS["keywords:frequency"](text, keyword="cat", frequency=2, relation="at least")

Names and fields are those of Google's data set. Each check gives "" where the text follows the
instruction, else the reason why not; an empty text follows none. Faults of the published checkers
are corrected: keywords are whole words, a rule of dashes is no bullet, a link is no placeholder,
and a text without a language is in none of the languages. Nothing is downloaded: our own rules
count sentences and words (simple.py).
"""

import re
from collections.abc import Callable
from typing import Literal

from data_prep import scripts
from data_prep.languages import UNKNOWN
from megatron_qwen3.posttrain.verifiers import simple, structure
from megatron_qwen3.posttrain.verifiers.final import CannotJudge

Relation = Literal["at least", "less than"]
# Scripts that do not separate words.
_RUN_ON = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_FENCE = re.compile(r"^[ \t]*```.*?(?:^[ \t]*```[ \t]*$|\Z)", re.S | re.M)
_CONSTRAINED = ("My answer is yes.", "My answer is no.", "My answer is maybe.")


def _compared(count: int, relation: str, number: int, what: str) -> str:
    if number < 0:
        raise CannotJudge(f"{number} {what}; valid: at least 0")
    holds = count < number if relation == "less than" else count >= number
    return "" if holds else f"{count} {what}; asked: {relation} {number}"


def _occurrences(word: str, text: str) -> int:
    """How often a word or phrase occurs in a text as a whole, ignoring case."""
    words = word.split()
    if not words:
        raise CannotJudge("a keyword is empty")
    pattern = r"\s+".join(map(re.escape, words))
    separated = rf"[^\W_{_RUN_ON}]"  # `_` is a mark of emphasis
    before = rf"(?<!{separated})" if re.match(separated, words[0]) else ""
    after = rf"(?!{separated})" if re.search(rf"{separated}\Z", words[-1]) else ""
    return len(re.findall(before + pattern + after, text, re.I))


def _prose(text: str) -> str:
    return _FENCE.sub("", text)


# -- keywords and letters -----------------------------------------------------------------------


def existence(text: str, *, keywords: list[str]) -> str:
    if not keywords:
        raise CannotJudge("keywords is an empty list")
    missing = [word for word in keywords if not _occurrences(word, text)]
    return f"without {missing[0]!r:.60}" if missing else ""


def forbidden_words(text: str, *, forbidden_words: list[str]) -> str:
    if not forbidden_words:
        raise CannotJudge("forbidden_words is an empty list")
    found = [word for word in forbidden_words if _occurrences(word, text)]
    return f"with {found[0]!r:.60}" if found else ""


def frequency(text: str, *, keyword: str, frequency: int, relation: Relation) -> str:
    return _compared(_occurrences(keyword, text), relation, frequency, f"times {keyword!r:.60}")


def letter_frequency(text: str, *, letter: str, let_frequency: int, let_relation: Relation) -> str:
    if len(letter) != 1:
        raise CannotJudge(f"letter = {letter!r:.60}; valid: one letter")
    count = text.lower().count(letter.lower())
    return _compared(count, let_relation, let_frequency, f"times {letter!r}")


# -- language and case --------------------------------------------------------------------------


def english_capital(text: str) -> str:
    return "not all in capitals" if not text.isupper() else _in_english(text)


def english_lowercase(text: str) -> str:
    return "not all in small letters" if not text.islower() else _in_english(text)


def _in_english(text: str) -> str:
    """Identifies the text in small letters, as models were trained; few words prove nothing."""
    found = simple.language_of(text.lower())
    letters = scripts.census(text)
    if found == "eng_Latn" or (found == UNKNOWN and next(iter(letters), "") == "LATIN"):
        return ""
    return f"written in {found}, asked for eng_Latn"


def capital_word_frequency(text: str, *, capital_frequency: int, capital_relation: Relation) -> str:
    words = re.findall(r"[^\W_]+(?:[.'’&/-][^\W_]+)*", text)
    capitals = [word for word in words if re.sub(r"['’][A-Za-z]{1,2}$", "", word).isupper()]
    return _compared(len(capitals), capital_relation, capital_frequency, "words in capitals")


# -- length -------------------------------------------------------------------------------------


def number_sentences(text: str, *, num_sentences: int, relation: Relation) -> str:
    return _compared(simple.sentences(text), relation, num_sentences, "sentences")


def number_words(text: str, *, num_words: int, relation: Relation) -> str:
    return _compared(len(re.findall(r"\w+", text)), relation, num_words, "words")


def number_paragraphs(text: str, *, num_paragraphs: int) -> str:
    parts = [part.strip() for part in re.split(r"(?<!\S)\*\*\*(?!\S)", text)]
    inner = parts[bool(not parts[0]) : len(parts) - bool(not parts[-1])]
    if not all(inner):
        return "a paragraph is empty"
    return _exactly(len(inner), num_paragraphs, "paragraphs between ***")


def nth_paragraph_first_word(
    text: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str
) -> str:
    if not 1 <= nth_paragraph <= num_paragraphs:
        raise CannotJudge(f"nth_paragraph = {nth_paragraph}; valid: 1 to {num_paragraphs}")
    paragraphs = [part for part in re.split(r"\n\s*\n", text.strip()) if part.strip()]
    if fault := _exactly(len(paragraphs), num_paragraphs, "paragraphs"):
        return fault
    match = re.match(r"[\W_]*(\w+(?:['’-]\w+)*)", paragraphs[nth_paragraph - 1])
    word = match.group(1).casefold() if match else ""
    wanted = first_word.strip().casefold()
    if word == wanted or re.split(r"['’]", word)[0] == wanted:
        return ""
    return f"paragraph {nth_paragraph} begins with {word!r:.60}, asked: {wanted!r:.60}"


def _exactly(count: int, number: int, what: str) -> str:
    return "" if count == number else f"{count} {what}; asked: {number}"


# -- content and format -------------------------------------------------------------------------


def number_placeholders(text: str, *, num_placeholders: int) -> str:
    found = re.findall(r"\[[^\[\]\n]*[^\s\[\]][^\[\]\n]*\](?!\()", _prose(text))
    return _compared(len(found), "at least", num_placeholders, "placeholders")


def postscript(text: str, *, postscript_marker: str) -> str:
    marker = r"\s?".join(map(re.escape, re.findall(r"\w\.?|\S", postscript_marker)))
    found = re.search(rf"(?<![\w.]){marker}", text, re.I) if marker else None
    return "" if found else f"without {postscript_marker!r:.60}"


def number_bullet_lists(text: str, *, num_bullets: int) -> str:
    lines = re.findall(r"^[ \t]*[*+-][ \t]+\S.*$", _prose(text), re.M)
    rules = [line for line in lines if re.fullmatch(r"\s*([*-])(?:\s*\1){2,}\s*", line)]
    return _exactly(len(lines) - len(rules), num_bullets, "bullets")


def constrained_response(text: str) -> str:
    return "" if any(one in text for one in _CONSTRAINED) else "none of the three answers"


def number_highlighted_sections(text: str, *, num_highlights: int) -> str:
    pattern = r"(?<!\*)(\*{1,3})(?![\s*])([^*\n]*[^*\s])\1(?!\*)"
    found = re.findall(pattern, _prose(text))
    return _compared(len(found), "at least", num_highlights, "highlighted sections")


def multiple_sections(text: str, *, section_spliter: str, num_sections: int) -> str:
    name = re.escape(section_spliter.strip())
    if not name:
        raise CannotJudge("section_spliter is empty")
    found = set(re.findall(rf"(?<![^\W_]){name}\s?(\d+)", text))
    return _compared(len(found), "at least", num_sections, f"sections {section_spliter!r:.60}")


def json_format(text: str) -> str:
    return structure.json_document(text)


def title(text: str) -> str:
    return "" if re.search(r"<<[^\n<>]*[^\s<>][^\n<>]*>>", text) else "without a <<title>>"


# -- combinations, beginning and end ------------------------------------------------------------


def two_responses(text: str) -> str:
    parts = [" ".join(part.split()) for part in re.split(r"(?<!\*)\*{6}(?!\*)", text)]
    inner = parts[bool(not parts[0]) : len(parts) - bool(not parts[-1])]
    if len(inner) != 2 or not all(inner):
        return f"{len(inner)} responses; asked: 2"
    return "the responses are the same" if inner[0] == inner[1] else ""


def repeat_prompt(text: str, *, prompt_to_repeat: str) -> str:
    prompt, given = (" ".join(one.split()).casefold() for one in (prompt_to_repeat, text))
    if not prompt:
        raise CannotJudge("prompt_to_repeat is empty")
    return "" if given.startswith(prompt) else "does not begin with the request"


def end_checker(text: str, *, end_phrase: str) -> str:
    phrase = " ".join(end_phrase.split()).casefold()
    if not phrase:
        raise CannotJudge("end_phrase is empty")
    given = " ".join(text.split()).casefold()
    ends = given.endswith(phrase) or given.rstrip("\"'”’*_ ").endswith(phrase)
    return "" if ends else f"does not end with {end_phrase!r:.60}"


def quotation(text: str) -> str:
    given = text.strip()
    is_quoted = len(given) > 2 and given[0] in '"“' and given[-1] in '"”'
    return "" if is_quoted and given[1:-1].strip() else "not wrapped in double quotation marks"


def no_comma(text: str) -> str:
    return "with a comma" if re.search("[,\uff0c\u060c]", text) else ""


INSTRUCTIONS: dict[str, Callable[..., str]] = {
    "keywords:existence": existence,
    "keywords:forbidden_words": forbidden_words,
    "keywords:frequency": frequency,
    "keywords:letter_frequency": letter_frequency,
    "language:response_language": simple.language,
    "change_case:english_capital": english_capital,
    "change_case:english_lowercase": english_lowercase,
    "change_case:capital_word_frequency": capital_word_frequency,
    "length_constraints:number_sentences": number_sentences,
    "length_constraints:number_words": number_words,
    "length_constraints:number_paragraphs": number_paragraphs,
    "length_constraints:nth_paragraph_first_word": nth_paragraph_first_word,
    "detectable_content:number_placeholders": number_placeholders,
    "detectable_content:postscript": postscript,
    "detectable_format:number_bullet_lists": number_bullet_lists,
    "detectable_format:constrained_response": constrained_response,
    "detectable_format:number_highlighted_sections": number_highlighted_sections,
    "detectable_format:multiple_sections": multiple_sections,
    "detectable_format:json_format": json_format,
    "detectable_format:title": title,
    "combination:two_responses": two_responses,
    "combination:repeat_prompt": repeat_prompt,
    "startend:end_checker": end_checker,
    "startend:quotation": quotation,
    "punctuation:no_comma": no_comma,
}
