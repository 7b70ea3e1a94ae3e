"""Settings of all tests: tests of a GPU are skipped where there is none, and luck is left out.

Properties are tried on the same examples every time, so that a change is judged by its effect.
To look for new counterexamples: `pytest tests/unit --hypothesis-profile=default`.

A process of tests has one thread for arithmetic, and so has each that it starts: threads of several
processes on the same cores do little but wait for one another, and use the processor while they do.
"""

import gc
import os

# Before torch and numpy are imported, by pytest or by a command that a test starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


def pytest_collection_modifyitems(items):
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


def pytest_collection_finish():
    """No test looks through millions of objects that imports have made and that stay."""
    gc.collect()
    gc.freeze()
