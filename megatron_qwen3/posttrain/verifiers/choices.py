"""Multiple choice: finds the letter that an answer settles on.

    chosen_letter("At first A seems right, but the answer is (B).", "ABCD")     # "B"
    chosen_letter("The answer is A or B.", "ABCD")                              # None

The last box counts; without one the last claim, such as "the answer is B" or "B is correct";
without a claim the only letter that stands alone. Several letters at once are no answer, a denied
letter does not count, and `I` and `A` within a sentence are words.
"""

import re
from dataclasses import dataclass
from functools import cache

from megatron_qwen3.posttrain.verifiers import final, notation

_WRAPPED = re.compile(r"\\(?:text|mathrm|mathbf|textbf|bf)\s*\{([^{}]*)\}")
_BOX_JOINT = re.compile(r"[\s$*)(]*(?:,?\s*(?:and|or)\b|,|/|&)[\s$*)(]*")
_DENIES = re.compile(r"(?i)n['’]t\b|\b(?:not|neither|nor|never|cannot|wrong|incorrect|false)\b")
_OPEN, _CLOSE = r"[\s*_(\[\"'`$]*", r"[\s*_)\]\"'`$]*"
_JOINT = rf"{_CLOSE}(?:,?\s*\b(?:or|and|nor)\b|[,/&;+]){_OPEN}(?:(?i:option|choice)\s+{_OPEN})?"
_ANCHOR = (
    r"\b(?:answer|(?:correct|right|best|final)\s+(?:option|choice|letter)|choose|pick|select"
    r"|go(?:ing)?\s+with)\b"
)
_FILLERS = (  # words that may stand between `answer` and its letter
    "it is it's is be would should must that the i think i'd i'm i believe go going with option "
    "choice letter answer correct best right one clearly therefore thus so actually definitely "
    "probably likely most indeed simply just now either both not neither never"
).replace(" ", "|")
_AFTER_A_WORD = (  # words after a letter, by which `A` is a letter and not an article
    "is because since as and or but with for which so given in not by due over rather nor too was"
).replace(" ", "|")
_VERBS = r"(?:is|was|are|seems|looks|would|cannot|can|can't|does|doesn't|isn't|has|fails|must)"

# Claims in Chinese and Japanese, put into the English words by which claims are found.
_BE = "(?:应该|应当|应|就)?(?:是|为|為|选|選|は)"
_SAID_SO = (
    (
        rf"(?:正确|正確)?的?(?:答案|答え|选项|選項)(?:应该|应)?不{_BE}|不(?:应该?)?[选選][择擇]?",
        "the answer is not",
    ),
    (rf"(?:正确|正確)?的?(?:答案|答え|选项|選項)\s*{_BE}", "the answer is"),
    ("(?:选项|選項|选择肢|選択肢)", "option"),
    ("[选選][择擇]?", "choose"),
    ("而是", "but"),
    ("(?<=[A-Za-z])\\s*(?:或者|或|和|与|與|还是|還是|か|と)\\s*(?=[A-Za-z])", "or"),
    ("(?:是|は)?(?:不正确|不正確|错误|錯誤|错|錯|不对|不對|間違い)", "is wrong"),
    ("(?:是|は|が)?(?:正确|正確|正しい|正解)", "is correct"),
)


@dataclass(frozen=True)
class _Claim:
    """letter: None where several are named at once; denied: the text says that it is wrong."""

    place: int
    letter: str | None
    denied: bool = False


def chosen_letter(answer: str, letters: str) -> str | None:
    """The letter of `letters` that the answer settles on; None where it settles on none."""
    if final.has_open_box(answer):
        return None
    if final.boxes(answer):
        return _boxed(answer, letters)
    answer = _in_english(_WRAPPED.sub(r"\1", final.tagged(answer)))
    bare = answer.strip(" \n.*_`()[]")
    if len(bare) == 1 and bare in letters:
        return bare
    claims = sorted(_claims(answer, letters), key=lambda claim: claim.place)
    made = [claim for claim in claims if not claim.denied]
    denied = {claim.letter for claim in claims if claim.denied}
    if made:
        later = {one.letter for one in claims if one.denied and one.place > made[-1].place}
        return None if made[-1].letter in later else made[-1].letter
    alone = _alone(answer, letters) - denied
    return alone.pop() if len(alone) == 1 else None


def _in_english(answer: str) -> str:
    """The text with claims of other scripts put into English, and letters set apart."""
    if not re.search(notation.FOREIGN, answer):
        return notation.narrow(answer)
    for pattern, english in _SAID_SO:
        answer = re.sub(pattern, f" {english} ", answer)
    return notation.spaced(answer)


def _boxed(answer: str, letters: str) -> str | None:
    """The letter at the start of the last box, if it names one and no other box is joined to it."""
    spans = final.box_spans(answer)
    found = _first(spans[-1][2], letters)
    if len(spans) > 1 and _BOX_JOINT.fullmatch(answer[spans[-2][1] : spans[-1][0]]):
        return found if _first(spans[-2][2], letters) == found else None
    return found


def _first(inside: str, letters: str) -> str | None:
    for _ in range(4):
        inside = _WRAPPED.sub(r"\1", inside)
    one = f"[{re.escape(letters)}]"
    for text in (inside, inside.upper()):
        match = re.match(rf"\W*({one})(?![A-Za-z])", text)
        if match:
            rest = text[match.end() :]
            several = rf"(?:\s+|{_JOINT}|\W*(?i:or|and)\W*){one}(?![A-Za-z])"
            return None if re.match(several, rest) else match.group(1)
    return None


@cache
def _letter(letters: str) -> str:
    """A pattern of one letter that stands for a choice, not an article or pronoun."""
    one = f"[{re.escape(letters)}]"
    article = rf"(?<=[AI])\s+(?!(?:{_AFTER_A_WORD})\b)[a-z]"
    return rf"(?:{one})(?=[\s*_)\]\"'`$.,:;!/&–—]|$)(?!['’][A-Za-z])(?!{article})"


@cache
def _patterns(letters: str) -> tuple[re.Pattern[str], ...]:
    letter = _letter(letters)
    small = f"[{re.escape(letters.lower())}]" if letters.isupper() else f"[{re.escape(letters)}]"
    end = r"(?=[\s*_)\]\"'`$]*(?:[.,;:!]|$|\n|\b(?:or|and)\b))"
    linked = r"[^.\n:;=]{0,60}?(?:\bis(?:n['’]t)?\b|\bare\b|\bbe\b|:|=)"
    fill = rf"(?:[^\w\n.;]*\b(?:{_FILLERS})\b)*"
    said = (
        rf"(?i:{_ANCHOR})(?P<between>(?i:(?:{linked})?{fill}))"
        rf"{_OPEN}[:=]?{_OPEN}(?P<letter>{letter})"
    )
    is_small = (
        rf"(?i:{_ANCHOR})(?P<between>\s*(?:is(?:n['’]t)?(?:\s+not)?|:|=)?(?:\s*(?i:option|choice))?)"
        rf"{_OPEN}[:=]?{_OPEN}(?<![A-Za-z])(?P<letter>{small}){end}"
    )
    praise = r"(?:right|correct|true|best|answer)\b"
    praised = (
        rf"(?<![\w'’])(?P<letter>{letter}){_CLOSE}\s+(?:is|was|must\s+be|would\s+be)\s+"
        rf"(?:(?:the|clearly|actually|thus|therefore|indeed|definitely|my|final|correct|best|right)\s+)*"
        rf"{praise}"
    )
    return re.compile(said), re.compile(is_small), re.compile(praised)


def _claims(answer: str, letters: str) -> list[_Claim]:
    said, is_small, praised = _patterns(letters)
    claims: list[_Claim] = []
    for pattern in (said, is_small):
        for match in pattern.finditer(answer):
            claims += _claimed(answer, match, letters)
    for match in praised.finditer(answer):
        before = answer[max(0, match.start() - 40) : match.start()]
        joined = re.search(rf"{_letter(letters)}{_JOINT}$", before)
        is_denied = bool(joined and re.search(r"\bnor\b", joined.group()))
        letter = match.group("letter") if is_denied or not joined else None
        claims.append(_Claim(match.end("letter"), letter, is_denied))
    return claims


def _claimed(answer: str, match: re.Match[str], letters: str) -> list[_Claim]:
    """The claims of `the answer is …`: a letter, several, or that a letter is wrong."""
    letter, end = match.group("letter").upper(), match.end("letter")
    letter = letter if letter in letters else match.group("letter")
    rest = answer[end : end + 80]
    one = (
        _letter(letters)
        if match.group("letter").isupper()
        else f"[{re.escape(letters.lower())}]\\b"
    )
    if _DENIES.search(match.group("between")):
        denied = [_Claim(end, letter, denied=True)]
        also = re.match(rf"{_JOINT}({one})", rest)
        denied += [_Claim(end, also.group(1), denied=True)] if also else []
        but = re.match(rf"{_CLOSE},?\s*but\s+(?:(?:it\s+is|rather|is)\s+)?{_OPEN}({one})", rest)
        return denied + ([_Claim(end + but.end(), but.group(1))] if but else [])
    if re.match(rf"{_CLOSE}\s+{_VERBS}\b[^.,;\n]{{0,20}}", rest) and _DENIES.search(
        re.split(r"[.,;\n]", rest)[0]
    ):
        return [_Claim(end, letter, denied=True)]
    also = re.match(rf"{_JOINT}({one})(?!{_CLOSE}\s+{_VERBS}\b)", rest)
    return [_Claim(end, None if also and also.group(1).upper() != letter.upper() else letter)]


def _alone(answer: str, letters: str) -> set[str]:
    """The letters that stand alone, such as `(B)`, `**B**`, `B.`, and those joined to them."""
    one, letter = f"[{re.escape(letters)}]", _letter(letters)
    found = set(re.findall(rf"(?<![\w'])\(?\**({one})(?:\**[).:]|\**$|\**\n)", answer))
    found |= set(re.findall(rf"\*\*\(?({one})\)?\*\*", answer))
    found |= set(re.findall(rf"\b(?i:option|choice)\s+{_OPEN}({letter})", answer))
    for pair in re.findall(rf"(?<![\w'])({letter}){_JOINT}({letter})", answer):
        found |= set(pair)
    return found
