"""The tokenizer is Qwen's in form, loses no byte, and never takes text for a control token."""

import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from data_prep.tokenizer import (
    CONTROL_TOKENS,
    MARKUP_TOKENS,
    SMALLEST_VOCABULARY,
    DocumentTokenizer,
    load,
    train,
)
from data_prep.tokenizer_file import token_bytes
from megatron_qwen3.config import ConfigError

CORPUS = [
    "The river rises in the hills and the town lies where the river meets the sea. " * 20,
    "def add(a, b):\n    return a + b\n\n\ndef multiply(a, b):\n    return a * b\n" * 20,
    "河流从山里流出来，流到海边的小镇。孩子们在河边玩耍。" * 20,
    "Река начинается в горах и течёт к морю через старый город. " * 20,
    "नदी पहाड़ों से निकलकर समुद्र तक जाती है। " * 20,
]
VOCAB_SIZE = 500
# Characters that this Python's Unicode knows: libraries may differ in how later ones compose.
TEXT = st.text(st.characters(exclude_categories=("Cs", "Cn")), max_size=80)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    train(CORPUS, VOCAB_SIZE, path)
    return path


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> DocumentTokenizer:
    return DocumentTokenizer(folder)


def test_control_tokens_follow_the_bpe_ids_in_qwens_order(folder: Path) -> None:
    spec = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    first = len(spec["model"]["vocab"])
    assert first + 26 == VOCAB_SIZE
    added = [(token["id"], token["content"], token["special"]) for token in spec["added_tokens"]]
    names = [*CONTROL_TOKENS, *MARKUP_TOKENS]
    assert added == [(first + k, name, k < 14) for k, name in enumerate(names)]
    assert names.index("<|im_end|>") == 151645 - 151643
    assert names.index("<think>") == 151667 - 151643
    assert names.index("</think>") == 151668 - 151643


@given(text=TEXT)
@example("e\u0301 \u1100\u1161 \u0928\u093c")
@example("a <think> b <|endoftext|> c")
@example("  \r\n\t \u00a0 don't 'Re 123")
def test_bytes_of_a_documents_tokens_sum_to_its_nfc_utf8_length(
    folder: Path, tokenizer: DocumentTokenizer, text: str
) -> None:
    sizes = token_bytes(folder)
    ids = tokenizer.encode_document(text)
    assert sizes[ids].sum() == len(unicodedata.normalize("NFC", text).encode())


@given(text=TEXT)
def test_decoding_gives_the_nfc_text_back(
    folder: Path, tokenizer: DocumentTokenizer, text: str
) -> None:
    ids = tokenizer.encode_document(text)
    assert load(folder).decode(ids[:-1].tolist()) == unicodedata.normalize("NFC", text)


@given(text=TEXT, name=st.sampled_from([*CONTROL_TOKENS, *MARKUP_TOKENS]))
def test_a_control_token_written_in_a_document_is_text(
    tokenizer: DocumentTokenizer, text: str, name: str
) -> None:
    ids = tokenizer.encode_document(text + name + text)
    first_control = tokenizer.vocab_size - 26
    assert (ids[:-1] < first_control).all()
    assert ids[-1] == tokenizer.end_of_document == first_control


def test_the_whole_tokenizer_reads_control_tokens_in_prompts(folder: Path) -> None:
    ids = load(folder).encode("<|im_start|>user\n<think>").ids
    assert ids[0] == VOCAB_SIZE - 26 + 1
    assert ids[-1] == VOCAB_SIZE - 26 + 24


def test_digits_stand_alone_and_words_take_their_space_along(folder: Path) -> None:
    pieces = [
        piece for piece, _ in load(folder).pre_tokenizer.pre_tokenize_str("the river's 1234\n\n")
    ]
    assert pieces == ["the", "Ġriver", "'s", "Ġ", "1", "2", "3", "4", "ĊĊ"]


def test_a_batch_is_encoded_as_its_documents_are(tokenizer: DocumentTokenizer) -> None:
    together = tokenizer.encode_documents(CORPUS)
    alone = [tokenizer.encode_document(text) for text in CORPUS]
    assert [ids.tolist() for ids in together] == [ids.tolist() for ids in alone]


def test_training_twice_gives_the_same_file(folder: Path, tmp_path: Path) -> None:
    train(CORPUS, VOCAB_SIZE, tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


def test_transformers_loads_the_folder_with_its_end_and_padding_tokens(
    folder: Path, tokenizer: DocumentTokenizer
) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert theirs.eos_token_id == theirs.pad_token_id == tokenizer.end_of_document
    assert len(theirs) == tokenizer.vocab_size
    text = CORPUS[0] + CORPUS[2]
    assert theirs(text)["input_ids"] == tokenizer.encode_document(text)[:-1].tolist()


def test_a_vocabulary_without_room_for_bytes_and_control_tokens_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"at least {SMALLEST_VOCABULARY}"):
        train(CORPUS, SMALLEST_VOCABULARY - 1, tmp_path)


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere does not exist"):
        token_bytes(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"tokenizer\.json does not exist"):
        DocumentTokenizer(tmp_path)
