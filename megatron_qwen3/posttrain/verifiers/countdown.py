"""Verifies Countdown: reach a target with + - * / and given numbers, each used at most once.

    countdown("So: (50 - 25) * 3 = 75", numbers=[3, 7, 25, 50], target=75)     # "": right

A parser of its own reads the expression into exact fractions; nothing is ever evaluated as code. At
least one operation is required: the target alone is no expression.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import accumulate

from megatron_qwen3.posttrain.verifiers import final, notation
from megatron_qwen3.posttrain.verifiers.final import CannotJudge

_TOKEN = re.compile(r"\s*(?:(\d+)|([-+*/()]))")
_MOST_CHARACTERS, _MOST_DIGITS, _DEEPEST = 1000, 18, 100
_SPELLED = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-", "∗": "*", "⋅": "*"})
_LATEX = re.compile(r"\\(?:times|cdot|ast|div|left|right|[,;: ])(?![A-Za-z])")
_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")


def countdown(
    answer: str, *, numbers: list[int], target: int | str, all_numbers: bool = False
) -> str:
    """The answer's expression uses only `numbers`, each as often as it is given, and is `target`.

    The expression is the last box, else the content of <answer>…</answer>, else the last line that
    is an expression, alone or after a colon; `= target` may follow, and intermediate steps, as in
    `(50-25)*3 = 25*3 = 75`. all_numbers: every number must be used.
    """
    goal = final.number(str(target))
    if not numbers or goal is None:
        raise CannotJudge("countdown needs numbers, and a number as its target")
    found = expression_of(answer)
    if found is None:
        return "no expression is given as the answer"
    text, said = found
    try:
        reader = _Reader(notation.without_brackets(text))
        value = reader.value()
        others = [_Reader(notation.without_brackets(one)).value() for one in said]
    except ValueError as error:
        return f"{text!r:.80}: {error}"
    used, given = Counter(reader.numbers), Counter(numbers)
    if used - given:
        return f"uses {', '.join(map(str, (used - given).elements()))}, which is not there"
    if len(reader.numbers) < 2:
        return "a number alone is no expression"
    if all_numbers and given - used:
        return f"does not use {', '.join(map(str, (given - used).elements()))}"
    if wrong := [other for other in others if other != value]:
        return f"{text!r:.80} is {value}, and is said to be {wrong[0]}"
    return "" if value == goal else f"{text!r:.80} is {value}, not {goal}"


def expression_of(answer: str) -> tuple[str, list[str]] | None:
    """The answer's expression in plain signs, and the values that it claims for it."""
    if final.has_open_box(answer):
        return None
    tagged = re.findall(r"<answer>(.*?)</answer>", answer, re.S)
    whole = final.boxes(answer)[-1:] or tagged[-1:]
    if whole:
        return _sides(_plain(whole[0]))
    if _GIVES_UP.search(answer.strip().rpartition("\n")[2]):
        return None
    found = [sides for one in _candidates(answer) if _is_expression((sides := _sides(one))[0])]
    computed = [sides for sides in found if re.search(r"\d[\s)]*[-+*/]", sides[0])]
    return next(iter(computed or found), None)  # a bare result or target does not count


def _candidates(answer: str) -> Iterator[str]:
    """Lines from the last to the first: whole, after their last colon, after `is` or `use`."""
    for line in reversed(_plain(answer).splitlines()):
        line = _bare(re.sub(r"^\s*(?:[-*+]\s+|\d+[.)]\s+)(?=\S*\d)", "", line))
        if line:
            yield line
            yield _bare(line.rpartition(":")[2])
            if said := _SAID.search(line):
                yield _bare(said.group(1))


_SAID = re.compile(r"(?i)\b(?:is|use|with|as|by)\s+([^A-Za-z]*)$")
_GIVES_UP = re.compile(r"(?i)\b(?:give up|no way|not possible|impossible|no solution|cannot)\b")


def _bare(line: str) -> str:
    """A line without marks of emphasis, final stops and check marks."""
    return line.strip().strip("`$.*✓✔✅ ").strip()


def _is_expression(text: str) -> bool:
    return bool(re.fullmatch(r"[\d\s+*/()-]*\d[\d\s+*/()-]*", text))


def _plain(text: str) -> str:
    signs = {r"\times": "*", r"\cdot": "*", r"\ast": "*", r"\div": "/"}
    for _ in range(4):  # nested fractions
        text = _FRACTION.sub(r"((\1)/(\2))", text)
    text = re.sub(r"(?<=[\d)])\s*[xX]\s*(?=[\d(])", "*", text)
    text = re.sub(r"\\(?:text|mathrm|mbox)\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\\[()\[\]]", " ", text)
    text = _LATEX.sub(lambda match: signs.get(match.group(), " "), text)
    return text.translate(_SPELLED).replace("$", " ").strip()


def _sides(text: str) -> tuple[str, list[str]]:
    """`a + b = 75` gives `a + b` with claim 75; so does `75 = a + b`. Of several expressions with a
    number behind them the first counts, and the rest are its claims."""
    sides = [side.strip() for side in text.split("=")]
    others = [side for side in sides if not _is_number(side)]
    is_chain = len(others) == 1 or (not _is_number(sides[0]) and _is_number(sides[-1]))
    if len(sides) == 1 or not is_chain or not all(sides):
        return text.strip(), []
    sides.remove(others[0])
    return others[0], sides


def _is_number(text: str) -> bool:
    return re.fullmatch(r"-?\d{1,18}", text) is not None


@dataclass
class _Reader:
    """A recursive-descent parser: sum of products of signed numbers and brackets.

    `numbers`: those that were read, in order. ValueError for any other text.
    """

    text: str
    numbers: list[int] = field(default_factory=list)
    _tokens: list[str] = field(default_factory=list)

    def value(self) -> Fraction:
        if len(self.text) > _MOST_CHARACTERS:
            raise ValueError(f"longer than {_MOST_CHARACTERS} characters")
        depths = accumulate((one == "(") - (one == ")") for one in self.text)
        if max(depths, default=0) > _DEEPEST:
            raise ValueError(f"more than {_DEEPEST} brackets within brackets")
        place = 0
        while match := _TOKEN.match(self.text, place):
            self._tokens.append(match.group(1) or match.group(2))
            place = match.end()
        if self.text[place:].strip():
            raise ValueError(f"{self.text[place:].strip()[:20]!r} is no part of an expression")
        self._tokens.append("")  # the end
        self._tokens.reverse()
        result = self._sum()
        if self._next:
            raise ValueError(f"{self._next!r} is not expected there")
        return result

    @property
    def _next(self) -> str:
        return self._tokens[-1]

    def _sum(self) -> Fraction:
        total = self._product()
        while self._next in ("+", "-"):
            sign = self._tokens.pop()
            total += self._product() if sign == "+" else -self._product()
        return total

    def _product(self) -> Fraction:
        result = self._factor()
        while self._next in ("*", "/"):
            if self._tokens.pop() == "*":
                result *= self._factor()
            elif divisor := self._factor():
                result /= divisor
            else:
                raise ValueError("divides by 0")
        return result

    def _factor(self) -> Fraction:
        token = self._tokens.pop() if self._next else ""
        if token == "(":
            inside = self._sum()
            if not self._next or self._tokens.pop() != ")":
                raise ValueError("a bracket is not closed")
            return inside
        if token == "-":
            return -self._factor()
        if not token.isdecimal() or len(token) > _MOST_DIGITS:
            raise ValueError(f"{token or 'the end'} is not expected there")
        self.numbers.append(int(token))
        return Fraction(int(token))
