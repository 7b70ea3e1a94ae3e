"""Keeps the memory that tensors free, on a CPU.

glibc gives every large block back to the kernel when a tensor is freed, and each training step
then pays for the kernel to zero and map the same gigabytes again, page by page. A process that
trains wants its memory for as long as it lives. Call `keep_freed_memory` once, before the model.
"""

import ctypes
import os

_GIB = 1 << 30
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h
_MADV_HUGEPAGE = 14  # sys/mman.h


def keep_freed_memory() -> bool:
    """Serve large blocks from a heap that never shrinks; False where malloc is not glibc's."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    settings = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1, _M_TOP_PAD: 64 << 20}
    kept = all(libc.mallopt(name, value) for name, value in settings.items())
    _prefer_huge_pages(libc, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return kept


def _prefer_huge_pages(libc: ctypes.CDLL, physical_bytes: int) -> None:
    """Mark the heap's future addresses, half the machine's memory, for pages of 2 MiB.

    Only addresses are taken and returned: nothing is resident until a tensor is written there.
    """
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    blocks = []
    for _ in range(physical_bytes // 2 // _GIB):
        if not (block := libc.malloc(_GIB)):
            break
        first_page = -(-block // 4096) * 4096
        libc.madvise(first_page, _GIB - 4096, _MADV_HUGEPAGE)
        blocks.append(block)
    for block in reversed(blocks):
        libc.free(block)
