"""Qwen3 training on megatron-core: from raw text to an aligned model in Hugging Face format.

Start reading at `train.py` (the command line) and `settings.py` (everything that can be set).
This file imports nothing that takes time, so that reading a configuration never loads torch. Before
anything else is imported it limits what Python trusts in this process: torch loads no pickle that
has code in it, and no module is imported from the folder in which the process was started.
"""

import os
import sys

__version__ = "0.1.0"


def _trust_no_pickle() -> None:
    """Every torch.load of this process and of those that it starts takes plain data alone."""
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)  # torch refuses to have both


def _trust_no_folder() -> None:
    """Take the caller's folder off the path, where `python -m` puts it.

    A file transformers.py beside a downloaded model would be imported from there. A checkout that
    is the caller's folder stays on the path, and so do folders that PYTHONPATH names in full.
    Nothing changes where another program imports this package.
    """
    if sys.argv[:1] != ["-m"]:  # as it is while `python -m` imports the packages around a module
        return
    checkout = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    try:
        here = os.path.realpath(os.getcwd())
    except OSError:  # the folder is gone
        here = ""
    named = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    first = 0 if sys.flags.safe_path else 1  # Python itself adds the entry before it
    kept = [
        path
        for place, path in enumerate(sys.path)
        if path
        and (
            os.path.realpath(path) != here
            or (place >= first and os.path.isabs(path) and path in named)
            or path.endswith("-packages")  # where Python itself has its modules
        )
    ]
    sys.path[:] = [checkout, *kept] if os.path.realpath(checkout) == here else kept


_trust_no_pickle()
_trust_no_folder()
