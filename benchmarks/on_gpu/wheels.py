"""Packages out of a folder of wheels, for a machine that has no network: `provide(folder, into)`.

What the machine has is left as it is. Of a wheel whose package is missing nothing is resolved: the
folder brings, or the machine has, whatever it needs.
"""

import importlib.util
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path

from megatron_qwen3.settings import ConfigError


def provide(folder: Path, into: Path) -> list[str]:
    """Install the wheels whose packages are missing here; their names.

    This process and those that it starts find them in `into`, a folder, after all else that they
    have. ConfigError where there is no wheel, or pip refuses one.
    """
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        raise ConfigError(f"--wheels {folder}: there is no wheel in it")
    missing = [wheel for wheel in wheels if not _is_here(_packages(wheel))]
    if missing:
        _install(missing, into)
        sys.path.append(str(into))
        importlib.invalidate_caches()
    return [wheel.name for wheel in missing]


def pass_on(paths: Iterable[str]) -> None:
    """Have Python processes that this one starts look there, after what they were told to."""
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (*given, *paths)))


def _packages(wheel: Path) -> set[str]:
    """What can be imported of a wheel: the folders at its top."""
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.partition("/")[0] for name in archive.namelist() if "/" in name}
    return {top for top in tops if not top.endswith((".dist-info", ".data"))}


def _is_here(packages: set[str]) -> bool:
    """Whether this machine has them. A folder that several projects share, as megatron, says
    nothing: its core does."""
    names = {"megatron.core" if name == "megatron" else name for name in packages}
    return all(_found(name) for name in names)


def _found(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # of the package that it is in
        return False


def _install(wheels: list[Path], into: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--no-index", "--no-deps", "--no-compile", "--target", str(into)]
    done = subprocess.run([*command, *map(str, wheels)], capture_output=True, text=True)
    if done.returncode:
        raise ConfigError(f"--wheels: pip refused: {done.stderr.strip()[-1000:]}")
