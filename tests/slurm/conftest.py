"""`cluster`: one SLURM for all tests of a session, installed first where that is possible."""

import tempfile
from pathlib import Path

import pytest
from cluster import Cluster, why_not_installable


@pytest.fixture(scope="session")
def cluster():
    """Three nodes of four processors and two GPUs on paper; see cluster.py."""
    if reason := why_not_installable():
        pytest.skip(reason)
    # Not pytest's folder: the path of a Unix socket holds 107 bytes.
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder, Cluster(Path(folder)) as cluster:
        yield cluster
