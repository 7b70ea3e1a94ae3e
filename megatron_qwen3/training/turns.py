"""Tensors that take turns in the device's memory: a teacher's weights, a student's optimizer.

    optimizer = DeviceTurn(lambda: state_tensors(engine.optimizer))
    optimizer.leave()                 # to the host's memory; the device's is free
    ...
    optimizer.come()                  # the same tensors, of the same bits

A storage is emptied and filled again, so that every view of it and everything that knows one of
the tensors stays what it was.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


class DeviceTurn:
    """tensors: what takes the turn; asked each time it leaves, since optimizers add state late."""

    def __init__(self, tensors: Callable[[], Iterable[Tensor]]) -> None:
        self._tensors = tensors
        self._kept: list[tuple[torch.UntypedStorage, Tensor]] = []

    @property
    def is_away(self) -> bool:
        return bool(self._kept)

    def leave(self) -> None:
        """Copy every storage to the host and free it. Nothing may use the tensors then."""
        assert not self.is_away, "it has left already"
        storages = {}
        for tensor in self._tensors():
            if not tensor.untyped_storage().resizable():  # as of what numpy has read from a file
                tensor.data = tensor.detach().clone()
            storage = tensor.untyped_storage()
            storages[storage._cdata] = storage
        for storage in storages.values():
            if storage.nbytes():
                self._kept.append((storage, _bytes_of(storage).to("cpu", copy=True)))
                storage.resize_(0)

    def come(self) -> None:
        """Have the tensors back where they were."""
        for storage, kept in self._kept:
            storage.resize_(len(kept))
            _bytes_of(storage).copy_(kept)
        self._kept = []


def _bytes_of(storage: torch.UntypedStorage) -> Tensor:
    empty = torch.empty(0, dtype=torch.uint8, device=storage.device)
    return empty.set_(storage)
