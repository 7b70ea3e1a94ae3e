"""Samples text to train a tokenizer on, so that no language drowns the others.

    sample = DocumentSample(["data/clean/documents"], {}, sample_bytes=1e9)
    sample.measure(tick)               # bytes of each language, once through the files
    texts = sample.texts(tick)         # and once again
    train((text for _, text in texts), 151_669, "data/tokenizer")

A tokenizer trained on a corpus as it is spends its vocabulary on the largest languages. Here a
language's share is that in the corpus to the power `exponent`, but no more than there is of it
(Conneau and Lample 2019, arXiv 1901.07291, section 3.1, draw by 0.5 for this; 0 makes all alike).
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from data_prep.documents import DocumentBatch, FilePart, read
from data_prep.labels import UNKNOWN, said
from data_prep.mixing.sampling import fill
from data_prep.tokenization.plan import TokenizeInput, check_names, find_inputs, parts
from data_prep.tokenization.spill import keys
from megatron_qwen3.config import ConfigError
from megatron_qwen3.shown import shown


class DocumentSample:
    """Documents drawn by a hash of where they stand: the same for the same inputs and seed.

    names: names of fields in the files. read_bytes: of the files at most, the beginning of each
    before the rest of any. Bad lines are passed over. tick: called with counts of bytes read.
    available, sampled: bytes of text of each language.
    """

    def __init__(
        self,
        paths: Sequence[str | os.PathLike[str]],
        names: Mapping[str, str],
        sample_bytes: float,
        exponent: float = 0.5,
        seed: int = 0,
        read_bytes: float = 20e9,
    ) -> None:
        check_names(names)
        self._names, self._seed = names, seed
        self._parts = list(_spread(find_inputs(paths), read_bytes))
        self._sample_bytes, self._exponent = sample_bytes, exponent
        self._first_problem = ""
        self.available: Counter[str] = Counter()
        self.sampled: Counter[str] = Counter()

    @property
    def num_bytes(self) -> int:
        """Bytes of the files that are read, once."""
        return sum(part.end - part.start for _, part in self._parts)

    def measure(self, tick: Callable[[int], None]) -> None:
        """Count the bytes of text of each language; ConfigError where there are none."""
        for _, batch in self._read(tick):
            for document in batch.documents:
                self.available[said(document).language or UNKNOWN] += len(document.text.encode())
        if not self.available:
            raise ConfigError(f"the inputs hold no document; see --field{self._first_problem}")
        sizes = list(self.available.values())
        budget = min(self._sample_bytes, sum(sizes))
        wanted = fill(budget, [size**self._exponent for size in sizes], sizes)
        shares = (amount / size for amount, size in zip(wanted, sizes, strict=True))
        self._chances = dict(zip(self.available, shares, strict=True))

    def texts(self, tick: Callable[[int], None]) -> Iterator[tuple[str, str]]:
        """The sample, as language and text; after `measure`."""
        for input, batch in self._read(tick):
            drawn = keys(self._seed, input, batch.positions) / 2.0**64
            for document, chance in zip(batch.documents, drawn.tolist(), strict=True):
                name = said(document).language or UNKNOWN
                if chance < self._chances[name]:
                    self.sampled[name] += len(document.text.encode())
                    yield name, document.text

    def _read(self, tick: Callable[[int], None]) -> Iterator[tuple[int, DocumentBatch]]:
        for input, part in self._parts:
            for batch in read(part, self._names):
                if batch.problems and not self._first_problem:
                    line, _, detail = batch.problems[0]
                    self._first_problem = f"; {shown(part.path)}:{line}: {shown(detail)}"
                yield input, batch
            tick(part.end - part.start)


def _spread(inputs: Sequence[TokenizeInput], read_bytes: float) -> Iterator[tuple[int, FilePart]]:
    """Parts of about `read_bytes`: the first of every file, then the second, and so on."""
    of_file = [parts(file) for file in inputs]
    size = 0
    for round in range(max(map(len, of_file))):
        for input, some in enumerate(of_file):
            if round < len(some) and size < read_bytes:
                size += some[round].end - some[round].start
                yield input, some[round]
