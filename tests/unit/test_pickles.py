"""A pickle of a stranger takes no more memory than its size lets expect."""

import pytest

from megatron_qwen3.storage import pickles


def test_what_a_call_keeps_counts_towards_the_memory_of_a_pickle():
    """A byte makes a set of 216 bytes, and each call keeps its own."""
    call = b"ctorch\nSize\n(" + b"\x8f" * 200_000 + b"tR"
    with pytest.raises(ValueError, match="MemoryError"):
        pickles.read_large(b"\x80\x04](" + call * 16 + b"e.")
