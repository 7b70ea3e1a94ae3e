"""Decodes tokens to text while they come: `stream.add(token)` returns the text that is complete.

A character may be spread over several tokens; its bytes are held back until it is whole.
"""

import tokenizers


class TextStream:
    """One row's text in pieces, each valid by itself, which together are the whole text."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._held: list[int] = []

    def add(self, token: int) -> str:
        """The text that this token completes; "" for control tokens."""
        self._held.append(token)
        text = self._decode()
        return "" if text.endswith("\N{REPLACEMENT CHARACTER}") else self._release(text)

    def end(self) -> str:
        """The text held back so far; bytes that form no character become U+FFFD."""
        return self._release(self._decode())

    def _decode(self) -> str:
        return str(self._tokenizer.decode(self._held, skip_special_tokens=True))

    def _release(self, text: str) -> str:
        self._held = []
        return text
