"""Counts the letters of a text by writing system, and names languages that have their own.

    census("Привет, world")                       # {"CYRILLIC": 6, "LATIN": 5}
    language_of_script("เครื่องบิน", census(...))      # "tha_Thai"

Many of the 119 languages are the only ones of their script. Chinese is Simplified or Traditional
by the characters that only one of the national standards has, and Cantonese by those that only
written Cantonese uses.
"""

import unicodedata
from functools import cache

import numpy as np
import numpy.typing as npt

# A script, by the first word of its characters' names in Unicode, and the language it stands for.
_ONE_LANGUAGE = {
    "GREEK": "ell_Grek",
    "ARMENIAN": "hye_Armn",
    "GEORGIAN": "kat_Geor",
    "GUJARATI": "guj_Gujr",
    "GURMUKHI": "pan_Guru",
    "ORIYA": "ory_Orya",
    "TAMIL": "tam_Taml",
    "TELUGU": "tel_Telu",
    "KANNADA": "kan_Knda",
    "MALAYALAM": "mal_Mlym",
    "SINHALA": "sin_Sinh",
    "THAI": "tha_Thai",
    "LAO": "lao_Laoo",
    "KHMER": "khm_Khmr",
    "MYANMAR": "mya_Mymr",
    "HANGUL": "kor_Hang",
    "HIRAGANA": "jpn_Jpan",
}
_SEVERAL_LANGUAGES = ("LATIN", "CYRILLIC", "ARABIC", "DEVANAGARI", "BENGALI", "HEBREW", "CJK")
_SAME = {"KATAKANA": "HIRAGANA", "KATAKANA-HIRAGANA": "HIRAGANA"}
_SCRIPTS = ("", *_ONE_LANGUAGE, *_SEVERAL_LANGUAGES, "OTHER")
SCRIPT_OF_CODE = {
    "Latn": "LATIN",
    "Cyrl": "CYRILLIC",
    "Arab": "ARABIC",
    "Deva": "DEVANAGARI",
    "Beng": "BENGALI",
    "Hebr": "HEBREW",
}
# Everyday words of written Cantonese whose characters standard written Chinese does not use.
_CANTONESE = frozenset("嘅咗喺啲嗰冇佢哋唔咁嘢嚟俾咩乜啱攞諗瞓睇")
_KANA_IN_JAPANESE = 0.05  # of kana and Han together; Japanese prose has about half
_CANTONESE_SHARE = 0.02  # of all Han characters


def census(text: str) -> dict[str, int]:
    """Letters of each script, most frequent first."""
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    counts = np.bincount(_script_of_point()[points], minlength=len(_SCRIPTS))
    order = np.argsort(-counts, kind="stable").tolist()
    return {_SCRIPTS[k]: int(counts[k]) for k in order if k and counts[k]}


def count_letters(text: str) -> int:
    """Letters and the marks that belong to them, of any script."""
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    return int(np.count_nonzero(_script_of_point()[points]))


def language_of_script(text: str, letters: dict[str, int]) -> str | None:
    """The language that the script belongs to; None where several share it, or none is known."""
    kana, han = letters.get("HIRAGANA", 0), letters.get("CJK", 0)
    if kana + han and next(iter(letters)) in ("HIRAGANA", "CJK"):
        return "jpn_Jpan" if kana > _KANA_IN_JAPANESE * (kana + han) else _chinese(text, han)
    return _ONE_LANGUAGE.get(next(iter(letters), ""))


def _chinese(text: str, han: int) -> str:
    if sum(text.count(character) for character in _CANTONESE) > _CANTONESE_SHARE * han:
        return "yue_Hant"
    return f"zho_{chinese_script(text)}"


def chinese_script(text: str) -> str:
    """Hans or Hant."""
    # Characters that only one national set has: mainland China's GB 2312, Taiwan's Big5.
    characters = "".join(c for c in text if c >= "\u2e80")
    outside_gb = len(characters) - len(characters.encode("gb2312", "ignore").decode("gb2312"))
    outside_big5 = len(characters) - len(characters.encode("big5", "ignore").decode("big5"))
    return "Hant" if outside_gb > outside_big5 else "Hans"


def is_letter() -> npt.NDArray[np.bool_]:
    """Of each code point [0x110000], whether it is a letter or a mark that belongs to one."""
    letters: npt.NDArray[np.bool_] = _script_of_point() != 0
    return letters


@cache
def _script_of_point() -> npt.NDArray[np.uint8]:
    """Index into _SCRIPTS of each code point [0x110000]; 0 for code points that are no letters."""
    number = {name: k for k, name in enumerate(_SCRIPTS)}
    scripts = np.zeros(0x110000, np.uint8)
    for point in range(0x20000):
        character = chr(point)
        if unicodedata.category(character)[0] in "LM":
            name = unicodedata.name(character, "OTHER").split()[0]
            scripts[point] = number.get(_SAME.get(name, name), number["OTHER"])
    scripts[0x20000:0x323B0] = number["CJK"]
    return scripts
