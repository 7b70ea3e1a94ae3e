"""Pins the versions that pip may install in an image, and checks that the image's own remain.

    python containers/pins.py write constraints.txt > FILE    before pip, for its --constraint
    python containers/pins.py check FILE                      after it

NVIDIA's image comes with torch, Transformer Engine, apex and DALI, which are compiled for one
another. `kept.txt` names them; `write` puts the versions that are installed before the pins of the
file that it is given, and fails where one that is required is missing; `check` fails where one has
changed. Everything else is as constraints.txt pins it, in a virtual environment on top of the
image. Only the standard library is used: this runs before anything is installed.
"""

import re
import sys
from fnmatch import fnmatchcase
from importlib.metadata import distributions
from pathlib import Path

KEPT = Path(__file__).with_name("kept.txt")


def normal(name: str) -> str:
    """A package's name as registries compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def lines(path: Path) -> list[str]:
    """The lines of a file that are neither empty nor comments."""
    rows = (row.partition("#")[0].strip() for row in path.read_text().splitlines())
    return [row for row in rows if row]


def pinned(path: Path) -> dict[str, str]:
    """The versions of a file of constraints, by name."""
    rows = (row.partition("==") for row in lines(path))
    return {normal(name): version for name, _, version in rows}


def is_kept(name: str) -> bool:
    """Whether the image's version of a package stays."""
    return any(fnmatchcase(normal(name), row.partition(" ")[0]) for row in lines(KEPT))


def installed() -> dict[str, str]:
    """The kept packages that this Python finds, by name; the first on its path wins."""
    found: dict[str, str] = {}
    for package in distributions():
        name = package.metadata["Name"]
        if name and is_kept(name):
            found.setdefault(normal(name), package.version)
    return found


def write(pins: Path) -> str:
    """pip's constraints: versions of the image, then those of `pins`."""
    found = installed()
    required = (row.partition(" ")[0] for row in lines(KEPT) if row.endswith(" required"))
    missing = [name for name in required if not any(fnmatchcase(own, name) for own in found)]
    if missing:
        raise SystemExit(f"error: the image lacks {', '.join(missing)}, which kept.txt requires")
    own = [f"{name}=={version}" for name, version in sorted(found.items())]
    return "\n".join([*own, *lines(pins)]) + "\n"


def check(constraints: Path) -> None:
    """Raise SystemExit where a kept package changed after the constraints were written."""
    now = installed()
    before = {name: version for name, version in pinned(constraints).items() if is_kept(name)}
    changed = [
        f"{name} was {before.get(name, 'absent')} and is {now.get(name, 'absent')}"
        for name in sorted({*now, *before})
        if before.get(name) != now.get(name)
    ]
    if changed:
        raise SystemExit(f"error: the image's own packages were changed: {'; '.join(changed)}")


if __name__ == "__main__":
    command, file = sys.argv[1:]
    if command == "write":
        sys.stdout.write(write(Path(file)))
    else:
        check(Path(file))
