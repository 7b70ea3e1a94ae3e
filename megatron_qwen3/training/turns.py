"""Tensors that leave the device's memory in turn: a teacher's weights, a student's optimizer.

    optimizer = DeviceTurn(lambda: state_tensors(engine.optimizer))
    optimizer.leave()                 # moves to the host and frees the device's memory
    ...
    optimizer.come()                  # the same tensors, with the same bits

A storage is emptied and filled again in place, so that every view of it and every reference to its
tensors stays valid.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


class DeviceTurn:
    """tensors: gives those that move; called at each `leave`, as optimizers add state late."""

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
            if not tensor.untyped_storage().resizable():  # such as numpy's, read from a file
                tensor.data = tensor.detach().clone()
            storage = tensor.untyped_storage()
            storages[storage._cdata] = storage
        for storage in storages.values():
            if storage.nbytes():
                self._kept.append((storage, _bytes_of(storage).to("cpu", copy=True)))
                storage.resize_(0)

    def come(self) -> None:
        """Move the tensors back."""
        for storage, kept in self._kept:
            storage.resize_(len(kept))
            _bytes_of(storage).copy_(kept)
        self._kept = []


def _bytes_of(storage: torch.UntypedStorage) -> Tensor:
    empty = torch.empty(0, dtype=torch.uint8, device=storage.device)
    return empty.set_(storage)
