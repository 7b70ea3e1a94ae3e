"""Lists Qwen3's 119 languages (languages.csv), and maps other names for them to their codes.

LANGUAGES["swh_Latn"].letters_per_word      # 5.3: the usual one, for filters
code_of("sw"), code_of("swa"), code_of("swh_Latn"), code_of("sqi")   # by any common name
"""

import csv
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Final

UNKNOWN: Final = "und"  # ISO 639-3's code for an undetermined language

# The meaning of a name in libraries that know only the larger language: the member most written.
# Evidence
# of another one comes before (language_id.py).
_MAIN_MEMBER = {
    "ara": "arb_Arab",  # Standard Arabic for Arabic
    "fas": "pes_Arab",
    "hbs": "hrv_Latn",  # Serbo-Croatian in Latin letters
    "hr": "hrv_Latn",
    "msa": "ind_Latn",
    "nor": "nob_Latn",
    "no": "nob_Latn",
    "zho": "zho_Hans",
    "cmn": "zho_Hans",
    "zh": "zho_Hans",
    "zh-Hant": "zho_Hant",
    "fil": "tgl_Latn",
    "iw": "heb_Hebr",
    "ajp_Arab": "apc_Arab",  # South Levantine, of which ISO 639-3 makes no language any more
    "srp_Latn": "hrv_Latn",  # as hbs
    "yue_Hani": "yue_Hant",
    "jw": "jav_Latn",
}


@dataclass(frozen=True)
class Language:
    """A row of languages.csv. letters_per_word: the mean in running text, None where words are
    not separated by spaces."""

    code: str
    name: str
    family: str
    iso639_3: str
    iso639_1: str
    macrolanguage: str
    script: str
    letters_per_word: float | None


def _read() -> dict[str, Language]:
    text = resources.files("data_prep").joinpath("languages.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(text.splitlines())
    return {
        row["code"]: Language(
            letters_per_word=float(row.pop("letters_per_word") or 0) or None,
            **row,
        )
        for row in rows
    }


LANGUAGES: Final = _read()


def code_of(name: str) -> str:
    """The code for a language named as in ISO 639 or by its code, `und` if it is not one of 119.

    Takes eng_Latn, eng, en and macro-languages (ara, msa); a script decides between members.
    """
    return _codes().get(name, UNKNOWN)


def as_typed(name: str) -> str:
    """The code for a language as people write it, de, DE or deu-Latn; other words unchanged."""
    codes = map(code_of, (name, name.replace("-", "_"), name.lower()))
    return next((code for code in codes if code != UNKNOWN), name)


@cache
def _codes() -> dict[str, str]:
    codes: dict[str, str] = {}
    for language in LANGUAGES.values():
        macro = language.macrolanguage
        for name in (language.iso639_3, language.iso639_1, macro, f"{macro}_{language.script}"):
            codes.setdefault(name, language.code)
    codes |= _MAIN_MEMBER | {code: code for code in LANGUAGES}
    codes.pop("", None)
    return codes
