"""Finds the answer in a text: after the thinking, in the last box, the last number.

after_thinking("<think>…</think>\n\nIt is \\boxed{4}.")    # "It is \\boxed{4}."
boxes("\\boxed{4} or \\boxed{\\frac{1}{2}}")               # the contents, in order
number("1{,}234.5"), number("3/4"), number("1.2e-4"), number("50%")   # exact fractions
"""

import re
from fractions import Fraction

from megatron_qwen3.chat import END_THINK, THINK, split_thinking

_BRACE = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.S)
_THIN_SPACE = re.compile(r"(?<!\\)\\[,;:! ]|~|\{,\}|[\u00a0\u2009\u202f]|\\thinspace(?![A-Za-z])")
_GROUPS = re.compile(
    r"(?<![\d.])(\d{1,3})((?:,\d{3})+)(?![\d,])|(?<![\d.])\d{1,3}(?: \d{3})+(?!\d)"
)
_PLAIN = re.compile(r"([+-]?)\s*(\d+\.?\d*|\.\d+)(?:[eE]([+-]?\d{1,4}))?")
_TIMES_TEN = re.compile(
    r"\s*(?:\\times|\\cdot|×|·|\*)\s*10\s*(?:\^|\*\*)\s*(?:\{\s*([+-]?\d{1,4})\s*\}|([+-]?\d{1,4}))"
)
_FRACTION = re.compile(
    r"([+-]?)\s*\\[dt]?frac\s*(?:\{\s*(\d+)\s*\}|(\d))\s*(?:\{\s*(\d+)\s*\}|(\d))"
)
_MIXED = re.compile(r"(-?)(\d+)(?: +(?=\d+/\d+$)|\s*(?=\\[dt]?frac))(.+)")
_DIGITS = 400  # most digits of a number; longer ones are no sensible answers


class CannotJudge(ValueError):
    """The spec is invalid, or the verifier cannot decide; the text has the reason."""


def after_thinking(text: str) -> str | None:
    """The answer without the thinking; None where the text never leaves its thinking."""
    _, answer = split_thinking(text)
    return None if THINK in answer or (THINK in text and END_THINK not in text) else answer


def tagged(text: str) -> str:
    """The content of the last <answer>…</answer>; the whole text without such tags."""
    found = re.findall(r"<answer>(.*?)</answer>", text, re.S)
    return str(found[-1]).strip() if found else text.removeprefix("<answer>")


def boxes(text: str) -> list[str]:
    """The contents of every `\\boxed{…}` or `\\fbox{…}` that is closed, outermost only."""
    return [content for _, _, content in box_spans(text)]


def box_spans(text: str) -> list[tuple[int, int, str]]:
    """(start, end, content) of each box."""
    outer: list[tuple[int, int, str]] = []
    for start, inside, end in _all_boxes(text):
        if end is None:
            continue
        while outer and outer[-1][0] > start:  # boxes within this one
            outer.pop()
        outer.append((start, end, text[inside : end - 1].strip()))
    return outer


def has_open_box(text: str) -> bool:
    """Whether the last box is never closed, as in a truncated answer."""
    return any(end is None for *_, end in [max(_all_boxes(text), default=(0, 0, 0))])


def _all_boxes(text: str) -> list[tuple[int, int, int | None]]:
    """(start, start of its content, end) of each box, in the order in which they close; unclosed
    ones have no end. One pass, however many braces are open."""
    found: list[tuple[int, int, int | None]] = []
    opened: list[tuple[int, int] | None] = []
    for match in _BRACE.finditer(text):
        if match.group().endswith("}") and len(match.group()) == 1:
            box = opened.pop() if opened else None
            found += [(*box, match.end())] if box else []
        elif match.group() == "{":
            opened.append(None)
        elif match.group().endswith("{") and len(match.group()) > 2:
            opened.append((match.start(), match.end()))
    return found + [(*box, None) for box in opened if box]


def closing_brace(text: str, start: int) -> int | None:
    """The place where the brace that opened before `start` closes; None where it does not."""
    depth = 1
    for match in _BRACE.finditer(text, start):
        if match.group()[0] != "\\" or len(match.group()) > 2:
            depth += 1 if match.group().endswith("{") else -1
            if not depth:
                return match.start()
    return None


def number(text: str) -> Fraction | None:
    """The exact number that a text is: digits, maybe grouped, with a power of ten, a fraction or %.

    None for any other text. A comma must separate groups of three digits: `3,14` is no number.
    """
    text = joined_digits(text.strip().strip("$").strip().replace("−", "-"))
    text, is_percent = _without_percent(text)
    if len(text) > _DIGITS:
        return None
    value = _fraction(text)
    return value / 100 if value is not None and is_percent else value


def joined_digits(text: str) -> str:
    """Join groups of three digits to one number: `1,234`, `1 234`, `1\\,234`, `1{,}234`."""

    def join(match: re.Match[str]) -> str:
        return match.group().replace(",", "").replace(" ", "")

    return _GROUPS.sub(join, _THIN_SPACE.sub(lambda m: "," if m.group() == "{,}" else " ", text))


def _without_percent(text: str) -> tuple[str, bool]:
    rest = re.sub(r"\s*(?:\\?%|percent)$", "", text)
    return rest, rest != text


def _fraction(text: str) -> Fraction | None:
    if match := _MIXED.fullmatch(text):
        sign, whole, part = match.groups()
        rest = _fraction(part)
        value = Fraction(int(whole)) + rest if rest is not None and 0 < rest < 1 else None
        return -value if value is not None and sign == "-" else value
    sides = text.split("/")
    if len(sides) == 2:
        above, below = map(_decimal, sides)
        return above / below if above is not None and below else None
    if match := _FRACTION.fullmatch(text):
        sign, *digits = match.groups()
        above_digits, below_digits = (digit for digit in digits if digit)
        value = Fraction(int(above_digits), int(below_digits)) if int(below_digits) else None
        return -value if value is not None and sign == "-" else value
    return _decimal(text)


def _decimal(text: str) -> Fraction | None:
    text = text.strip()
    match = _PLAIN.match(text)
    if not match:
        return None
    sign, digits, exponent = match.groups()
    value = Fraction(digits.rstrip(".")) * Fraction(10) ** int(exponent or 0)
    rest = text[match.end() :]
    if rest:
        power = _TIMES_TEN.fullmatch(rest)
        if not power:
            return None
        value *= Fraction(10) ** int(power.group(1) or power.group(2))
    return -value if sign == "-" else value
