"""A stand-in for NVIDIA's image: a Python of its own with the packages that matter of the image.

    image = StandIn(folder)             # image.python runs it; image.environment finds it first

torch, numpy and what else kept.txt names come from the Python that runs the tests, with what they
need. Transformer Engine, apex and DALI are names and versions without contents. PyYAML is of the
image's release, older than one of our requirements wants. The numbers are those that people
who used pytorch:26.06-py3 have published; DALI's and apex's nobody did.
"""

import os
import shutil
import sys
import sysconfig
from importlib.metadata import Distribution, PackageNotFoundError, distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement

from containers.pins import is_kept, normal
from containers.renew import IMAGE, put

NAMES = {
    "transformer_engine": IMAGE["transformer_engine"],
    "apex": "0.1",
    "nvidia-dali-cuda130": "2.1.0",
    "PyYAML": "6.0.1",
}


class StandIn:
    """A Python under `folder`, with pip, torch and the packages of NAMES."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.python = folder / "bin/python3"
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        self.site = folder / "lib" / version / "site-packages"
        self.site.mkdir(parents=True)
        self._copy_interpreter()
        for name, release in NAMES.items():
            put(self.site, name, release)
        # The image forbids other releases of all that it was built with.
        rows = [f"{name}=={release}" for name, release in NAMES.items()]
        (folder / "constraint.txt").write_text("\n".join(rows))
        for package in sorted(_with_needs("pip", *_kept_here())):
            self._link(distribution(package))

    @property
    def environment(self) -> dict[str, str]:
        """The variables of a process in the image."""
        own = {"PATH": f"{self.folder}/bin:{os.environ['PATH']}", "PYTHONNOUSERSITE": "1"}
        own |= {"PIP_CONSTRAINT": str(self.folder / "constraint.txt")}
        left = ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")
        return {k: v for k, v in os.environ.items() if k not in left} | own

    def _copy_interpreter(self) -> None:
        """Its executable is a copy, from where Python looks for its library, which is links."""
        (self.folder / "bin").mkdir()
        shutil.copy(Path(sys.executable).resolve(), self.python)
        for entry in Path(sysconfig.get_path("stdlib")).iterdir():
            if entry.name != "site-packages":
                (self.site.parent / entry.name).symlink_to(entry)

    def _link(self, package: Distribution) -> None:
        """Show a package of the tests' Python: its top folders and files, each a link."""
        home = Path(str(package.locate_file("")))
        for top in sorted({Path(file).parts[0] for file in package.files or ()}):
            if top not in ("..", "__pycache__") and not (self.site / top).exists():
                (self.site / top).symlink_to(home / top)


def _kept_here() -> list[str]:
    return [normal(p.metadata["Name"]) for p in distributions() if is_kept(p.metadata["Name"])]


def _with_needs(*names: str) -> set[str]:
    """Packages with all that they need and this Python has, by name."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = normal(waiting.pop())
        if name in found:
            continue
        try:
            needs = distribution(name).requires or []
        except PackageNotFoundError:
            continue  # for another platform
        found.add(name)
        wanted = map(Requirement, needs)
        waiting += [n.name for n in wanted if n.marker is None or n.marker.evaluate({"extra": ""})]
    return found
