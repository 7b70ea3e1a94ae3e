"""Counts the bytes of tensors that live at a time by torch's dispatcher: equal on any machine.

    with LiveMemory() as memory:
        function(inputs).backward()
    memory.peak_bytes, memory.live_bytes, memory.largest_bytes

Counted are the tensors that operations return, each storage once and as long as it lives; earlier
tensors are not. Allocations of a kernel for itself are not seen, nor are matrix libraries'
workspaces: real memory is a little more, and grows the same way.
"""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveMemory(TorchDispatchMode):
    """The most bytes at a time, the bytes now, and the largest single tensor.

    at_peak: (bytes, dtype, shape) of each tensor that lived when there were most.
    """

    def __init__(self):
        super().__init__()
        self.live_bytes = self.peak_bytes = self.largest_bytes = 0
        self.at_peak = []
        self._known = {}  # address of a storage -> (weak reference to it, its bytes, type, shape)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self._learn((args, kwargs), are_new=False)
        output = function(*args, **(kwargs or {}))
        self._learn(output, are_new=True)
        return output

    def _learn(self, values, are_new):
        for tensor in tree_leaves(values):
            if not isinstance(tensor, torch.Tensor):
                continue
            storage = tensor.untyped_storage()
            address = storage._cdata
            if address in self._known:
                continue
            size = storage.nbytes() if are_new else 0
            forget = weakref.ref(storage, lambda _, address=address: self._forget(address))
            self._known[address] = (forget, size, tensor.dtype, tuple(tensor.shape))
            self.live_bytes += size
            self.largest_bytes = max(self.largest_bytes, size)
            if self.live_bytes > self.peak_bytes:
                self.peak_bytes = self.live_bytes
                self.at_peak = [known[1:] for known in self._known.values() if known[1]]

    def _forget(self, address):
        _, size, *_ = self._known.pop(address)
        self.live_bytes -= size
