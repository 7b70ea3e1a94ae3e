"""Identifies which of Qwen3's 119 languages a text is written in; `und` for any other, or none.

    identify = Identifier()                        # or ModelIdentifier("lid.bin")
    identify("Deus crezê il mont")                 # "fur_Latn"

Evidence in this order, none of it learned from an evaluation set:
1. the script (scripts.py), which alone decides 20 of the languages and limits the others;
2. `heliport`, HeLI's word and letter models of 220 languages: it also knows many that are not
   among the 119;
3. where heliport names a language that comprises several of ours, or is unsure, letter profiles
   of languages that it lacks (language_profiles.py);
4. Indonesian and Malay as `pycld2` tells them apart; Silesian by letters that Polish lacks.

Not told apart: the Arabic of different countries (arb_Arab for all), Hindi and its neighbours
Awadhi, Bhojpuri, Chhattisgarhi, Magahi and Maithili (hin_Deva), Iranian and Afghan Persian
(pes_Arab), Bosnian and Croatian (hrv_Latn), Limburgish and Dutch. A model that was trained on them
can: GlotLID, or one of your own.
"""

import os
import re
from functools import cached_property
from typing import Any, Protocol

from data_prep import scripts
from data_prep.classifiers import classifier, needs
from data_prep.language_profiles import NOT_IN_HELIPORT, most_similar
from data_prep.languages import LANGUAGES, UNKNOWN, code_of
from megatron_qwen3.config import ConfigError

FEWEST_LETTERS = 12  # below, nothing is said
SAMPLE = 600  # characters read at the beginning, in the middle and at the end
# HeLI's scores are mean negative log-likelihoods. Between the best two languages they differ by
# more than this in nine of ten articles of the Universal Declaration of Human Rights in 55 of the
# 60 languages that it has a model of, and by less in most articles in those that it lacks.
_SURE = 0.5
# With this lead a third of a sample names the language that the whole names: so of all 2,380
# documents of 20 sentences of SIB-200 in 119 languages, which take two thirds of the time.
_CLEAR = 1.0
# Names that stand for several languages, or for neighbours of those that heliport lacks.
_SEVERAL = frozenset({"msa", "ace", "ext"})
_SILESIAN = re.compile("[ŏōôãŎŌÔÃ]")
_SILESIAN_SHARE = 0.005  # of the letters
_MODEL_SURE = 0.5


class IdentifyLanguage(Protocol):
    """Names the language of a text by one of the codes in languages.csv, or `und`."""

    def __call__(self, text: str) -> str: ...


class Identifier:
    """The combination above. One object serves any number of texts; it costs 100 MB of memory.

    sample: characters of each of the three places that are read, most of its time; a third of them
    first, the rest where these leave a doubt. ConfigError at the first text for which it needs
    heliport, where that is not installed: for its licence it is not in the extra `data`.
    """

    def __init__(self, sample: int = SAMPLE) -> None:
        self._sample = sample

    def __call__(self, text: str) -> str:
        short, whole = excerpt(text, self._sample // 3), excerpt(text, self._sample)
        at_sight = self._named(short, False) if len(short) < len(whole) else None
        return at_sight or self._named(whole, True) or UNKNOWN

    def _named(self, sample: str, is_whole: bool) -> str | None:
        """The sample's language; None where it is none of ours, or where more of the text might
        say another."""
        letters = scripts.census(sample)
        if sum(letters.values()) < FEWEST_LETTERS:
            return None
        script = next(iter(letters))
        code = scripts.language_of_script(sample, letters)
        code = code or self._by_words(sample, script, is_whole)
        return code if code and _in_script(code, script) else None

    def _by_words(self, sample: str, script: str, is_whole: bool) -> str | None:
        ranking = self._heli.identify_topk_with_score(sample, 2)
        name = ranking[0][0] if ranking else UNKNOWN
        ahead = ranking[1][1] - ranking[0][1] if len(ranking) > 1 else _CLEAR
        if not is_whole and ahead < _CLEAR:
            return None
        sure = ahead >= _SURE
        if name == "hbs":
            return "srp_Cyrl" if script == "CYRILLIC" else "hrv_Latn"
        code = code_of(name)
        if script == "LATIN" and (name in _SEVERAL or not sure):
            similar = most_similar(sample)
            code = similar if similar in NOT_IN_HELIPORT else code
        if code in ("ind_Latn", "zsm_Latn"):
            return _malay_or_indonesian(sample) if is_whole else None
        if code == "pol_Latn" and len(_SILESIAN.findall(sample)) > _SILESIAN_SHARE * len(sample):
            return "szl_Latn"
        return code

    @cached_property
    def _heli(self) -> Any:
        try:
            from heliport import Identifier as Heli
        except ImportError:
            raise ConfigError(
                "language identification needs heliport (GPL-3), which is not installed: "
                "pip install 'megatron_qwen3[languages]', or name a classifier by --language-model"
            ) from None
        return Heli()

    def __getstate__(self) -> dict[str, Any]:
        return {"_sample": self._sample}  # models are loaded anew where a pickled one arrives


class ModelIdentifier:
    """A user's model (`classifiers.py`) in place of the combination; its labels are any names of
    languages. GlotLID names Chinese without its script, which the characters then decide."""

    def __init__(self, file: str | os.PathLike[str], sample: int = SAMPLE) -> None:
        self._model, self._sample = classifier(file), sample

    def __call__(self, text: str) -> str:
        sample = excerpt(text, self._sample)
        label, probability = self._model.best(sample)
        if probability < _MODEL_SURE:
            return UNKNOWN
        if label == "cmn_Hani":
            return f"zho_{scripts.chinese_script(sample)}"
        return code_of(label)


def excerpt(text: str, sample: int = SAMPLE) -> str:
    """Enough of a text to know it by: `sample` characters of its beginning, middle and end."""
    if len(text) <= 3 * sample:
        return text
    middle = (len(text) - sample) // 2
    return "\n".join((text[:sample], text[middle : middle + sample], text[-sample:]))


def _malay_or_indonesian(sample: str) -> str:
    try:
        import pycld2
    except ImportError:
        raise needs("language identification", "pycld2") from None
    try:
        found = pycld2.detect(sample, isPlainText=True, bestEffort=True)[2]
    except pycld2.error:  # text that it takes for invalid
        return "ind_Latn"
    return "zsm_Latn" if found[0][1] == "ms" else "ind_Latn"


def _in_script(code: str, script: str) -> bool:
    if code == UNKNOWN:
        return False
    return scripts.SCRIPT_OF_CODE.get(LANGUAGES[code].script, script) == script
