"""Verifies mathematics: the answer that a text settles on must equal the reference.

    math("<text> \\boxed{\\frac12}", gold="0.5")      # "": right; else why it is wrong

Only the text's last box is compared, or without a box its last formula. These rules come first, as
math-verify (0.9) gets them wrong; the algebra is left to it (algebra.py):

- several boxes are one answer only if `and`, `or` or a comma joins them; else the last counts;
- a number is exact: 0.3333333333 is not 1/3, and 1.41421356 is not the square root of 2;
- `1\\,234`, `1,234` and `1 234` are one number, `1.2e-4` is 0.00012, `3,14` is no number;
- 50 and 0.5 are both 50 %; a unit may be left out, but another one is wrong;
- a pair is no set, and no interval with other brackets; `0<x<1` is (0,1); pairs are ordered;
- digits with a base, as 101_2, are right only with that base; log without a base is ln or log_10;
- a power of more than 1000 digits equals no number of fewer digits, and is never computed;
- words are compared without regard to case; a time of day is no ratio, while 6:8 is 3:4.

The comparison runs in a worker process (pool.py), for math-verify hangs on some formulas.
"""

import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from math import gcd

from megatron_qwen3.posttrain.verifiers import algebra, final, magnitude, notation, settled
from megatron_qwen3.posttrain.verifiers.final import CannotJudge

_MOST_CHARACTERS = 4000  # of a final answer
_MOST_ITEMS = 200  # of a set or list


def math(answer: str, *, gold: str) -> str:
    """The final answer of a text equals `gold`, a formula in LaTeX, a number or words.

    CannotJudge where gold cannot be read as any of these.
    """
    algebra.check_installed()
    if not gold.strip() or len(gold) > _MOST_CHARACTERS:
        raise CannotJudge(f"gold = {gold!r:.80}; valid: a formula, a number or words")
    given = settled.settled(answer)
    if given is None:
        return "no answer is given"
    if len(given) > _MOST_CHARACTERS:
        return f"the answer has {len(given):,} characters"
    if is_same(gold, given):
        return ""
    if not is_readable(gold):
        raise CannotJudge(f"gold = {gold!r:.80} is no formula that can be read")
    return f"{given!r:.80} is not {gold!r:.80}"


def is_readable(gold: str) -> bool:
    """Whether the reference can be read, so that other notations of it are recognised."""
    text = notation.plain(gold)
    shapes = (notation.words_of, final.number, notation.in_base, notation.intervals, _ratio)
    if any(shape(text) is not None for shape in shapes):
        return True
    items = _items(text)
    if items:
        return all(map(is_readable, items))
    value, _ = notation.without_unit(notation.named(text)[1])
    is_number = final.number(value) is not None or magnitude.is_huge(value)
    return is_number or algebra.is_readable(value)


# -- the comparison ---------------------------------------------------------------------------


def is_same(gold: str, given: str) -> bool:
    """Whether two formulas, numbers, words or collections of them are the same answer."""
    ours, theirs = (notation.without_brackets(notation.plain(text)) for text in (gold, given))
    if not ours or not theirs:
        return False
    if ours == theirs:
        return True
    for rule in _RULES:
        is_equal = rule(ours, theirs)
        if is_equal is not None:
            return is_equal
    if magnitude.is_huge(ours) != magnitude.is_huge(theirs):
        return False  # without computing the larger one
    return algebra.is_same(ours, theirs)


def _words(gold: str, given: str) -> bool | None:
    wanted = notation.words_of(gold)
    bare = notation.unwrap(given).strip("(). ").casefold()
    if wanted is not None:
        return bare == wanted
    if re.fullmatch(r"\(?(?:\\text\{\(?)?([A-Z])\)?\}?\)?", gold):
        bare = re.sub(r"^([a-z])\s*[).:].*$", r"\1", bare, flags=re.S)  # a choice with its text
        return True if bare == notation.unwrap(gold).strip("(). ").casefold() else None
    return None


_LIMITS = frozenset(
    ("more", "less", "than", "least", "most", "over", "under", "greater", "fewer", "not", "no")
    + ("is", "are", "wrong", "incorrect", "above", "below", "between", "about")
)
_LEADING = re.compile(r"(\\(?:le|ge|ne|neq)(?![A-Za-z])|[<>]=?)")


def _limits(gold: str, given: str) -> bool | None:
    """`7 or more`, `\\ge 7` and `7 is wrong` are not 7, unless both sides say so."""
    signs = [match.group() if (match := _LEADING.match(text)) else "" for text in (gold, given)]
    if signs[0] != signs[1]:
        return False if any(signs) and not re.search("[A-Za-z]", given[3:] + gold[3:]) else None
    texts = [re.findall(r"\\(?:text|mathrm|mbox)\s*\{([^{}]*)\}", text) for text in (gold, given)]
    words = [set(re.findall("[a-z]+", " ".join(one).lower())) & _LIMITS for one in texts]
    return False if words[0] != words[1] else None


_GROUPED = re.compile(r"[-+]?\d{1,3}(?:,\d{3})+(?:\.\d+)?")


def _thousands(gold: str, given: str) -> bool | None:
    """`1,024` is one number, unless the other side is a list of two."""
    for one, other in ((gold, given), (given, gold)):
        is_list = len(_items(one)) == len(_items(other))
        if _GROUPED.fullmatch(one) and not is_list:
            joined = one.replace(",", "")
            return is_same(joined, other) if one is gold else is_same(other, joined)
    return None


def _units(gold: str, given: str) -> bool | None:
    (wanted, unit), (value, other) = notation.without_unit(gold), notation.without_unit(given)
    if not unit and not other:
        return None
    return not (unit and other and unit != other) and is_same(wanted, value)


def _bases(gold: str, given: str) -> bool | None:
    wanted, found = notation.in_base(gold), notation.in_base(given)
    if wanted is None:
        return found[0] == gold.upper() if found else None
    return wanted == found


def _names(gold: str, given: str) -> bool | None:
    """`x = 3` is 3; two names have to be equal, except names of functions."""
    if _items(gold) or _items(given):
        return None
    (name, wanted), (other, value) = notation.named(gold), notation.named(given)
    if not name and _is_equation(gold):
        return None if re.search(r"[=<>]|\\[lgn]e(?![A-Za-z])", given) else False
    if not other and _is_equation(given):
        if name and re.search("[A-Za-z]", wanted):  # y=2x+3 and y-2x=3
            return algebra.is_same(gold, given) or is_same(wanted, given)
        if _LINEAR.fullmatch(notation.split_top(given, "=")[0]):
            return False  # 2x=8 is not solved yet
    if not name and not other:
        return None
    if name and other and name != other and "(" not in name + other:
        return False
    return is_same(*(re.split(r"(?<![<>!])=", side)[-1] for side in (wanted, value)))


_LINEAR = re.compile(r"-?\d+\*?[A-Za-z](?:[+-]\d+)?|-?[A-Za-z][+-]\d+|-?\d+[+-]\d*[A-Za-z]")


def _is_equation(text: str) -> bool:
    """Whether it has two sides, with an equality sign outside of indices and brackets."""
    sides = notation.split_top(text, r"(?<![<>\\])=")
    return len(sides) > 1 and all(sides)


def _numbers(gold: str, given: str) -> bool | None:
    wanted, value = final.number(gold), final.number(given)
    if wanted is None or value is None:
        return None
    if wanted == value:
        return True
    if gold.endswith("%") != given.endswith("%"):  # 50 next to 50% counts percents
        return wanted * 100 == value if gold.endswith("%") else wanted == value * 100
    return None if "," in gold + given else False  # `1,234` may be a list


def _ratio(text: str) -> list[Fraction] | None:
    parts = [final.number(part) for part in text.split(":")]
    numbers = [part for part in parts if part is not None]
    return numbers if len(parts) > 1 and len(numbers) == len(parts) else None


def _ratios(gold: str, given: str) -> bool | None:
    wanted, found = _ratio(gold), _ratio(given)
    if wanted is None:
        return None
    if re.fullmatch(r"\d{1,2}(?::[0-5]\d){1,2}", gold) and not _is_reduced(wanted):
        return wanted == found  # a time of day
    if found is None:
        value = final.number(given)
        return len(wanted) == 2 and bool(wanted[1]) and value == wanted[0] / wanted[1]
    if len(wanted) != len(found):
        return False
    return all(a * found[0] == b * wanted[0] for a, b in zip(wanted, found, strict=True)) and (
        any(wanted) == any(found)
    )


def _is_reduced(numbers: Sequence[Fraction]) -> bool:
    return gcd(*(int(number) for number in numbers)) <= 1


def _intervals(gold: str, given: str) -> bool | None:
    """`0<x<1` is (0,1), and `x\\ge 2` is [2,\\infty)."""
    wanted, found = notation.intervals(gold), notation.intervals(given)
    if wanted is None and found is None:
        return None
    if wanted and found and wanted[0] != found[0]:
        return False
    sides = [side[1] if side else _union(text) for side, text in ((wanted, gold), (found, given))]
    if not all(sides):
        return None
    return _is_same_set(*sides) or None


def _union(text: str) -> list[str]:
    """The intervals of a union of one or more; [] where anything else is among them."""
    parts = notation.split_top(re.sub(r"^[A-Za-z]\\in ?", "", text), r"\\cup(?![A-Za-z])")
    pairs = [found for part in parts if (found := notation.bracketed(part))]
    are_intervals = all(p[0] != r"\{" and len(notation.split_top(p[1])) == 2 for p in pairs)
    return parts if len(pairs) == len(parts) and are_intervals else []


# -- collections: sets, lists, pairs ------------------------------------------------------------


def _collections(gold: str, given: str) -> bool | None:
    gold, given = (re.sub(r"^[A-Za-z]\\in(?![A-Za-z]) ?", "", text) for text in (gold, given))
    unions = _union(gold), _union(given)
    if all(unions) and max(map(len, unions)) > 1:
        return _is_same_set(*unions) or None
    if any(len(union) > 1 for union in unions):
        return None
    wanted, found = notation.bracketed(gold), notation.bracketed(given)
    ours, theirs = _items(gold), _items(given)
    if not ours and not theirs:
        return None
    if max(len(ours), len(theirs)) > _MOST_ITEMS:
        return False
    is_pair, is_set = (bool(wanted and wanted[0] != r"\{"), bool(found and found[0] == r"\{"))
    if is_pair and ours:
        return _is_same_pair(wanted, ours, found, theirs)
    if found and found[0] != r"\{" and theirs:
        is_list = not wanted and bool(ours)
        return is_list and found[0] + found[2] == "()" and _is_same_row(ours, theirs)
    if _are_named(ours) and len(ours) == len(theirs) and not any(map(_name, theirs)):
        return not is_set and _is_same_row(_values(ours), theirs)  # x=2,y=3 and 2,3
    ours, theirs = ours or [gold], theirs or [given]
    if not is_set and not wanted and _are_named(ours) and _are_named(theirs):
        return _is_same_row(sorted(ours), sorted(theirs))
    return _is_same_set(_values(ours), _values(theirs))


def _is_same_pair(
    wanted: tuple[str, str, str] | None,
    ours: list[str],
    found: tuple[str, str, str] | None,
    theirs: list[str],
) -> bool:
    """Compare pairs, tuples, intervals: order counts, and brackets if both may be intervals."""
    assert wanted is not None
    if found and found[0] == r"\{":
        return False
    if not found:  # 1,2 or x=1,y=2
        return wanted[0] + wanted[2] == "()" and _is_same_row(ours, theirs)
    if len(ours) == 2 and (wanted[0], wanted[2]) != (found[0], found[2]):
        return False
    return _is_same_row(ours, theirs)


def _items(text: str) -> list[str]:
    """The items of a set, tuple or list; [] for a single value."""
    found = notation.bracketed(text)
    if found is not None and (found[0] == r"\{" or len(notation.split_top(found[1])) > 1):
        return [item for part in notation.split_top(found[1]) for item in _both_signs(part)]
    joints = r",?\s*(?:\\(?:text|mathrm|mbox)\{\s*(?:and|or)\s*\}|\b(?:and|or)\b|\\lor(?![A-Za-z]))"
    parts = notation.split_top(text, rf"{joints}|,|;")
    items = [item for part in parts if part for item in _both_signs(part)]
    return items if len(items) > 1 else []


def _both_signs(text: str) -> list[str]:
    name, value = notation.named(text)
    if value.count(r"\pm") != 1:
        return [text]
    before, _, after = value.partition(r"\pm")
    return [f"{before}+{after}" if before else after, f"{before}-{after}"]


def _are_named(items: Sequence[str]) -> bool:
    """Whether each item has its own name: a point, not several values of one unknown."""
    names = [notation.named(item)[0] for item in items]
    return len(names) > 1 and all(names) and len(set(names)) == len(names)


def _name(item: str) -> str:
    return notation.named(item)[0]


def _values(items: Sequence[str]) -> list[str]:
    return [notation.named(item)[1] for item in items]


def _is_same_row(ours: list[str], theirs: list[str]) -> bool:
    """Compare item by item; named items are sorted by name."""
    if len(ours) != len(theirs):
        return False
    rows = [sorted(row) if _are_named(row) else row for row in (ours, theirs)]
    return all(is_same(one, other) for one, other in zip(*rows, strict=True))


def _is_same_set(ours: Sequence[str], theirs: Sequence[str]) -> bool:
    """Compare as sets: neither order nor repetition counts."""
    rest = list(theirs)
    for one in ours:
        same = [other for other in theirs if is_same(one, other)]
        if not same:
            return False
        rest = [other for other in rest if other not in same]
    return all(any(is_same(one, other) for one in ours) for other in rest)


# Tried in this order; a rule that returns None does not decide, and the next one is tried.
_RULES: tuple[Callable[[str, str], bool | None], ...] = (
    _words,
    _limits,
    _bases,
    _thousands,
    _units,
    _names,
    _numbers,
    _ratios,
    _intervals,
    _collections,
)
