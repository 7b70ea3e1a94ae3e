"""Checks packages that settings need beyond torch and megatron-core, with install commands.

    check(config)       # ConfigError before any rank starts
    release("apex")     # "" where it is missing
    older_than("transformer_engine", "2.2")

A package counts as installed if its needed part can be imported: megatron-core itself looks no
closer, and some packages then fail in the middle of the first step.
"""

import importlib
from collections.abc import Iterator
from importlib import metadata, util
from typing import Final, NamedTuple

from packaging.version import Version

from megatron_qwen3.settings import Config, ConfigError


class Package(NamedTuple):
    """name: in texts; module and attribute: must be importable; command: installs it.

    kernels: the compiled module that it imports only when called; else "".
    """

    name: str
    module: str
    attribute: str
    command: str
    kernels: str = ""


UNKNOWN: Final = "of unknown version"
_GITHUB = "git+https://github.com"
PACKAGES: Final = {
    "te": Package(
        "Transformer Engine",
        "transformer_engine.pytorch.optimizers",
        "FusedAdam",
        "pip install --no-build-isolation 'transformer_engine[pytorch]'",
    ),
    "te_buffers": Package(
        "Transformer Engine 2.7 or newer",
        "transformer_engine.pytorch.module.base",
        "UserBufferQuantizationMode",
        "pip install --upgrade --no-build-isolation 'transformer_engine[pytorch]'",
    ),
    "apex": Package(
        "apex with its CUDA extensions",
        "apex.optimizers",
        "FusedAdam",
        f"APEX_CPP_EXT=1 APEX_CUDA_EXT=1 pip install --no-build-isolation {_GITHUB}/NVIDIA/apex",
        "amp_C",
    ),
}


def check(config: Config) -> None:
    """ConfigError with a line for each missing package that a setting needs."""
    if text := "\n".join(_faults(config)):
        raise ConfigError(text)


def release(package: str) -> str:
    """The release of an importable package; UNKNOWN without a version, "" without the package."""
    if util.find_spec(package) is None:
        return ""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return UNKNOWN


def older_than(package: str, least: str) -> str:
    """The installed release if it is older than `least`; else "", also if it is unknown."""
    found = release(package)
    is_known = found and found != UNKNOWN
    return found if is_known and Version(found) < Version(least) else ""


def fault(setting: str, name: str) -> str:
    """The fault where `setting` needs a package of PACKAGES; "" if it is installed."""
    package = PACKAGES[name]
    try:
        module = importlib.import_module(package.module)
        why = "" if hasattr(module, package.attribute) else f"has no {package.attribute}"
        if package.kernels:
            importlib.import_module(package.kernels)
    except (ImportError, OSError, RuntimeError) as error:
        why = str(error).partition("\n")[0]
    if not why:
        return ""
    return (
        f"{setting} needs {package.name}, which is not installed here ({package.module}: {why}); "
        f"install it: {package.command}"
    )


def asked(config: Config) -> dict[str, str]:
    """The settings that need a package, as NAME = VALUE, and the package's name in PACKAGES."""
    optim = config.optim
    found = {}
    if optim.adam in PACKAGES:
        found[f'optim.adam = "{optim.adam}"'] = optim.adam
    for name in ("first_moment", "second_moment"):
        if getattr(optim, name) == "bf16":
            found[f'optim.{name} = "bf16"'] = "te"
    if optim.offload:  # megatron-core reads its version, and fails without one
        found[f"optim.offload = {optim.offload:g}"] = "te"
    if config.overlap.tensor:
        found["overlap.tensor = true"] = "te_buffers"
    return found


def _faults(config: Config) -> Iterator[str]:
    for setting, name in asked(config).items():
        if text := fault(setting, name):
            yield text
