"""Trains Qwen's kind of tokenizer on any corpus, and applies it to documents.

Byte-level BPE as in Qwen2 and Qwen3 (NFC, Qwen's split pattern, no prefix space, 26 control tokens
after the BPE ids), so that a small tokenizer trained here and the published one share all the code.

    train(texts, 2048, "runs/quickstart/data/tokenizer")  # writes a folder that transformers loads
    tokenizer = DocumentTokenizer("runs/quickstart/data/tokenizer")
    tokenizer.encode_documents(texts)  # ids, each document ending in <|endoftext|>
"""

import json
import os
import re
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from data_prep.engines import AUTO, Encoded, choose, without_panics
from data_prep.tokenizer_file import check_byte_level, ids_by_token, tokenizer_json
from data_prep.tokenizer_trust import SPLIT_PATTERN, read
from megatron_qwen3.config import ConfigError
from megatron_qwen3.storage.whole import write_whole

END_OF_DOCUMENT = "<|endoftext|>"
# fmt: off
CONTROL_TOKENS = (  # in Qwen3's order, where they have the ids 151643 to 151656
    END_OF_DOCUMENT, "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>",
    "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>",
    "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
)
MARKUP_TOKENS = (  # 151657 to 151668: single ids too, but kept when decoding skips special tokens
    "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>",
    "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>",
    "<think>", "</think>",
)
# fmt: on
_LONGEST_WORD = 1000  # characters; no word of a language is as long
# A word of SPLIT_PATTERN in terms of Python's: letters, blanks, anything else.
_LONG_WORD, _HALF_OF_ONE = (
    re.compile(rf"[^\W\d_]{{{size}}}|\s{{{size}}}|(?:_|[^\w\s]){{{size}}}")
    for size in (_LONGEST_WORD, _LONGEST_WORD // 2)
)
SMALLEST_VOCABULARY = 256 + len(CONTROL_TOKENS) + len(MARKUP_TOKENS)


def train(texts: Iterable[str], vocab_size: int, folder: str | os.PathLike[str]) -> None:
    """Train on the texts and write a tokenizer folder in Hugging Face's format.

    vocab_size counts the control tokens too. A small corpus can give fewer: no pair seen once is
    merged.
    """
    check_vocab_size(vocab_size)
    tokenizer = untrained()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(CONTROL_TOKENS) - len(MARKUP_TOKENS),
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(chain.from_iterable(map(_without_long_words, texts)), trainer)
    write(tokenizer, folder)


def _without_long_words(text: str) -> list[str]:
    """The text in pieces between which words of over _LONGEST_WORD characters are cut.

    Each merge of the training goes through all of a word, so the time of one is its length squared.
    """
    halves = range(0, len(text), _LONGEST_WORD // 2)  # a long word has all of one of them
    if not any(_HALF_OF_ONE.match(text, at) for at in halves):
        return [text]
    ends = [match.end() for match in _LONG_WORD.finditer(text)]
    return [text[start:end] for start, end in zip([0, *ends], [*ends, len(text)], strict=True)]


def check_vocab_size(vocab_size: int) -> None:
    """Raise ConfigError where it is too small."""
    if vocab_size < SMALLEST_VOCABULARY:
        raise ConfigError(
            f"vocab_size = {vocab_size} is less than the 256 bytes and the control tokens; "
            f"valid: at least {SMALLEST_VOCABULARY}"
        )


def write(tokenizer: tokenizers.Tokenizer, folder: str | os.PathLike[str]) -> None:
    """Add Qwen's control tokens after the BPE ids and write a folder that transformers loads.

    tokenizer.json is written last, whole or not at all.
    """
    tokenizer.add_special_tokens([_added(token, special=True) for token in CONTROL_TOKENS])
    tokenizer.add_tokens([_added(token, special=False) for token in MARKUP_TOKENS])
    Path(folder).mkdir(parents=True, exist_ok=True)
    config = json.dumps(_HF_CONFIG, indent=2) + "\n"
    write_whole(Path(folder) / "tokenizer_config.json", [config.encode()])
    write_whole(Path(folder) / "tokenizer.json", [tokenizer.to_str(pretty=True).encode()])


def load(path: str | os.PathLike[str]) -> tokenizers.Tokenizer:
    """The whole tokenizer, for decoding and for prompts: it does read control tokens in a text.

    ConfigError where the file is missing or none.
    """
    spec = json.dumps(read(path))
    try:
        with without_panics():
            return tokenizers.Tokenizer.from_str(spec)
    except Exception as error:  # the library raises no other
        raise ConfigError(f"{tokenizer_json(path)} is not a tokenizer.json: {error}") from None


class DocumentTokenizer:
    """Turns documents into ids. Text of a document that looks like a control token stays text.

    engine: one of engines.ENGINES, or "auto" for the fastest that is exact; `engine_note` says why
    a faster one was not taken. compare = False trusts an engine that another process compared.
    """

    def __init__(
        self, path: str | os.PathLike[str], engine: str = AUTO, compare: bool = True
    ) -> None:
        self._file = tokenizer_json(path)
        spec = read(path, is_trusted=not compare)
        check_byte_level(spec, path)
        known, ids = ids_by_token(spec, path)
        if END_OF_DOCUMENT not in ids:
            raise ConfigError(f"{self._file} has no token {END_OF_DOCUMENT}")
        self.end_of_document = ids[END_OF_DOCUMENT]
        self.vocab_size = 1 + max([*known.values(), *ids.values()])
        # Without added tokens nothing is cut out of the text before the split pattern sees it. The
        # library's own switch, encode_special_tokens, leaves out those that are not 'special'.
        plain = {**spec, "added_tokens": []}
        self.engine, self._encode, self.engine_note = choose(plain, engine, compare)

    def encode_flat(self, texts: Sequence[str]) -> Encoded:
        """Token ids of the texts end to end, the last of each <|endoftext|>, and their lengths.

        ConfigError names the tokenizer where it fails at a text.
        """
        tokens, lengths = self.encode_texts(texts)
        closed = np.insert(tokens, np.cumsum(lengths), self.end_of_document)
        return Encoded(closed, lengths + 1)

    def encode_texts(self, texts: Sequence[str]) -> Encoded:
        """The same without <|endoftext|>: texts that are parts of something."""
        try:
            with without_panics():
                return self._encode(texts)
        except Exception as error:  # whatever a library raises
            raise ConfigError(f"tokenizer {self._file} fails at a text: {error}") from None

    def encode_documents(self, texts: Sequence[str]) -> list[npt.NDArray[np.uint32]]:
        """Token ids [length] of each text, the last of each <|endoftext|>."""
        tokens, lengths = self.encode_flat(texts)
        return np.split(tokens, np.cumsum(lengths)[:-1]) if len(lengths) else []

    def encode_document(self, text: str) -> npt.NDArray[np.uint32]:
        return self.encode_documents([text])[0]


def untrained() -> tokenizers.Tokenizer:
    """Qwen's normalisation, split pattern and decoding around a BPE model that is still empty."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(tokenizers.Regex(SPLIT_PATTERN), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    tokenizer.post_processor = processors.ByteLevel(
        add_prefix_space=False, trim_offsets=False, use_regex=False
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _added(token: str, special: bool) -> tokenizers.AddedToken:
    return tokenizers.AddedToken(token, normalized=False, special=special)


_HF_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": None,
    "eos_token": END_OF_DOCUMENT,
    "pad_token": END_OF_DOCUMENT,
    "unk_token": None,
    "clean_up_tokenization_spaces": False,
    "model_max_length": 131072,
}
