"""The engines that turn text into ids, behind one call: `engine(texts) -> Encoded`.

All give the ids that Hugging Face's tokenizers give for the same tokenizer.json; they differ in
speed. `fastokens` is some 50 times faster and the default where it is installed and passes the
comparison of `choose`; `huggingface` is the reference and reads every tokenizer.json.

    name, engine, note = choose(spec)
    tokens, lengths = engine(["one text", "another"])

Another engine is one more function in ENGINES. gigatoken 0.10 is a fifth faster still, but not
exact: it splits and composes by a later Unicode (4,657 letters and digits differ), and its memory
grows with every new word.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import tokenizers

from megatron_qwen3.config import ConfigError

AUTO = "auto"


class Encoded(NamedTuple):
    """Ids of several texts end to end, uint32 [tokens], and the length of each, int64 [texts]."""

    tokens: npt.NDArray[np.uint32]
    lengths: npt.NDArray[np.int64]


Engine = Callable[[Sequence[str]], Encoded]


def _fastokens(spec: dict[str, Any]) -> Engine:
    os.environ.setdefault("FASTOKENS_BPE_THREADS", "1")  # processes share the cores, not threads
    import fastokens

    tokenizer = fastokens.Tokenizer.from_json_str(json.dumps(spec))

    def encode(texts: Sequence[str]) -> Encoded:
        tokens, ends = tokenizer.encode_batch_flat(list(texts))
        return Encoded(np.frombuffer(tokens, "<u4"), np.diff(np.frombuffer(ends, "<i8")))

    return encode


def _huggingface(spec: dict[str, Any]) -> Engine:
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(spec))

    def encode(texts: Sequence[str]) -> Encoded:
        encodings = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        lengths = np.array([len(encoding.ids) for encoding in encodings], np.int64)
        tokens = np.empty(lengths.sum(), np.uint32)
        end = 0
        for encoding in encodings:
            start, end = end, end + len(encoding.ids)
            tokens[start:end] = encoding.ids
        return Encoded(tokens, lengths)

    return encode


REFERENCE = "huggingface"
ENGINES: dict[str, Callable[[dict[str, Any]], Engine]] = {
    "fastokens": _fastokens,
    REFERENCE: _huggingface,
}


class Choice(NamedTuple):
    """The engine to use, and why it is not the fastest, or ""."""

    name: str
    engine: Engine
    note: str


def choose(spec: dict[str, Any], wanted: str = AUTO, compare: bool = True) -> Choice:
    """The fastest engine, or the one named by `wanted`, if its ids are exact.

    ConfigError where it is unknown, not installed, or gives other ids than the reference on texts
    that engines disagree on; compare = False leaves out the last.
    """
    if wanted not in (AUTO, *ENGINES):
        raise ConfigError(f'engine = "{wanted}" is unknown; valid: {", ".join((AUTO, *ENGINES))}')
    notes: list[str] = []
    for name in ENGINES if wanted == AUTO else [wanted]:
        try:
            return Choice(name, _load(name, spec, compare), "; ".join(notes))
        except ConfigError as error:
            notes.append(str(error))
    raise ConfigError(f"the tokenizer cannot be used: {'; '.join(notes)}")


def _load(name: str, spec: dict[str, Any], compare: bool) -> Engine:
    try:
        with without_panics():
            engine = ENGINES[name](spec)
            actual = engine(_PROBES) if compare else None
            expected = _huggingface(spec)(_PROBES) if compare and name != REFERENCE else actual
    except ImportError:
        raise ConfigError(f"{name} is not installed: python -m pip install {name}") from None
    except Exception as error:  # whatever a library raises for a tokenizer.json it cannot read
        raise ConfigError(f"{name} cannot read this tokenizer: {error}") from None
    if actual is not None and expected is not None:
        is_exact = np.array_equal(actual.tokens, expected.tokens)
        if not (is_exact and np.array_equal(actual.lengths, expected.lengths)):
            raise ConfigError(f"{name} gives other ids than Hugging Face's tokenizers")
    return engine


@contextmanager
def without_panics() -> Iterator[None]:
    """Turn panics of these libraries, which pass every `except Exception`, into ValueError."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ == "PanicException":
            raise ValueError(str(error)) from None
        raise


_PROBES = (
    "The quick brown fox's 1234 don't 'RE I'ſ  two   three\n\n \n\t x\r\n\r\n",
    "def f(x):\n    return {'a': [x ** 2 for x in range(10)]}  # ===>\n\n\n",
    "河流从山里流出来。東京は日本の首都です。대한민국 ᄒᆞᆫ글 ภาษาไทย नदी पहाड़ों से",
    "e\u0301 \u1100\u1161\u11a8 \u0928\u093c a\u0323\u0301 a\u0301\u0323 \u212b \u2126 ﬁ ½ ٣٤ Ⅷ",
    "a\u08e1\u1df9\U00016b30b e\U00011ef5\u0301 A\u0f35\U00010f4a 한\ufe00 \u05d0\u05b7\u05bc",
    "\u00a0\u2003\u3000\u200b\ufeff\u2028\u0085\u180e\x1f \x00 👩🏽\u200d🚀 \U000323b0's \u0c5c1",
    "<|endoftext|><think>\n</think> <|im_start|>user <tool_call>{}</tool_call>",
)
