"""Tokenized dialogs on disk: token ids, a mask of the trained ones, each sample's weight and mode.

    with DialogSetWriter("runs/data/chat", "dialogs", vocab_size, tokenizer_sha256) as writer:
        writer.add(tokens, lengths, trained, rows)   # many samples, end to end
        writer.sources += ["web", "code"]            # names of the numbers in the rows
    dialogs = DialogSet("runs/data/chat")
    ids, trained = dialogs.read(17)                  # of one sample; reads nothing else

A set is five files with one prefix. PREFIX.bin and .idx are Megatron's, one document per sample:
the ids of a whole rendered conversation, in order. PREFIX.trained has a byte for each token, 1
where the token is trained as a label. PREFIX.samples.npy has a row of SAMPLE for each sample.
PREFIX.json has the rest and is written last: a set with this file is whole.

A sample trains tokens[:-1] to give the labels tokens[1:]; the weight of label t is that of its
sample where trained[t], else 0. Of kind "pairs", sample 2n is the chosen answer to a conversation
and 2n + 1 the rejected one; its one marked token is the last, where the reward is read. No torch.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from data_prep.fingerprint import file_sha256
from data_prep.indexed import IndexedReader, IndexedWriter, token_dtype
from data_prep.json_files import json_bytes, read_json, write_json
from megatron_qwen3.config import ConfigError
from megatron_qwen3.storage.whole import whole_file

VERSION = 1
KINDS = ("dialogs", "pairs")
MODES = ("none", "thinking", "non-thinking")  # of a sample's last answer, by their numbers
SAMPLE = np.dtype(
    [("weight", "<f4"), ("mode", "u1"), ("source", "<u2"), ("dialog", "<i8"), ("margin", "<f4")]
)
FILES = ("bin", "idx", "trained", "samples.npy")  # suffixes, beside the .json
_END = 256  # tokens at each end of a sample that enter its digest
_AGAIN = "tokenize the dialogs again"


class DialogSample(NamedTuple):
    """ids int64 [length]; trained bool [length]: whether the token is trained as a label."""

    ids: npt.NDArray[np.int64]
    trained: npt.NDArray[np.bool_]


class Stretch(NamedTuple):
    """Samples end to end, as `DialogSetWriter.add` takes them: ids [tokens] in the dtype of the
    file, lengths int64 [samples], trained bool [tokens], rows of SAMPLE [samples]."""

    tokens: npt.NDArray[Any]
    lengths: npt.NDArray[np.int64]
    trained: npt.NDArray[np.bool_]
    rows: npt.NDArray[Any]


class DialogSetWriter:
    """Writes a set; it appears, in place of an older one, when the `with` block ends without error.

    kind: of KINDS. tokenizer: the sha256 of its tokenizer.json. sources: the caller fills it with
    the names that the rows' numbers stand for. about: the caller fills it with further entries of
    PREFIX.json: how the samples were made, and which lines were left out.
    """

    def __init__(
        self, prefix: str | os.PathLike[str], kind: str, vocab_size: int, tokenizer: str
    ) -> None:
        if kind not in KINDS:
            raise ValueError(f"kind = {kind!r}; valid: {', '.join(KINDS)}")
        self._prefix = os.fspath(prefix)
        self._content = {"kind": kind, "tokenizer": tokenizer, "vocab_size": vocab_size}
        self.sources: list[str] = []
        self.about: dict[str, Any] = {}
        self._samples = self._tokens = self._trained_tokens = 0
        self._files = ExitStack()
        self._tokens_writer = IndexedWriter(prefix, token_dtype(vocab_size))
        self._files.push(self._tokens_writer)
        self._trained, self._rows = (
            self._files.enter_context(whole_file(Path(f"{self._prefix}.{suffix}")))
            for suffix in FILES[2:]
        )
        self._rows.write(_header(0))

    def add(
        self,
        tokens: npt.NDArray[Any],
        lengths: npt.NDArray[Any],
        trained: npt.NDArray[np.bool_],
        rows: npt.NDArray[Any],
    ) -> None:
        """Append samples: ids [tokens] end to end, lengths [samples], trained [tokens], rows of
        SAMPLE [samples]. ValueError where sizes disagree or an id is outside the vocabulary."""
        if len(trained) != len(tokens) or len(rows) != len(lengths) or rows.dtype != SAMPLE:
            raise ValueError(
                f"{self._prefix}: {len(tokens)} tokens, {len(trained)} entries of its mask, "
                f"{len(lengths)} lengths, {len(rows)} rows of {rows.dtype}"
            )
        self._tokens_writer.add_documents(tokens, lengths)
        self._trained.write(np.ascontiguousarray(trained, np.bool_).data)
        self._rows.write(np.ascontiguousarray(rows).tobytes())
        self._samples += len(lengths)
        self._tokens += len(tokens)
        self._trained_tokens += int(np.count_nonzero(trained))

    def finalize(self) -> None:
        """Make the set visible."""
        mark = Path(f"{self._prefix}.json")
        mark.unlink(missing_ok=True)
        self._rows.seek(0)
        self._rows.write(_header(self._samples))
        self._files.close()
        counts = {"samples": self._samples, "tokens": self._tokens}
        counts["trained_tokens"] = self._trained_tokens
        digests = {suffix: file_sha256(f"{self._prefix}.{suffix}") for suffix in FILES}
        named = {"sources": self.sources, "about": self.about, "sha256": digests}
        write_json(mark, {"version": VERSION, **self._content, **counts, **named})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, *rest: Any) -> None:
        if kind is None:
            self.finalize()
        else:
            self._files.__exit__(kind, *rest)


class DialogSet:
    """A set, memory-mapped. ConfigError, in one line, where it is missing, cut short, damaged or
    of another version.

    kind: of KINDS. sources: names. tokenizer: the sha256 of its tokenizer.json. about: how the
    samples were made. Of each sample, [N]: weights_N float32 above 0; modes_N, numbers in MODES;
    sources_N, numbers in `sources`; dialogs_N int64, the line of the input that it came from,
    counted from 0 through all files; margins_N float32, by how much the chosen answer should win.
    """

    def __init__(self, prefix: str | os.PathLike[str]) -> None:
        self.prefix = os.fspath(prefix)
        content = self._content()
        self.about: dict[str, Any] = content["about"]
        self.sources: tuple[str, ...] = tuple(content["sources"])
        self.kind, self.tokenizer = str(content["kind"]), str(content["tokenizer"])
        self.vocab_size = int(content["vocab_size"])
        self._reader = IndexedReader(prefix)
        self._trained = self._trained_bytes(len(self._reader.tokens))
        rows = self._rows_N = self._rows(self._reader.num_documents)
        found = len(rows), len(self._reader.tokens)
        if found != (content["samples"], content["tokens"]):
            raise self._wrong(
                "json",
                f"says {content['samples']:,} samples of {content['tokens']:,} tokens, "
                f"the files beside it hold {found[0]:,} of {found[1]:,}",
            )
        self.weights_N, self.modes_N, self.sources_N, self.dialogs_N, self.margins_N = (
            np.asarray(rows[name]) for name in SAMPLE.names or ()
        )
        self._check_rows()

    def __len__(self) -> int:
        return len(self.weights_N)

    @cached_property
    def lengths_N(self) -> npt.NDArray[np.int64]:
        """Tokens of each sample, int64 [N]."""
        return np.diff(self._offsets)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of the samples' content, not of where and when they were written. Files
        derived from a set, such as a teacher's probabilities, name their set by it."""
        content = self._content()
        names = ("kind", "tokenizer", "vocab_size", "sources", "sha256")
        return hashlib.sha256(json_bytes([content[name] for name in names])).hexdigest()[:16]

    def read(self, n: int) -> DialogSample:
        """Sample n, of 0 … N - 1."""
        if not 0 <= n < len(self):
            raise IndexError(f"{self.prefix} has samples 0 to {len(self) - 1}, not {n}")
        start, end = self._offsets[n : n + 2]
        trained = np.asarray(self._trained[start:end]) != 0
        return DialogSample(self._reader.tokens[start:end].astype(np.int64), trained)

    def digest(self, n: int) -> int:
        """64 bits of the ids of sample n, equal in every set. For a long sample, a digest of its
        length and both ends, so that a large set need not be read whole."""
        start, end = self._offsets[n : n + 2]
        ids = self._reader.tokens[start:end]
        ends = ids if len(ids) <= 2 * _END else np.concatenate([ids[:_END], ids[-_END:]])
        content = len(ids).to_bytes(8, "little") + ends.astype("<i8").tobytes()
        return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")

    def origin(self, n: int) -> tuple[str, int]:
        """The input file of sample n, and its line there, from 1; ("", 0) where unknown."""
        line = int(self.dialogs_N[n])
        for name, count in self.about.get("inputs", []):
            if line < count:
                return name, line + 1
            line -= count
        return "", 0

    def faults(self) -> Iterator[str]:
        """Files that are not as they were written; reads all of them."""
        for suffix, expected in self._content()["sha256"].items():
            if file_sha256(f"{self.prefix}.{suffix}") != expected:
                yield f"{self.prefix}.{suffix} was changed after it was written: its sha256 differs"

    def stretches(self, tokens: int) -> Iterator[Stretch]:
        """All samples in order, in stretches of about `tokens` tokens."""
        first = 0
        while first < len(self):
            end = np.searchsorted(self._offsets, self._offsets[first] + tokens, side="right") - 1
            last = min(len(self), max(first + 1, int(end)))
            start, stop = self._offsets[first], self._offsets[last]
            yield Stretch(
                self._reader.tokens[start:stop],
                self.lengths_N[first:last],
                self._trained[start:stop] != 0,
                self._rows_N[first:last],
            )
            first = last

    @cached_property
    def _offsets(self) -> npt.NDArray[np.int64]:
        offsets = self._reader.document_offsets
        if np.any(np.diff(offsets) < 1):
            raise self._wrong("idx", "has a sample without tokens")
        return offsets

    def _content(self) -> dict[str, Any]:
        otherwise = "the set of dialogs is not whole, or no set; mq3 data dialogs --out "
        otherwise += f"{self.prefix} makes it"
        content = read_json(Path(f"{self.prefix}.json"), otherwise, VERSION)
        names = {"tokenizer", "vocab_size", "samples", "tokens", "sources", "about", "sha256"}
        if content.get("kind") not in KINDS or not names <= content.keys():
            kinds = " or ".join(KINDS)
            raise self._wrong("json", f"is of kind {content.get('kind')!r}, not {kinds}", "")
        return content

    def _trained_bytes(self, tokens: int) -> npt.NDArray[np.uint8]:
        with self._readable("trained") as path:
            size = path.stat().st_size
            if size != tokens:
                raise self._wrong("trained", f"has {size:,} bytes for {tokens:,} tokens")
            return np.memmap(path, np.uint8, "r") if size else np.zeros(0, np.uint8)

    def _rows(self, samples: int) -> npt.NDArray[Any]:
        with self._readable("samples.npy") as path:
            rows: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
            if rows.dtype != SAMPLE or rows.shape != (samples,):
                found = f"holds {rows.shape} of {rows.dtype}, not the rows of {samples:,} samples"
                raise self._wrong("samples.npy", found)
            return rows

    def _check_rows(self) -> None:
        if np.any(~(self.weights_N > 0)) or np.any(np.isinf(self.weights_N)):
            raise self._wrong("samples.npy", "has a weight that is no finite number above 0")
        if np.any(self.modes_N >= len(MODES)) or np.any(self.sources_N >= len(self.sources)):
            raise self._wrong("samples.npy", "has a mode or source that has no name")
        if not np.all(np.isfinite(self.margins_N)):
            raise self._wrong("samples.npy", "has a margin that is no finite number")
        if self.kind == "pairs" and len(self) % 2:
            raise self._wrong("samples.npy", f"has {len(self):,} samples, of pairs without a half")

    @contextmanager
    def _readable(self, suffix: str) -> Iterator[Path]:
        try:
            yield Path(f"{self.prefix}.{suffix}")
        except (OSError, ValueError, EOFError) as error:
            if isinstance(error, ConfigError):
                raise
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise self._wrong(suffix, f"cannot be read: {reason}") from None

    def _wrong(self, suffix: str, how: str, advice: str = _AGAIN) -> ConfigError:
        return ConfigError(f"{self.prefix}.{suffix} {how}" + (f"; {advice}" if advice else ""))


def set_of(setting: str, path: str) -> DialogSet:
    """Opens the set that a setting, such as sft.sources.web, names; errors name it, too."""
    try:
        return DialogSet(path)
    except ConfigError as error:
        raise ConfigError(f"{setting}: {error}") from None


def _header(samples: int) -> bytes:
    """The header of PREFIX.samples.npy: the same number of bytes for any number of samples."""
    fields = f"{{'descr': {SAMPLE.descr!r}, 'fortran_order': False, 'shape': ({samples},), }}"
    magic = np.lib.format.magic(1, 0)
    size = 256 - len(magic) - 2
    return magic + size.to_bytes(2, "little") + fields.encode().ljust(size - 1) + b"\n"
