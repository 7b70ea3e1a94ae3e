"""Encodes many conversations at once to ids and masks, with the ids of `chat.ChatTokenizer`.

    encoder = ChatEncoder("runs/tokenizer")
    encoded = encoder.encode([turns_to_train(messages, tools, True), ...])   # of chat.py
    encoded.tokens, encoded.lengths, encoded.trained                         # end to end

`ChatTokenizer` finds the place in a turn where the model begins to speak from the offsets of its
tokens, which only Hugging Face's tokenizers give, at a thirtieth of the speed of others. Here a
text is cut before it is encoded, at places where a cut changes no token:

- at the tags of MARKUP, which the tokenizer takes out of a text before it splits the rest; except
  within a tool's response;
- after the line end that closes a turn's given part, unless white space with another line end
  follows: Qwen's pattern takes a run of white space up to its last line end for one piece, and no
  other piece goes past a line end. NFC, too, joins nothing with a line end.

Where white space follows, and for tokenizers of another pattern, ChatTokenizer encodes the turn. No
torch.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from data_prep.engines import AUTO
from data_prep.tokenizer import DocumentTokenizer, load, untrained
from data_prep.tokenizer_file import ids_by_token, tokenizer_json
from data_prep.tokenizer_trust import read
from megatron_qwen3.chat import (
    END_THINK,
    MARKUP,
    THINK,
    TURN_END,
    TURN_START,
    ChatTokenizer,
    Turn,
)
from megatron_qwen3.config import ConfigError

_TAG = re.compile(f"({'|'.join(map(re.escape, MARKUP))})")


class EncodedDialogs(NamedTuple):
    """tokens uint32 [T], of all dialogs end to end; lengths int64 [dialogs]; trained bool [T]."""

    tokens: npt.NDArray[np.uint32]
    lengths: npt.NDArray[np.int64]
    trained: npt.NDArray[np.bool_]


class ChatEncoder:
    """Encoder of a folder or tokenizer.json. engine, compare: of data_prep.tokenizer.

    note: why it is slow with this tokenizer, or "". ConfigError where the file cannot be read or
    has no tokens for chat.
    """

    def __init__(
        self, path: str | os.PathLike[str], engine: str = AUTO, compare: bool = True
    ) -> None:
        self.documents = DocumentTokenizer(path, engine, compare)
        self.vocab_size = self.documents.vocab_size
        self._path, spec = path, read(path, is_trusted=True)
        _, ids = ids_by_token(spec, path)
        if missing := [token for token in (TURN_START, TURN_END, *MARKUP) if token not in ids]:
            raise ConfigError(
                f"{tokenizer_json(path)} is not a tokenizer for chat: it needs each of "
                f"{', '.join((TURN_START, TURN_END, *MARKUP))}, and has no {', '.join(missing)}"
            )
        self._tags = {tag: ids[tag] for tag in MARKUP}
        self.think, self.end_think = self._tags[THINK], self._tags[END_THINK]
        self._turn_start, self._turn_end = ids[TURN_START], ids[TURN_END]
        self._after_turn = self.documents.encode_texts(["\n"]).tokens.tolist()
        self._cuts_change_nothing = _is_qwens(spec)
        self._given: dict[str, list[int]] = {}
        self.note = ""
        if not self._cuts_change_nothing:
            self.note = (
                f"{tokenizer_json(path)} does not split texts as Qwen's: dialogs are encoded by "
                "Hugging Face's tokenizers, turn by turn, which is slower"
            )

    @cached_property
    def chat(self) -> ChatTokenizer:
        """The reference tokenizer, used where a text cannot be cut."""
        return ChatTokenizer(load(self._path))

    def encode(self, dialogs: Iterable[Sequence[Turn]]) -> EncodedDialogs:
        """Ids and masks; trained are the model's tokens in non-history turns, `<|im_end|>` too."""
        pieces = _Pieces(self)
        for turns in dialogs:
            for turn in turns:
                self._add_turn(pieces, turn)
            pieces.close()
        return pieces.encoded()

    def _add_turn(self, pieces: _Pieces, turn: Turn) -> None:
        learnt = turn.emitted is not None and not turn.history
        emitted = (turn.emitted or "") if learnt else ""
        if not self._cuts_change_nothing or _continues_line_ends(emitted):
            self._add_whole(pieces, turn, learnt)
        elif learnt:
            pieces.add_ids(self._begun(turn.given), False)
            self._add_text(pieces, emitted, True)
            pieces.add_ids((self._turn_end,), True)
            pieces.add_ids(self._after_turn, False)
        else:
            pieces.add_ids((self._turn_start,), False)
            for _, text, is_result in turn.stretches:
                if is_result:
                    pieces.add_text(text, False)  # a tag in it is plain text
                else:
                    self._add_text(pieces, text, False)
            pieces.add_ids((self._turn_end, *self._after_turn), False)

    def _begun(self, given: str) -> list[int]:
        """Ids of a turn up to where the model goes on: one of a few constant prefixes."""
        if (known := self._given.get(given)) is None:
            ids = self.encode([[Turn(given)]]).tokens.tolist()
            known = self._given[given] = ids[: -1 - len(self._after_turn)]
        return known

    def _add_text(self, pieces: _Pieces, text: str, trained: bool) -> None:
        if "<" not in text:
            pieces.add_text(text, trained)
            return
        for k, part in enumerate(_TAG.split(text)):
            if k % 2:
                pieces.add_ids((self._tags[part],), trained)
            else:
                pieces.add_text(part, trained)

    def _add_whole(self, pieces: _Pieces, turn: Turn, learnt: bool) -> None:
        ids, starts = self.chat.encode_turn(turn)
        marked = zip(ids, (learnt and start >= len(turn.given) for start in starts), strict=True)
        for trained, run in groupby(marked, key=lambda one: one[1]):
            pieces.add_ids([index for index, _ in run], trained)


class _Pieces:
    """Texts that are still to be encoded and ids that are known, in the order of the dialogs."""

    def __init__(self, encoder: ChatEncoder) -> None:
        self._encoder = encoder
        self._texts: list[str] = []
        self._ids: list[int] = []
        self._sizes: list[int] = []  # tokens of each piece; 0: a text still to be encoded
        self._trained: list[bool] = []
        self._ends: list[int] = []  # after how many pieces each dialog ends

    def add_text(self, text: str, trained: bool) -> None:
        if text:
            self._texts.append(text)
            self._sizes.append(0)
            self._trained.append(trained)

    def add_ids(self, ids: Sequence[int], trained: bool) -> None:
        self._ids += ids
        self._sizes.append(len(ids))
        self._trained.append(trained)

    def close(self) -> None:
        self._ends.append(len(self._sizes))

    def encoded(self) -> EncodedDialogs:
        texts = self._encoder.documents.encode_texts(self._texts)
        sizes = np.array(self._sizes, np.int64)
        is_text = sizes == 0
        sizes[is_text] = texts.lengths
        of_text = np.repeat(is_text, sizes)
        tokens = np.empty(len(of_text), np.uint32)
        tokens[of_text] = texts.tokens
        tokens[~of_text] = self._ids
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        lengths = np.diff(offsets[[0, *self._ends]])
        return EncodedDialogs(tokens, lengths, np.repeat(np.array(self._trained, bool), sizes))


def _continues_line_ends(text: str) -> bool:
    """Whether the white space that the text begins with has a line end in it."""
    if not text[:1].isspace():
        return False
    blank = text[: len(text) - len(text.lstrip())]
    return "\n" in blank or "\r" in blank


def _is_qwens(spec: dict[str, Any]) -> bool:
    """Whether this tokenizer splits as Qwen's does, so that texts may be cut as described above."""
    qwens = json.loads(untrained().to_str())
    same = all(spec.get(part) == qwens[part] for part in ("normalizer", "pre_tokenizer"))
    tags = [token for token in spec["added_tokens"] if token["content"] in MARKUP]
    flags = ("normalized", "lstrip", "rstrip", "single_word")
    return same and not any(token.get(flag) for token in tags for flag in flags)
