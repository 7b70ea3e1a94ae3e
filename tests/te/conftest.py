"""Transformer Engine's Python with its kernels stood in: see stand_in.py and te_ranks.py."""

import pytest

from tests.te.te_ranks import PACKAGES


@pytest.fixture(autouse=True)
def _installed():
    if not (PACKAGES / "transformer_engine").is_dir():
        pytest.skip(f"no Transformer Engine in {PACKAGES.name}: make {PACKAGES.name}/installed")
