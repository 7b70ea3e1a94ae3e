"""Fixtures that several files of tests share.

`published_folder`: Qwen's published tokenizer, whose rebuilding takes seconds, made once;
`tokenizer`: a small one of the words of `corpora.py`; `small_units`: a corpus of many parts.
"""

import fcntl

import pytest

from data_prep import published
from data_prep.tokenization import plan, work
from data_prep.tokenizer import train
from megatron_qwen3.config import ConfigError
from tests.corpora import WORDS


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


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    """The folder of a tokenizer of the words of corpora, not to be changed."""
    folder = tmp_path_factory.mktemp("tokenizer")
    train([" ".join(WORDS) * 50], 500, folder)
    return str(folder)


@pytest.fixture
def small_units(monkeypatch):
    """Sizes at which a test's documents take several units, runs and shards."""
    monkeypatch.setattr(plan, "UNIT_BYTES", 1 << 14)
    monkeypatch.setattr(work, "RUN_BYTES", 1 << 12)
