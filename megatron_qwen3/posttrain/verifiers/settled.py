"""Finds the final answer of a text about mathematics, in its own notation.

    settled("So it is \\boxed{7}.")                            # "7"
    settled("The solutions are $x=2$ and $x=3$.")              # "x=2, x=3"

It is the last box, or else, within the last <answer>…</answer> if any, the line after ####,
the text after `the answer is`, or the last formula.
"""

import re
from collections.abc import Sequence

from megatron_qwen3.posttrain.verifiers import final, notation

_TAIL = 10_000  # characters at the end, in which an answer without a box is searched for
_JOINT = re.compile(r"[\s$*)(]*(?:,?\s*(?:and|or)\b|,)[\s$*)(]*")
_SAID = re.compile(
    r"(?i:\b(?:answer|result|solution)s?\b[^.\n:=$]{0,60}?(?:\bis\b|\bare\b|:|=)(?:\s*:)?)"
    r"[\s*]*(?=\S)([^\n]+)"
)
_MARKED = re.compile(r"^[ \t]*####[ \t]*(\S.*)$", re.M)  # as in GSM8K
_FORMULA = re.compile(
    r"\$\$(.+?)\$\$|\$(?=\S)([^$\n]+?)(?<=\S)\$(?!\d)|\$ ([^$\n]+) \$|\\\((.+?)\\\)|\\\[(.+?)\\\]",
    re.S,
)
_ACCENTED = "\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff"  # Latin, not English
_WORD = re.compile(
    rf"(?<![\\A-Za-z])[A-Za-z]{{2,}}(?![A-Za-z]*\()|[A-Za-z]*[{_ACCENTED}]|{notation.FOREIGN}"
)
_SENTENCE_END = r"(?<=[^\d.])\.(?:\s|$)|\.\s+(?=[A-Z])|[!?](?:\s|$)|[。।！？]"
_FUNCTIONS = ("sin", "cos", "tan", "log", "ln", "exp", "pi", "sqrt", "mod", "or", "and")


def settled(answer: str) -> str | None:
    """The final answer, in its own notation; None where there is none, or a box is cut off."""
    if final.has_open_box(answer):
        return None
    if spans := final.box_spans(answer):
        return _joined(answer, spans) or None
    answer = final.tagged(answer[-_TAIL:])
    if marked := _MARKED.findall(answer):
        return str(marked[-1]).strip()
    said = _SAID.findall(answer)
    found = _first_formula(said[-1]) if said else _last_formula(answer)
    is_word = len(answer.split()) == 1
    return found or (answer.strip() if is_word else None)


def _joined(answer: str, spans: Sequence[tuple[int, int, str]]) -> str:
    """The last box, with earlier ones that are joined to it as one answer."""
    contents = [spans[-1][2]]
    for (_, end, content), (start, _, _) in zip(spans[-2::-1], spans[:0:-1], strict=True):
        if not _JOINT.fullmatch(answer[end:start]):
            break
        contents.insert(0, content)
    return ", ".join(contents)


def _inside(environment: re.Match[str]) -> str:
    return "".join(group for group in environment.groups() if group).strip()


def _first_formula(text: str) -> str:
    """The formula at the start of a line, or its words up to the end of the sentence."""
    environments = list(_FORMULA.finditer(text))
    if environments and not environments[0].start():
        row = [environments[0]]
        for one in environments[1:]:
            if not _JOINT.fullmatch(text[row[-1].end() : one.start()]):
                break
            row.append(one)
        return ", ".join(map(_inside, row))
    sentence = re.split(_SENTENCE_END, text)[0].strip()
    for word in _WORD.finditer(sentence):
        if word.group().lower() not in _FUNCTIONS and word.start() > 0:
            head = sentence[: word.start()].strip()
            return head if re.search(r"\d|\\", head) else sentence
    return sentence.strip("*").strip()


def _last_formula(text: str) -> str:
    """The last formula in dollars or brackets of LaTeX, else the last run of words with a
    number."""
    environments = list(_FORMULA.finditer(text))
    if environments and not re.search(r"\d", text[environments[-1].end() :]):
        return _last_row(text, environments)
    runs: list[list[str]] = []
    for line in re.sub(r"\*\*|#|<<[^<>]*>>", " ", text).splitlines():
        runs += _runs(notation.spaced(line))
    with_numbers = [" ".join(run) for run in runs if re.search(r"\d|\\", " ".join(run))]
    if not with_numbers:
        return ""
    run = re.sub(r"^(?:(?:and|or)\b\s*)+", "", with_numbers[-1].rstrip(".,;:!?"))
    before, equals, after = run.rpartition("=")
    return after.strip() if equals and not re.search(r"[A-Za-z\\<>]", before) else run


_DENIED = re.compile(r"\s*(?:is|are)\s+(?:wrong|incorrect|false|not\b)")


def _last_row(text: str, environments: Sequence[re.Match[str]]) -> str:
    """The last formula, with earlier ones that `and` or `or` joins to it, or a comma if none of
    them has another name; "" where the words after it deny it."""
    rest = text[environments[-1].end() :]
    if re.search(r"\bno (?:real )?solutions?\b", rest):
        return r"\text{no solution}"
    if _DENIED.match(rest):
        return ""
    row = [_inside(environments[-1])]
    last = notation.named(row[0])[0]
    for one, after in zip(environments[-2::-1], environments[:0:-1], strict=True):
        joint = text[one.end() : after.start()]
        name = notation.named(_inside(one))[0]
        if not _JOINT.fullmatch(joint) or (name != last and not re.search("and|or", joint)):
            break
        row.insert(0, _inside(one))
    return ", ".join(row)


def _runs(line: str) -> list[list[str]]:
    """Runs of a line's words that may belong to formulas, divided by other words."""
    runs: list[list[str]] = [[]]
    for token in line.split():
        if _WORD.search(token) and token.lower() not in _FUNCTIONS and "\\" not in token:
            runs[-1] += re.findall(r"^\$?\d[\d.,]*", token)  # 25ml
            runs.append([])
        else:
            runs[-1].append(token)
        if token[-1] in ".:;!?" and runs[-1]:
            runs.append([])
    return runs
