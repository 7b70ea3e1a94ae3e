"""2-norms of gradients: `norms(tensors)`, one number of float32 each.

On a CPU torch adds the squares of a large tensor one after the other, in one thread: for ten
million numbers the fourth digit is wrong. Here squares are added within blocks, by all threads, and
then the blocks' norms are combined.
"""

import torch
from torch import Tensor

_BLOCK = 1024


def norms(tensors: list[Tensor]) -> Tensor:
    """[len(tensors)], at least one tensor, all on one device."""
    if tensors[0].is_cuda:
        return torch.stack(torch._foreach_norm(tensors, dtype=torch.float32))
    return torch.stack([_norm(tensor) for tensor in tensors])


def _norm(tensor: Tensor) -> Tensor:
    flat = tensor.flatten()
    end = flat.numel() // _BLOCK * _BLOCK
    blocks = torch.linalg.vector_norm(flat[:end].view(-1, _BLOCK), dim=1, dtype=torch.float32)
    return torch.linalg.vector_norm(torch.cat([blocks, flat[end:].float()]))
