"""Normalizes the notation of mathematical answers, and splits them into their components.

    plain("\\left( 1{,}234 \\right)")          # "(1234)": spaces, sizes and delimiters of LaTeX go
    split_top("(1,2),(3,4)")                   # ["(1,2)", "(3,4)"]: commas outside of brackets
    without_unit("5\\text{ cm}")               # ("5", "cm")
    named("x = 3")                             # ("x", "3")
    intervals("0<x\\le 1")                     # ("x", ["(0,1]"])

Nothing here computes: the comparison is in mathematics.py, algebra is math-verify's.
"""

import re

from megatron_qwen3.posttrain.verifiers import final

# A word in a writing other than Latin and Greek, from Cyrillic to Hangul, with its marks.
_LETTERS = "\u0400-\u0963\u0966-\u1dff\u2e80-\u2fff\u3005-\u3007\u3021-\ud7ff\uf900-\ufaff"
FOREIGN = rf"(?:(?!\d)[{_LETTERS}])+"
_WIDE = str.maketrans("。।．，、：；！？％（）【】", "...,,:;!?%()[]")
_NAMED = {"×": "times", "·": "cdot", "≤": "le", "≥": "ge", "≠": "ne", "∪": "cup", "∈": "in"}
_NAMED |= {"∞": "infty", "π": "pi", "√": "sqrt", "±": "pm", "∅": "emptyset"}
_SIGNS = {ord(sign): rf"\{name} " for sign, name in _NAMED.items()}
_SIGNS |= {ord(sign): to for sign, to in zip("−–÷（），：。\u00a0", "--/(),:. ", strict=True)}
_SIGNS |= {ord("°"): r"^\circ ", ord("½"): r"\frac{1}{2}", ord("²"): "^2", ord("³"): "^3"}
_SIZES = re.compile(
    r"\\(?:left|right)(?![A-Za-z])\s*\.?|\\h?phantom\{[^{}]*\}|\\hspace\*?\{[^{}]*\}|\\(?:[bB]igg?[lr]?"
    r"|displaystyle|textstyle|limits|mathopen|mathclose|quad|qquad)(?![A-Za-z])"
)
_NAMES = (
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\(?:leq|leqslant)(?![A-Za-z])"), r"\\le "),
    (re.compile(r"\\(?:geq|geqslant)(?![A-Za-z])"), r"\\ge "),
    (re.compile(r"\\lt(?![A-Za-z])"), "<"),
    (re.compile(r"\\gt(?![A-Za-z])"), ">"),
    (re.compile(r"\\(?:lbrace|\{)"), r"\\{"),
    (re.compile(r"\\(?:rbrace|\})"), r"\\}"),
    (re.compile(r"\\(?:varnothing)(?![A-Za-z])|\\\{\s*\\\}"), r"\\emptyset "),
    (re.compile(r"\\colon(?![A-Za-z])"), ":"),
    (re.compile(r"\\log\s*_\s*(?:e|\{\s*e\s*\})(?![A-Za-z])"), r"\\ln "),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\langle(?![A-Za-z])"), "("),
    (re.compile(r"\\rangle(?![A-Za-z])"), ")"),
    (re.compile(r"\\color\s*\{[^{}]*\}|\\textcolor\s*\{[^{}]*\}|\\bf(?![A-Za-z])"), ""),
    (re.compile(r"\\mathbb\s*(?:\{\s*R\s*\}|R(?![A-Za-z]))"), r"\\R "),
)
# {x | 0 < x < 1}: the condition.
_BUILT = re.compile(r"^\\\{[A-Za-z](?:\\in ?\\R)?(?:\\mid|\\vert|\||:) ?(.+)\\\}$")
_DELIMITERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("`", "`"))
_WRAPPER = re.compile(r"\\(?:text(?:bf|it|rm)?|math(?:rm|bf|it)|mbox|operatorname)\s*\{")
_MARKED = re.compile(r"\\(?:underline|boldsymbol|bm|boxed|fbox)\s*\{")
_OPENING, _CLOSING = "([{", ")]}"


def plain(text: str) -> str:
    """The formula without delimiters, sizes, thin spaces and other variants of signs."""
    text = text.translate(_SIGNS).strip()
    text = unwrap(text, _MARKED)
    text = _SENTENCE.sub("", text)  # \\text{The answer is }7
    text = _JOINED.sub(r"\\text{\1}\2", text)  # 7\\text{ or 8}
    text = re.sub(r"\\(?:mathrm|text)\{i\}", "i", text)
    text = _COUNTED.sub(_multiplied, text)
    for _ in range(4):
        text = text.strip().rstrip(".,;").strip() if not text.endswith(r"\}") else text.strip()
        for opening, closing in _DELIMITERS:
            inside = text[len(opening) : len(text) - len(closing)]
            is_around = text.startswith(opening) and text.endswith(closing)
            if is_around and inside and opening not in inside:
                text = inside.strip()
    text = _SIZES.sub(" ", text)
    for name, to in _NAMES:
        text = name.sub(to, text)
    text = re.sub(r"(?<!\\)\\[,;:! ]|~|\\thinspace(?![A-Za-z])", " ", text)
    money = _MONEY.fullmatch(text.strip())
    if money and not _WRAPPER.search(text):
        text = rf"{money.group(1)}{money.group(2)}\text{{ dollars}}"
    text = re.sub(r"\\\$", "", text)
    if text.count("$") == 1:
        text = text.strip().removeprefix("$")
    if re.search(r"\d", text) and (whole := _WRAPPER.match(text)):
        inside = text[whole.end() : -1]
        is_whole = final.closing_brace(text, whole.end()) == len(text) - 1
        text = inside if is_whole and "\\" not in inside else text
    text = re.sub(r"^\((?:[A-Za-z],)+[A-Za-z]\)=", "", _squeezed(text))
    return _of_reals(_BUILT.sub(r"\1", text))


_SENTENCE = re.compile(r"^\\text\{[^{}]*\b(?:is|are|:)\s*:?\s*\}(?=.)")
_JOINED = re.compile(r"\\text\{(\s*(?:and|or)\s)\s*(\d[^{}]*)\}")
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_COUNTED = re.compile(
    r"(?P<number>(?<![\w.,])\d[\d,]*(?:\.\d+)?)\s*(?:\\[,;: ]\s*)?"
    r"(?P<wrapper>\\(?:text|mathrm|mbox)\s*\{\s*)?"
    rf"(?P<scale>{'|'.join(_SCALES)}|dozen)s?\b(?P<closing>\s*\}})?"
)
_MONEY = re.compile(r"(-?)\\?\$\s*([\d.,]+)")


def _multiplied(match: re.Match[str]) -> str:
    """`5 million` in figures; text after it in the same \\text{…} stays in it."""
    number, scale = final.number(match["number"]), match["scale"]
    if number is None:
        return match.group()
    value = number * (12 if scale == "dozen" else 10 ** _SCALES[scale])
    figures = str(value) if value.denominator == 1 else f"{float(value):.12g}"
    is_closed = bool(match["closing"]) or not match["wrapper"]
    return figures + ("" if is_closed else rf"{match['wrapper']} ")


def _of_reals(text: str) -> str:
    """ "All real numbers", in words or as a sign, as an interval."""
    if re.fullmatch(r"(?:[A-Za-z]\\in ?)?\\R|\\text\{all real(?: number)?s\}", text):
        return r"(-\infty,\infty)"
    whole = text.startswith("{") and final.closing_brace(text, 1) == len(text) - 1
    return text[1:-1] if whole else text


def narrow(text: str) -> str:
    """Wide stops and brackets replaced by ASCII ones, which need no space after them."""
    text = re.sub("[。।．，、：；！？]", lambda stop: f"{stop.group()} ", text)
    return text.translate(_WIDE)


def spaced(text: str) -> str:
    """`narrow`, with spaces around words of scripts that put none around numbers."""
    return re.sub(FOREIGN, r" \g<0> ", narrow(text))


def _squeezed(text: str) -> str:
    """Without spaces, except where digits or letters of two words would run together."""
    text = re.sub(r"\s+", " ", text).strip()
    return re.sub(r"(?<![A-Za-z0-9.]) | (?![A-Za-z0-9.])", "", text)


def words_of(text: str) -> str | None:
    """The words of a text in \\text{…} or of letters only; None for a formula.

    One letter, or a few such as `ab`, may be a formula, and give None.
    """
    unwrapped = unwrap(text)
    is_wrapped = unwrapped != text
    bare = unwrapped.strip().strip(".").strip()
    if re.fullmatch(rf"{FOREIGN}(?:[ -]{FOREIGN})*", bare):
        return bare.casefold()
    if not re.fullmatch(r"[^\W\d_][^\W\d_'’-]*(?:[ -][^\W\d_][^\W\d_'’-]*)*", bare):
        return None
    long_enough = len(bare) > 3 or " " in bare or bare.lower() in ("yes", "no", "all", "odd", "sum")
    return bare.casefold() if is_wrapped or long_enough else None


def unwrap(text: str, wrapper: re.Pattern[str] = _WRAPPER) -> str:
    """Replace `\\text{…}` and its like by their content."""
    for _ in range(20):
        opening = wrapper.search(text)
        end = final.closing_brace(text, opening.end()) if opening else None
        if opening is None or end is None:
            break
        text = text[: opening.start()] + text[opening.end() : end] + text[end + 1 :]
    return text


def split_top(text: str, separator: str = r",|;") -> list[str]:
    """The parts between separators outside of brackets."""
    parts, depth, start, place = [], 0, 0, 0
    pattern = re.compile(separator)
    while place < len(text):
        match = pattern.match(text, place) if depth == 0 else None
        if match and match.end() > place:
            parts.append(text[start:place])
            start = place = match.end()
            continue
        character = text[place]
        depth += (character in _OPENING) - (character in _CLOSING)
        place += 2 if character == "\\" and text[place + 1 : place + 2] not in ("{", "}") else 1
    return [part.strip() for part in [*parts, text[start:]]]


def bracketed(text: str) -> tuple[str, str, str] | None:
    """(opening, content, closing) where one pair of brackets encloses the whole text."""
    for opening in (r"\{", "(", "["):
        if not text.startswith(opening):
            continue
        depth, place = 1, len(opening)
        while place < len(text) and depth:
            depth += (text[place] in _OPENING) - (text[place] in _CLOSING)
            place += 1
        if depth == 0 and place == len(text):
            closing = text[-2:] if text.endswith(r"\}") else text[-1]
            return opening, text[len(opening) : len(text) - len(closing)], closing
    return None


def without_brackets(text: str) -> str:
    """Drop round brackets around a single value, and one pair of doubled ones."""
    while (found := bracketed(text)) and found[0] == "(" and found[2] == ")":
        if len(split_top(found[1])) > 1:
            break
        text = found[1]
    pairs, waiting = {}, []
    for place, character in enumerate(text):
        if character == "(":
            waiting.append(place)
        elif character == ")" and waiting:
            pairs[waiting.pop()] = place
    outer = [(start, end) for start, end in pairs.items() if pairs.get(start + 1) == end - 1]
    doubled = {place for pair in outer for place in pair}
    return "".join(one for place, one in enumerate(text) if place not in doubled)


# -- units --------------------------------------------------------------------------------------

_LENGTHS = "mm cm dm m km in inch inches ft foot feet yd yard yards mi mile miles nm"
_WEIGHTS = "mg g kg t lb lbs oz ounces pounds gram grams kilogram kilograms ton tons"
_TIMES = "ms s sec second seconds min minute minutes h hr hour hours day days week weeks month "
_TIMES += "months year years"
_OTHERS = "l ml cl liter liters litre litres degree degrees radians rad dollars cents euro euros "
_OTHERS += "units unit mph kmh km/h m/s cm/s ft/s m/s^2 percent people square cubic sq cu per "
_OTHERS += "j kj n w kw v a mol k hz khz mhz gb mb kb bytes bits points meters metres meter metre "
_OTHERS += "centimeters centimeter centimetres kilometers kilometer kilometres millimeters"
_UNITS = frozenset(f"{_LENGTHS} {_WEIGHTS} {_TIMES} {_OTHERS}".split())
_COUNTS = (
    "hundred",
    "thousand",
    "million",
    "billion",
    "trillion",
    "dozen",
    "half",
    "plus",
    "minus",
)
_SAME = {
    **dict.fromkeys(("meter", "meters", "metre", "metres"), "m"),
    **dict.fromkeys(("centimeter", "centimeters", "centimetre", "centimetres"), "cm"),
    **dict.fromkeys(("kilometer", "kilometers", "kilometres"), "km"),
    **dict.fromkeys(("millimeters",), "mm"),
    **dict.fromkeys(("inch", "inches"), "in"),
    **dict.fromkeys(("foot", "feet"), "ft"),
    **dict.fromkeys(("yard", "yards"), "yd"),
    **dict.fromkeys(("mile", "miles"), "mi"),
    **dict.fromkeys(("gram", "grams"), "g"),
    **dict.fromkeys(("kilogram", "kilograms"), "kg"),
    **dict.fromkeys(("lbs", "pounds"), "lb"),
    **dict.fromkeys(("ounces",), "oz"),
    **dict.fromkeys(("ton", "tons"), "t"),
    **dict.fromkeys(("sec", "second", "seconds"), "s"),
    **dict.fromkeys(("minute", "minutes"), "min"),
    **dict.fromkeys(("hr", "hour", "hours"), "h"),
    **dict.fromkeys(("days",), "day"),
    **dict.fromkeys(("weeks",), "week"),
    **dict.fromkeys(("months",), "month"),
    **dict.fromkeys(("years",), "year"),
    **dict.fromkeys(("liter", "liters", "litre", "litres"), "l"),
    **dict.fromkeys(("degrees", "degree"), "°"),
    **dict.fromkeys(("dollar", "dollars"), "$"),
    **dict.fromkeys(("euro", "euros"), "€"),
    **dict.fromkeys(("unit", "units"), ""),
    **dict.fromkeys(("sq",), "square"),
    **dict.fromkeys(("cu",), "cubic"),
}
ANGLE_OF = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![A-Za-z])")
_DEGREES = re.compile(r"\^(?:\{\\circ\}|\\circ|\{o\})\s*$|\\degree\s*$")
_WRAPPED_UNIT = re.compile(r"\\(?:text|textrm|mathrm|mbox|textbf|operatorname)\s*\{([^{}]*)\}")
_PLAIN_UNIT = re.compile(r"^(.*?[\d})])\s+([A-Za-z/^0-9 ]+)$")


def without_unit(text: str) -> tuple[str, str]:
    """(value, unit): unit is "" where there is none; different notations of a unit are equal."""
    bare = _DEGREES.sub("", text)
    if bare != text and bare and not ANGLE_OF.search(text):
        return bare.strip(), "°"
    first = _WRAPPED_UNIT.search(text)
    if first and re.search(r"[\d})]$", text[: first.start()].strip()):
        value, rest = text[: first.start()], text[first.start() :]
        unit = _WRAPPED_UNIT.sub(lambda match: f" {match.group(1)} ", rest)
        unit = re.sub(r"\\cdot|[{}]", " ", unit)
        if re.fullmatch(r"[A-Za-z/^0-9\s.µμΩ²³-]*", unit) and not _joins(unit):
            return value.strip(), _unit(unit)
    match = _PLAIN_UNIT.match(text)
    words = re.split(r" +", _without_powers(match.group(2))) if match else []
    if match and all(word in _UNITS or _is_counted(word) for word in words):
        return match.group(1).strip(), _unit(match.group(2))
    return text, ""


def _is_counted(word: str) -> bool:
    """Whether the word names things to count, and is neither variables nor a number."""
    return len(word) > 3 and word.isalpha() and word not in _COUNTS


def _joins(unit: str) -> bool:
    """Whether the words join two values, and are no unit."""
    return bool(re.search(r"\b(?:and|or|if|for|when|to)\b", unit.lower()))


def _without_powers(unit: str) -> str:
    return re.sub(r"\^\{?-?\d\}?", "", unit.lower()).strip()


def _unit(text: str) -> str:
    words = re.split(r"\s+", text.strip().strip(".").lower().replace("²", "^2").replace("³", "^3"))
    unit = " ".join(_SAME.get(word, word) for word in words if word).strip()
    unit = re.sub(r"\bsquare (\S+)", r"\1^2", re.sub(r"\bcubic (\S+)", r"\1^3", unit))
    return re.sub(r" ?\^ ?", "^", unit)


# -- names, intervals, bases --------------------------------------------------------------------

_EQUATION = re.compile(
    r"^([A-Za-z]|\\[a-z]+)((?:_(?:\{\w+\}|\w))?(?:\([A-Za-z](?:,[A-Za-z])*\))?)\s*=(?!=)(.+)$", re.S
)
_BASE = re.compile(r"^([0-9A-Za-z]+)_(?:\{([^{}]*)\}|(\d+))$")
_BASES = {"two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7"}
_BASES |= {"eight": "8", "nine": "9", "ten": "10", "twelve": "12", "sixteen": "16"}
_RELATION = re.compile(r"(\\le(?![A-Za-z])|\\ge(?![A-Za-z])|<=|>=|<|>)\s*")
_VARIABLE = re.compile(r"[A-Za-z](?:_(?:\{\w+\}|\w))?|\\(?:theta|alpha|lambda|beta|phi)")


_TURNED = re.compile(r"^(-?[\d.,/]+|-?\\frac\{\d+\}\{\d+\})=([A-Za-z])$")  # 5=x


def named(text: str) -> tuple[str, str]:
    """(name, value) of `x = 3` and of `f(x) = 2x`; ("", text) without a name."""
    match = _EQUATION.match(text) or _EQUATION.match(_TURNED.sub(r"\2=\1", text))
    return (match.group(1) + match.group(2), match.group(3).strip()) if match else ("", text)


def in_base(text: str) -> tuple[str, str] | None:
    """(digits, base) of `101_2`, `101_{2}` and `101_{\\text{two}}`."""
    match = _BASE.match(re.sub(r"^\((\w+)\)_", r"\1_", unwrap(text).replace(" ", "")))
    if not match or not re.search(r"\d", match.group(1)):
        return None
    base = match.group(2) or match.group(3)
    return match.group(1).upper().lstrip("0"), _BASES.get(base.lower(), base)


def intervals(text: str) -> tuple[str, list[str]] | None:
    """(variable, intervals) of `0<x<1`, `x\\ge 2`, `x<0 or x>1`; None for anything else."""
    text = re.sub(r"^[A-Za-z]\\in(?![A-Za-z])", "", text)
    text = re.sub(r"^\|([A-Za-z])\|(<|\\le ?|<=)([^<>=]+)$", r"-(\3)\2\1\2\3", text)
    parts = split_top(unwrap_or(text), r"\\lor(?![A-Za-z])|\\cup(?![A-Za-z])|\bor\b|,")
    found = [_interval(part) for part in parts]
    whole = [one for one in found if one is not None]
    if len(whole) < len(found) or len({variable for variable, _ in whole}) != 1:
        return None
    return whole[0][0], [interval for _, interval in whole]


def unwrap_or(text: str) -> str:
    """`\\text{ or }` as ` or `."""
    return re.sub(r"\\(?:text|mathrm|mbox)\{\s*(or|and)\s*\}", r" \1 ", text)


def _interval(text: str) -> tuple[str, str] | None:
    pieces = [piece.strip() for piece in _RELATION.split(text.strip())]
    values, signs = pieces[::2], [_ascii(sign) for sign in pieces[1::2]]
    if not all(values) or len(signs) not in (1, 2):
        return None
    if len(signs) == 2:
        low, variable, high = values
        if signs[0][0] != signs[1][0] or not _VARIABLE.fullmatch(variable):
            return None
        if signs[0][0] == ">":
            low, high, signs = high, low, signs[::-1]
        return variable, _bracket(low, signs[0], signs[1], high)
    if _VARIABLE.fullmatch(values[1]):
        values = values[::-1]
        signs = [signs[0].translate(str.maketrans("<>", "><"))]
    variable, bound = values
    if not _VARIABLE.fullmatch(variable):
        return None
    if signs[0][0] == "<":
        return variable, _bracket(r"-\infty", "<", signs[0], bound)
    return variable, _bracket(bound, signs[0], "<", r"\infty")


def _ascii(sign: str) -> str:
    return {r"\le": "<=", r"\ge": ">="}.get(sign, sign)


def _bracket(low: str, below: str, above: str, high: str) -> str:
    return f"{'[' if '=' in below else '('}{low},{high}{']' if '=' in above else ')'}"
