"""Brings each text into one form, so that equal texts are equal bytes, and keeps its content.

    normalize("Ame\u0301lie\r\n\x07 said\u200b: &amp;lt;b&gt;")   # 'Amélie\n said: <b>'

NFC, as the tokenizer does; line ends; control, zero-width and private characters; byte order marks;
character references left over from HTML, also where they were escaped twice; trailing blanks and
runs of more than two line ends. Decoding errors of the past (mojibake) are left alone: no rule for
them is safe in 119 languages.
"""

import html
import re
import unicodedata

# Joiners (U+200C, U+200D) stay: Persian, Indic scripts and emoji need them. Directional marks stay.
_REMOVED = re.compile(
    "[\x00-\x08\x0b\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u200b\u2060\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\ue000-\uf8ff\ufdd0-\ufdef\ufffe\uffff]"
)
_LINE_ENDS = re.compile("\r\n?|[\x85\u2028\u2029\x0c]")
_OTHER_LINE_ENDS = "\r\x85\u2028\u2029\x0c"
# With the semicolon: text about `&copy` and query strings such as ?a=1&lt=2 are no references.
_REFERENCE = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
# From the first blank of a run alone: else a long one within a line is looked through from each.
_TRAILING = re.compile(r"(?<![ \t\u00a0\u3000])[ \t\u00a0\u3000]++$", re.MULTILINE)
_BLANKS = " \t\u00a0\u3000"
_BLANK_LINES = re.compile(r"\n{3,}")


def normalize(text: str, is_code: bool = False) -> str:
    """The text in its one form. Of code only the characters and line ends are put right."""
    text = _with_line_ends(text)
    if not is_code and "&" in text:
        for _ in range(2):
            text = _REFERENCE.sub(lambda match: html.unescape(match[0]), text)
        text = _with_line_ends(text)  # references can name line ends too
    text = unicodedata.normalize("NFC", _REMOVED.sub("", text))
    if is_code:
        return text.strip("\n")
    # An expression that looks at each character runs only where it would match; blanks at the very
    # end go with `strip`.
    if any(line and line[-1] in _BLANKS for line in text.split("\n")):
        text = _TRAILING.sub("", text)
    if "\n\n\n" in text:
        text = _BLANK_LINES.sub("\n\n", text)
    return text.strip()


def _with_line_ends(text: str) -> str:
    return _LINE_ENDS.sub("\n", text) if any(c in text for c in _OTHER_LINE_ENDS) else text
