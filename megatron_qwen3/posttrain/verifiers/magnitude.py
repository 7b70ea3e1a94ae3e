"""Estimates the powers and factorials of a formula, before sympy computes them.

    is_huge("9^{9^{9}}")       # True: more than 1000 digits
    is_huge("2^{10}")          # False

sympy computes such numbers digit by digit, which may take for ever; here only logarithms are taken,
of the figures of a LaTeX formula. Letters and commands count as 1.
"""

import math
import re
from dataclasses import dataclass

_TOKEN = re.compile(r"\d+(?:\.\d+)?|\.\d+|\\[A-Za-z]+|\*\*|\S")
_CLOSING = {"{": "}", "(": ")", "[": "]"}
_TIMES, _OVER = ("*", r"\cdot", r"\times"), ("/", r"\div")
_BETWEEN = ("+", "-", r"\pm", ",", ";", "=", "<", ">", "&")
_MOST_DIGITS = 1000


def is_huge(text: str) -> bool:
    """Whether a power or factorial in a formula has more than 1000 digits, above or below 1."""
    reader = _Powers(_TOKEN.findall(text)[::-1])
    try:
        while reader.tokens:
            reader.total("")
    except RecursionError:  # of nested brackets, which are no power
        return False
    return reader.largest > _MOST_DIGITS


@dataclass
class _Powers:
    """Reads values as floats, tolerantly. largest: most digits of any power.

    tokens: the remaining ones, in reverse.
    """

    tokens: list[str]
    largest: float = 0.0

    def total(self, closing: str) -> float:
        """The value of a sum of products up to a closing bracket, which is consumed."""
        value, sign = 0.0, 1.0
        while self.tokens and self.tokens[-1] != closing:
            if self.tokens[-1] in _BETWEEN:
                sign = -1.0 if self.tokens.pop() == "-" else 1.0
            else:
                value += sign * self._product(closing)
                value = 0.0 if math.isnan(value) else value
                sign = 1.0
        if self.tokens:
            self.tokens.pop()
        return value

    def _product(self, closing: str) -> float:
        result = 1.0
        while self.tokens and self.tokens[-1] not in (closing, *_BETWEEN):
            if self.tokens[-1] in _TIMES:
                self.tokens.pop()
            elif self.tokens[-1] in _OVER:
                self.tokens.pop()
                result = _quotient(result, self._factor())
            else:
                result *= self._factor()
            result = 0.0 if math.isnan(result) else result
        return result

    def _factor(self) -> float:
        value = self._atom()
        while self.tokens and self.tokens[-1] in ("^", "**", "!", "_"):
            sign = self.tokens.pop()
            if sign == "!":
                value = self._with_digits(math.lgamma(min(abs(value), 1e300) + 1) / math.log(10))
            elif sign == "_":
                self._atom()  # a subscript does not change the value
            else:
                value = self._power(value)
        return value

    def _power(self, base: float) -> float:
        is_negative = bool(self.tokens) and self.tokens[-1] == "-"
        if is_negative:
            self.tokens.pop()
        exponent = self._factor()
        exponent = -exponent if is_negative else exponent
        if base in (0.0, 1.0) or not exponent:
            return 1.0 if base or not exponent else 0.0
        return self._with_digits(exponent * math.log10(abs(base)))

    def _with_digits(self, digits: float) -> float:
        """10^digits; updates `largest`."""
        self.largest = max(self.largest, abs(digits))
        return math.inf if digits > 300 else 10.0**digits if digits > -300 else 0.0

    def _atom(self) -> float:
        token = self.tokens.pop() if self.tokens else ""
        if token in _CLOSING:
            return self.total(_CLOSING[token])
        if token == r"\frac":
            return _quotient(self._atom(), self._atom())
        return float(token) if token[:1].isdecimal() or token[:1] == "." and token[1:] else 1.0


def _quotient(above: float, below: float) -> float:
    return above / below if below else above
