"""Guesses a document's domain where it has none: code and mathematics show, others do not.

domain_of(text)     # "code", "stem" or None
is_code_file("a/b/main.rs")
"""

import re
from pathlib import PurePath

# fmt: off
CODE_SUFFIXES = frozenset((
    ".c", ".cc", ".cpp", ".cs", ".cu", ".cuh", ".go", ".h", ".hpp", ".hs", ".java", ".jl", ".js",
    ".jsx", ".kt", ".lua", ".m", ".ml", ".php", ".pl", ".py", ".r", ".rb", ".rs", ".scala", ".sh",
    ".sql", ".swift", ".ts", ".tsx", ".vue", ".zig",
))
# fmt: on
# How lines of code begin or end. Prose has such lines too, but not the signs within them.
_CODE_LINE = re.compile(
    r"\s*(?:@|//|#include|#define|(?:def|class|import|from|return|if|elif|else|for|while|with|try"
    r"|assert|fn|func|let|const|var|public|private|static|using|package)\b|\w[\w.]* *\W?=)"
    r"|.*[{}()\[\];,:\\]\s*$"
)
_CODE_SIGN = "(){}[];=<>"
# Between dollars only with a sign of TeX: prices stand between dollars too.
_FORMULA = re.compile(
    r"\\(?:frac|sum|int|sqrt|begin|end|mathbb|mathcal|alpha|beta|theta|lambda|cdot|leq|geq|in|to)\b"
    r"|[∑∫∏√∞≤≥≠≈∈∉⊂∀∃∂∇→⇒⇔×÷±]|\$(?! )[^$\n]{0,60}[\\^_][^$\n]{0,60}(?<! )\$"
)
_BEGINS_FORMULA = "\\$∑∫∏√∞≤≥≠≈∈∉⊂∀∃∂∇→⇒⇔×÷±"
_CODE_LINES = 0.5  # share of the lines
_CODE_SIGNS = 0.03  # share of the characters
_FORMULAS = 0.005  # per character
_SAMPLE = 4000  # characters


def domain_of(text: str) -> str | None:
    """`code` or `stem`, or None where the beginning of a text shows neither."""
    sample = text[:_SAMPLE]
    if sum(map(sample.count, _CODE_SIGN)) > _CODE_SIGNS * len(sample):
        lines = [line for line in sample.split("\n") if line.strip()]
        if len(lines) >= 5:
            code = sum(bool(_CODE_LINE.match(line)) for line in lines)
            if code > _CODE_LINES * len(lines):
                return "code"
    if not any(sign in sample for sign in _BEGINS_FORMULA):
        return None
    return "stem" if len(_FORMULA.findall(sample)) > _FORMULAS * len(sample) else None


def is_code_file(path: str) -> bool:
    """Whether the ending of its name is one of source code."""
    return PurePath(path).suffix.lower() in CODE_SUFFIXES
