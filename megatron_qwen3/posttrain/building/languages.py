"""Identifies the languages and scripts of a text, part by part: `LanguageUse().of(text, query)`.

    use.main, use.others       # "eng_Latn", ("zho_Hans",)
    use.foreign                # 0.23 of the letters are in neither the main language nor its script
    use.changes                # 7 times the script changes between words

Formulas and code, which have letters but no language, are left out, as are scripts that the query
is written in, and single letters of Greek. Names of languages are data_prep's.
"""

import re
from collections import Counter
from dataclasses import dataclass
from functools import cache, lru_cache

from data_prep import scripts
from data_prep.language_id import Identifier
from data_prep.languages import UNKNOWN

# A formula's length is bounded: otherwise each of ten thousand unclosed `\[` would scan to the end.
_NO_PROSE = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]*`|\$\$.{,1000}?\$\$|\$[^$\n]*\$|\\\[.{,1000}?\\\]|\\\(.{,1000}?\\\)"
    r"|\\[A-Za-z]+|https?://\S+",
    re.DOTALL,
)
_WORD = re.compile(r"[^\W\d_]+")
_PART_LETTERS = 400  # identified at a time: fewer are unreliable
_FEWEST_LETTERS = 120
_SAME = {"HIRAGANA": "CJK"}  # Japanese writes both side by side


@dataclass(frozen=True)
class Use:
    """main: the language of most letters, `und` if unknown; foreign: the share of letters in other
    languages or scripts; changes: how often the script changes from word to word."""

    main: str
    others: tuple[str, ...]
    foreign: float
    changes: int


class LanguageUse:
    """Identifies languages; its models are loaded once per process."""

    def __init__(self) -> None:
        self._identify = _identifier()

    def of(self, text: str, query: str = "") -> Use:
        words = _WORD.findall(_NO_PROSE.sub(" ", text))
        own = [_script(word) for word in words]
        letters: Counter[str] = Counter()
        for word, script in zip(words, own, strict=True):
            letters[script] += len(word)
        letters.pop("", None)
        total = letters.total()
        if not total:
            return Use(UNKNOWN, (), 0.0, 0)
        main_script = letters.most_common(1)[0][0]
        allowed = {main_script, *map(_script, _WORD.findall(query))}
        other_scripts = {script: n for script, n in letters.items() if script not in allowed}
        main, by_language = self._languages(words)
        foreign_letters = sum(other_scripts.values()) + sum(by_language.values())
        others = sorted({**other_scripts, **by_language}, key=lambda name: name)
        changes = sum(
            1 for a, b in zip(own, own[1:], strict=False) if a != b and a and b and b not in allowed
        )
        return Use(main, tuple(others), min(1.0, foreign_letters / total), changes)

    def _languages(self, words: list[str]) -> tuple[str, dict[str, int]]:
        """The main language, and the number of letters in others that share its script."""
        found: Counter[str] = Counter()
        for part in _parts(words):
            found[self._identify(" ".join(part))] += sum(map(len, part))
        found.pop(UNKNOWN, None)
        if not found:
            return UNKNOWN, {}
        main = found.most_common(1)[0][0]
        script = main.partition("_")[2]
        return main, {
            name: n for name, n in found.items() if name != main and name.endswith(f"_{script}")
        }


@cache
def _identifier() -> Identifier:
    """The language identifier: 100 MB, loads in a second."""
    return Identifier()


def _parts(words: list[str]) -> list[list[str]]:
    """Runs of words of about 400 letters; a short rest joins the run before it."""
    parts: list[list[str]] = [[]]
    letters = 0
    for word in words:
        if letters >= _PART_LETTERS:
            parts.append([])
            letters = 0
        parts[-1].append(word)
        letters += len(word)
    if letters < _FEWEST_LETTERS and len(parts) > 1:
        last = parts.pop()
        parts[-1] += last
    return parts if sum(map(len, parts[0])) >= _FEWEST_LETTERS else []


@lru_cache(maxsize=1 << 16)
def _script(word: str) -> str:
    """The script of a word; "" for a single letter of another alphabet, such as π."""
    counted = scripts.census(word)
    script = next(iter(counted), "")
    if len(word) == 1 and script in ("GREEK", "CYRILLIC", "HEBREW"):
        return ""
    return _SAME.get(script, script)
