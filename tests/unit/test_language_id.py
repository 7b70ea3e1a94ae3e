"""Languages are named by their codes, of all 119 where evidence exists, and `und` elsewhere."""

import gzip
import json
import pickle
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from data_prep import language_id, language_profiles, scripts
from data_prep.language_id import Identifier, ModelIdentifier, excerpt
from data_prep.languages import LANGUAGES, code_of
from megatron_qwen3.config import ConfigError

SENTENCES = Path(__file__).parents[3] / "shared" / "data" / "sib200_119.jsonl.gz"

pytest.importorskip("heliport")
pytest.importorskip("pycld2")


@pytest.fixture(scope="module")
def identify() -> Identifier:
    return Identifier()


def test_the_table_has_qwen3s_119_languages() -> None:
    assert len(LANGUAGES) == 119
    assert sum(language.letters_per_word is None for language in LANGUAGES.values()) == 8


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("en", "eng_Latn"),
        ("swa", "swh_Latn"),
        ("est_Latn", "ekk_Latn"),
        ("zh", "zho_Hans"),
        ("yue_Hant", "yue_Hant"),
        ("tlh", "und"),
        ("", "und"),
    ],
)
def test_languages_are_known_by_their_usual_names(name: str, code: str) -> None:
    assert code_of(name) == code


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("The river rises in the hills and reaches the sea.", "eng_Latn"),
        ("Река начинается в горах и впадает в море.", "rus_Cyrl"),
        ("这条河从山里流出来，最后流进大海。", "zho_Hans"),
        ("這條河從山裡流出來，最後流進大海。", "zho_Hant"),
        ("佢哋噚日喺條河度游水，今日就唔去喇。", "yue_Hant"),
        ("川は山から流れ出て、海に注ぎます。", "jpn_Jpan"),
        ("แม่น้ำไหลจากภูเขาลงสู่ทะเล", "tha_Thai"),
        ("Река почиње у планинама и улива се у море, а људи ту живе.", "srp_Cyrl"),
        ("Rijeka izvire u planinama i ulijeva se u more, a ljudi tu žive.", "hrv_Latn"),
        ("3.1415 2.7182 1.4142 --- 42", "und"),
        ("", "und"),
    ],
)
def test_examples(identify: Identifier, text: str, code: str) -> None:
    assert identify(text) == code


def test_at_least_95_languages_are_found_in_four_of_five_unseen_sentences(
    identify: Identifier,
) -> None:
    if not SENTENCES.exists():
        pytest.skip(f"{SENTENCES.name} is not beside the checkout")
    right, seen = Counter[str](), Counter[str]()
    with gzip.open(SENTENCES, "rt", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            if row["split"] == "test" and seen[code := code_of(row["lang"])] < 40:
                seen[code] += 1
                right[code] += identify(row["text"]) == code
    assert len(seen) == 119
    assert sum(right[code] >= 0.8 * seen[code] for code in seen) >= 95


def test_what_a_third_of_a_sample_names_the_whole_names_too(
    identify: Identifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not SENTENCES.exists():
        pytest.skip(f"{SENTENCES.name} is not beside the checkout")
    groups = defaultdict(list)
    with gzip.open(SENTENCES, "rt", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            groups[row["lang"]].append(row["text"])
    documents = ["\n".join(group[:20]) for group in groups.values()]
    found = [identify(document) for document in documents]
    monkeypatch.setattr(language_id, "excerpt", lambda text, sample: excerpt(text, 600))
    assert found == [identify(document) for document in documents]


def test_what_a_third_of_a_sample_leaves_in_doubt_is_read_whole(
    identify: Identifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    monkeypatch.setattr(
        language_id, "excerpt", lambda *given: read.append(excerpt(*given)) or read[-1]
    )
    numbers = "1, 2 + 3, 45; " * 15  # 200 characters without a letter begin each place
    english = "The river rises in the hills of the north, where rain falls on most days. " * 6
    place = (numbers[:200] + english)[:600]
    assert identify(place + "\n" * 5000 + place) == "eng_Latn"
    assert len(read[0]) < len(read[1])


def test_letter_profiles_are_added_up_exactly() -> None:
    codes, weights, seen = language_profiles._profiles()
    whole = weights.astype(np.float64) * 2**24
    assert (whole == np.rint(whole)).all() and float(abs(whole).max()) < 2**29
    for text in ("", "7", "Deus crezê il mont e ducj i oms", "Sungai itu mengalir ke laut " * 40):
        buckets = language_profiles._buckets(text)
        plain = (weights * seen[:, None])[buckets].sum(axis=0, dtype=np.float64)
        assert language_profiles.most_similar(text) == codes[int(plain.argmax())]


def test_a_script_without_letters_decides_nothing() -> None:
    assert scripts.census("12 + 3 = 15") == {}
    assert scripts.language_of_script("12", {}) is None


def test_a_pickled_identifier_loads_its_models_anew(identify: Identifier) -> None:
    copy = pickle.loads(pickle.dumps(identify))
    assert copy("Deus crezê il mont e ducj i oms che a son in chel.") == "fur_Latn"


def test_a_long_text_is_known_by_three_places() -> None:
    text = "a" * 10_000 + "b" * 10_000 + "c" * 10_000
    assert {*excerpt(text)} == {"a", "b", "c", "\n"}
    assert len(excerpt(text)) < 2000
    assert excerpt(text, 2) == "aa\nbb\ncc"


def test_a_missing_or_wrong_model_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        ModelIdentifier(tmp_path / "none.bin")
    pytest.importorskip("fasttext")
    (tmp_path / "wrong.bin").write_bytes(b"no model")
    with pytest.raises(ConfigError, match="is not a fastText model"):
        ModelIdentifier(tmp_path / "wrong.bin")("some text in a language")
