"""Normalising, splitting into units, naming domains, plainly written: data_prep is held to it."""

import html
import re
import unicodedata

import numpy as np

from data_prep import domains, normalize, units


def normalized(text: str, is_code: bool = False) -> str:
    """As data_prep/normalize.py, with every expression run on every text."""
    text = normalize._LINE_ENDS.sub("\n", text)
    if not is_code and "&" in text:
        for _ in range(2):
            text = normalize._REFERENCE.sub(lambda match: html.unescape(match[0]), text)
        text = normalize._LINE_ENDS.sub("\n", text)
    text = unicodedata.normalize("NFC", normalize._REMOVED.sub("", text))
    if is_code:
        return text.strip("\n")
    return normalize._BLANK_LINES.sub("\n\n", normalize._TRAILING.sub("", text)).strip()


def domain_of(text: str) -> str | None:
    """As data_prep/domains.py, likewise."""
    sample = text[: domains._SAMPLE]
    lines = [line for line in sample.split("\n") if line.strip()]
    signs = len(re.findall(r"[(){}\[\];=<>]", sample))
    if len(lines) >= 5 and signs > domains._CODE_SIGNS * len(sample):
        code = sum(bool(domains._CODE_LINE.match(line)) for line in lines)
        if code > domains._CODE_LINES * len(lines):
            return "code"
    formulas = len(domains._FORMULA.findall(sample))
    return "stem" if formulas > domains._FORMULAS * len(sample) else None


def unit_hashes(text: str) -> list[tuple[int, int, int, bool]]:
    """Hash, start, end and whether it stands alone, of each unit, character by character."""
    found, word = list[tuple[int, int, int, bool]](), list[int]()
    lowered = text.lower()
    for place, character in enumerate([*lowered, " "]):
        kind = int(units._kinds()[ord(character)])
        if word and kind != units._IN_WORD:
            found.append((_hash(word), place - len(word), place, False))
            word = []
        if kind == units._IN_WORD:
            word.append(ord(character))
        if kind == units._ALONE:
            found.append((_hash([ord(character)]), place, place + 1, True))
    return found


def _hash(points: list[int]) -> int:
    weights = [int(weight) for weight in units._weights()]
    total = sum(point * weights[k % len(weights)] for k, point in enumerate(points))
    return int(units.mix(np.array([total % 2**64], np.uint64))[0])
