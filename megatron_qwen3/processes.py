"""Makes the environment of the Python processes that we start: `env=isolated()`, `python -P`.

They find this package where it lies and import nothing from the folder that they or we are started
in, whatever PYTHONPATH says: an empty or relative entry of it means that folder. Nothing here
imports torch.
"""

import os
from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parents[1]


def isolated() -> dict[str, str]:
    """Our environment, whose path has the package's folder first, then absolute folders alone."""

    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    path = os.pathsep.join([str(_CHECKOUT), *filter(os.path.isabs, given)])
    return os.environ | {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
