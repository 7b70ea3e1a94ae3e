"""The process that `te_ranks.py` starts: it forks ranks that have Transformer Engine.

    python -m tests.te.te_server FILE_DESCRIPTOR

It serves one caller until that closes the connection, and imports neither megatron-core nor
Transformer Engine itself: the server of ranks that it starts does, once (`te_preloaded.py`).
"""

import importlib
import os
import pickle
import sys
from multiprocessing.connection import Connection

from tests import ranks
from tests.te.te_ranks import PACKAGES


def main() -> None:
    caller = Connection(int(sys.argv[1]))
    ranks.forkserver.set_forkserver_preload(["tests.te.te_preloaded"])
    while True:
        try:
            path, world_size, timeout_seconds, environment, asked = caller.recv()
        except EOFError:
            return
        results, error = b"", None
        try:
            made = ranks.run_ranks(
                call, world_size, path, environment, asked, timeout_seconds=timeout_seconds
            )
            results = pickle.dumps(made)
        except ranks.RankError as fault:
            error = str(fault)
        caller.send((results, error))


def call(path, environment, asked):
    """On a rank: the result of a function of a test module."""
    os.environ.update(environment)
    sys.path += [folder for folder in (*path, str(PACKAGES)) if folder not in sys.path]
    module, name, args = pickle.loads(asked)
    return getattr(importlib.import_module(module), name)(*args)


if __name__ == "__main__":
    main()
