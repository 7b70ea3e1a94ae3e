"""Packages out of a folder of wheels, for a machine that has no network: `provide(folder, into)`.

Packages of the machine are left as they are. Of a wheel whose package is missing nothing is
resolved: the folder brings, or the machine has, whatever it needs.
"""

import importlib.util
import os
import platform
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from pathlib import Path

from packaging.tags import sys_tags
from packaging.utils import InvalidWheelFilename, parse_wheel_filename

from megatron_qwen3.settings import ConfigError


def provide(folder: Path, into: Path) -> list[str]:
    """Install the wheels whose packages are missing here; their names.

    This process and those that it starts find them in `into`, a folder, after all else that they
    have. ConfigError where there is no wheel, one that is needed is of another Python, or pip
    refuses one.
    """
    if not folder.is_dir():
        raise ConfigError(f"--wheels {folder} is no folder")
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        raise ConfigError(f"--wheels {folder}: there is no wheel in it")
    missing = _that_fit(
        {wheel: names for wheel in wheels if not _is_here(names := _packages(wheel))}
    )
    if missing:
        _install(missing, into)
        sys.path.append(str(into))
        importlib.invalidate_caches()
    return [wheel.name for wheel in missing]


def pass_on(paths: Iterable[str]) -> None:
    """Let Python processes that this one starts look there, after their own folders."""
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (*given, *paths)))


def _packages(wheel: Path) -> set[str]:
    """The packages of a wheel: the folders at its top."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            tops = {name.partition("/")[0] for name in archive.namelist() if "/" in name}
    except (zipfile.BadZipFile, OSError) as error:
        raise ConfigError(f"--wheels {wheel} is broken ({error}); download it again") from None
    return {top for top in tops if not top.endswith((".dist-info", ".data"))}


def _that_fit(missing: dict[Path, set[str]]) -> list[Path]:
    """Those that this Python takes; a folder may have others for the same packages beside them."""
    fitting = [wheel for wheel in missing if _fits(wheel)]
    brought = {name for wheel in fitting for name in missing[wheel]}
    for wheel, packages in missing.items():
        if wheel not in fitting and not packages <= brought:
            here = f"{platform.python_implementation()} {platform.python_version()}"
            raise ConfigError(
                f"--wheels {wheel} is for another Python or system than {here} on "
                f"{platform.machine()}; put one of {' or '.join(sorted(packages))} for this one "
                "into the folder"
            )
    return fitting


def _fits(wheel: Path) -> bool:
    """Whether its name has a tag of this Python on this system."""
    try:
        return not parse_wheel_filename(wheel.name)[3].isdisjoint(sys_tags())
    except InvalidWheelFilename as error:
        raise ConfigError(f"--wheels {wheel}: {error}") from None


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
        said = [line for line in done.stderr.splitlines() if line.strip()]
        why = next((line for line in said if line.startswith("ERROR")), said[-1] if said else "")
        raise ConfigError(f"--wheels: pip refused: {why}")
