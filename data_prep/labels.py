"""The labels of a document, and those that keep the cells of shards apart.


    labels = Labels("fineweb", "eng_Latn", "web", level(0.8), level(None), length(5000))
    labels.folder  # source=fineweb/language=eng_Latn/domain=web/quality=high/education=…/length=…

Numbers between 0 and 1 become levels, a document's length in tokens one of four ranges: so few
combinations are left that each can lie together (`cells.py`), for mixtures to be put together of.
"""

import re
from bisect import bisect_right
from typing import Any, NamedTuple
from urllib.parse import quote

UNKNOWN = "unknown"
LONGEST_LABEL = 50  # characters: each takes up to 4 bytes in a file name, which may have 255
LABEL_FIELDS = ("source", "language", "domain", "quality", "education")  # as documents have them
LEVELS = ("low", "medium", "high")
LEVEL_BOUNDS = (1 / 3, 2 / 3)  # where medium and high begin
LENGTHS = ("0-4k", "4k-16k", "16k-32k", "32k+")
LENGTH_BOUNDS_TOKENS = (4096, 16384, 32768)  # where the second, third and last begin


class Labels(NamedTuple):
    """One combination of labels; the documents of a cell share it.

    source: where the text came from; language: as in languages.csv, `und` where undetermined;
    domain: web, code, stem, reasoning, books, reference, synthetic, dialog or another; quality,
    education: a level of LEVELS, of heuristics (`quality.py`) unless the documents or a classifier
    said more. All of these are `unknown` where a document does not say.
    length: one of LENGTHS.
    """

    source: str
    language: str
    domain: str
    quality: str
    education: str
    length: str

    @property
    def folder(self) -> str:
        """A relative path of its own for each combination, with any characters in its labels."""
        parts = [f"{name}={_file_name(value)}" for name, value in self._asdict().items()]
        return "/".join(parts)


class SaidLabels(NamedTuple):
    """What a document is labelled with when it is read, by the names of LABEL_FIELDS; None: with
    nothing."""

    source: str | None
    language: str | None
    domain: str | None
    quality: float | None
    education: float | None


def said(
    document: Any, source: str | None = None, language: str | None = None, domain: str | None = None
) -> SaidLabels:
    """The labels of a document of `documents.py`, for all that read some.

    What it says beside its text goes before what it says in `metadata`, and both before what is
    given for those that say nothing: by an option, or by a file's name. Empty text says nothing.
    """
    within = document.metadata or document
    quality, education = document.quality, document.education
    return SaidLabels(
        document.source or within.source or source,
        document.language or within.language or language,
        document.domain or within.domain or domain,
        within.quality if quality is None else quality,
        within.education if education is None else education,
    )


def level(value: float | None) -> str:
    """The level of a quality between 0 and 1; `unknown` for None."""
    return UNKNOWN if value is None else LEVELS[bisect_right(LEVEL_BOUNDS, value)]


def length(tokens: int) -> str:
    """The range of LENGTHS that this many tokens lie in."""
    return LENGTHS[bisect_right(LENGTH_BOUNDS_TOKENS, tokens)]


def _file_name(value: str) -> str:
    """The label as part of a path; as in a URL, characters that no path holds become %XX."""
    return re.sub(r'[\x00-\x1f\x7f"%*/:<=>?\\|]', lambda match: quote(match[0], safe=""), value)
