"""Groups numbers of a study that stand for the same: token counts are whole steps.

levels([300e3, 299_008, 150e3])  # [1, 1, 0]
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

_SAME = 0.08  # of a logarithm: neighbours further apart are different levels


def levels(values: ArrayLike) -> NDArray[np.intp]:
    """The level of each value, counted from 0 upwards; values above 0."""
    logarithms = np.log(np.asarray(values, dtype=float))
    order = np.argsort(logarithms)
    numbers = np.empty(len(order), dtype=np.intp)
    numbers[order] = np.concatenate([[0], np.cumsum(np.diff(logarithms[order]) > _SAME)])
    return numbers
