"""Computes a value on the first rank for all: `asks = of_first(lambda: asker.draw(32))`.

All ranks call it; only the first computes the value, and all get it, or its error. So files are
read and endpoints asked once, and an error there leaves no rank waiting for another.
"""

import pickle
from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

T = TypeVar("T")


def of_first(make: Callable[[], T]) -> T:
    """`make()` of the first rank, on all; its exception is raised on all."""
    told: list[Any] = [None, None]
    fault: Exception | None = None
    if dist.get_rank() == 0:
        try:
            told[0] = make()
        except Exception as error:
            fault, told = error, [None, _sendable(error)]
    if dist.get_world_size() > 1:
        dist.broadcast_object_list(told, src=0)
    if fault or told[1]:
        raise fault or told[1]
    found: T = told[0]
    return found


def _sendable(error: Exception) -> Exception:
    """The error, or one with its text where it cannot be sent to other processes."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"on the first rank: {type(error).__name__}: {error}")
    return error
