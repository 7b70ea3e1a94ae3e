"""Token files of documents in rows, as a corpus that was tokenized with --pack has them.

write_packed(folder / "a", texts, row_length=16, filler=0)
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_prep.indexed import IndexedWriter
from data_prep.lay_out import FILLER, lay_out


def write_packed(
    prefix: Path,
    texts: Sequence[npt.ArrayLike],
    row_length: int,
    filler: int,
    dtype: npt.DTypeLike = np.int32,
) -> None:
    """`texts`: the ids of each document; `filler`: the id at the end of rows."""
    documents = [np.asarray(text) for text in texts]
    pieces, rows = lay_out(np.array([len(ids) for ids in documents]), row_length)
    with IndexedWriter(prefix, dtype) as writer:
        for number, first, length in zip(*(x.tolist() for x in pieces[:3]), strict=True):
            is_filler = number == FILLER
            ids = np.full(length, filler) if is_filler else documents[number][first:][:length]
            writer.add_document(ids)
        writer.pack(row_length, rows.text_R)
