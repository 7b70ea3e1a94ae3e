"""`published_folder`: Qwen's published tokenizer, whose rebuilding takes seconds, made once."""

import fcntl

import pytest

from data_prep import published
from megatron_qwen3.config import ConfigError


@pytest.fixture(scope="session")
def published_folder(tmp_path_factory):
    """A tokenizer's folder, not to be changed; skips where Qwen's tokens are not installed."""
    try:
        ranks = published.ranks_file()
    except ConfigError as error:
        pytest.skip(str(error))
    session = tmp_path_factory.getbasetemp()
    # Workers of pytest-xdist have folders of their own in one of the session.
    shared = session.parent if session.name.startswith("popen-") else session
    folder = shared / "published"
    with (shared / "published.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "tokenizer.json").exists():
            published.save(ranks, folder)
    return folder
