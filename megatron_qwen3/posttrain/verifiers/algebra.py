"""Decides whether two formulas are equal, by math-verify and sympy.

    is_same("(x-1)(x+1)", "x^2-1")     # True

Both may hang, as on 9^{9^{9}}: call this in a process that can be killed. Their own time-outs are
off, as they use signals, which work in no other thread and do not interrupt C code. Decimals become
exact before a comparison, where math-verify would round to six places.
"""

import importlib.util
import logging
import re
from functools import cache
from typing import Any

from megatron_qwen3.posttrain.verifiers import final
from megatron_qwen3.posttrain.verifiers.final import CannotJudge
from megatron_qwen3.posttrain.verifiers.notation import ANGLE_OF

_E_NOTATION = re.compile(r"(?<![A-Za-z\\\d.])(\d+\.?\d*|\.\d+)[eE]([+-]?\d{1,4})(?![A-Za-z\d])")
_REPEATING = re.compile(r"(\d*)\.(\d*)\\overline\{(\d+)\}")
_DEGREES = re.compile(r"(\d+(?:\.\d+)?)\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ)")
_LOG = re.compile(r"\\log(?![A-Za-z_]|\s*_)")


def check_installed() -> None:
    """CannotJudge where math-verify is missing."""
    if not all(map(importlib.util.find_spec, ("math_verify", "antlr4"))):
        raise CannotJudge(
            "math needs math-verify, which is not installed: "
            "pip install 'megatron_qwen3[posttrain]'"
        )


@cache
def load() -> Any:
    """Import math-verify, which takes a second."""
    import math_verify

    for name in ("math_verify.parser", "math_verify.grader"):
        logging.getLogger(name).setLevel(logging.ERROR)  # it warns that no time-out is set
    return math_verify


def is_same(gold: str, given: str) -> bool:
    """Whether two formulas are equal; log without a base is read as ln, and as log_10."""
    if _is_equal(_formula(gold), _formula(given)):
        return True
    natural = [_LOG.sub(r"\\ln", text) for text in (gold, given)]
    return natural != [gold, given] and _is_equal(*map(_formula, natural))


def is_readable(text: str) -> bool:
    """Whether sympy can read it as a formula."""
    return bool(_formula(text))


def _is_equal(gold: list[Any], given: list[Any]) -> bool:
    if not gold or not given:
        return False
    return bool(load().verify(gold, given, timeout_seconds=None, allow_set_relation_comp=True))


def _formula(text: str) -> list[Any]:
    """math-verify's reading of a LaTeX formula; [] where it cannot read it."""
    text = _E_NOTATION.sub(r"\1 \\times 10^{\2}", final.joined_digits(text))
    text = _REPEATING.sub(_fraction, text)
    if ANGLE_OF.search(text):
        text = _DEGREES.sub(r"(\1\\cdot\\frac{\\pi}{180})", text)
    read = load().parse(f"${text}$", fallback_mode="no_fallback", parsing_timeout=None)
    return [_exact(one) for one in read if not isinstance(one, str)]


def _fraction(match: re.Match[str]) -> str:
    whole, once, again = match.groups()
    below = (10 ** len(again) - 1) * 10 ** len(once)
    above = int(f"{whole}{once}{again}") - int(f"{whole}{once}" or 0)
    return rf"\frac{{{above}}}{{{below}}}"


def _exact(formula: Any) -> Any:
    """The formula with fractions in place of decimals, and a free `i` as the imaginary unit."""
    from sympy import Float, I, Rational

    try:
        exact = {one: Rational(str(one)) for one in formula.atoms(Float)}
        imaginary = {one: I for one in formula.free_symbols if one.name == "i"}
        return formula.xreplace(exact | imaginary)
    except (AttributeError, TypeError):
        return formula
