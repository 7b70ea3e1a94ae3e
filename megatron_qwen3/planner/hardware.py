"""GPUs and how they are connected, read from TOML.

    cluster = load("h100")            # one of planner/hardware/*.toml
    cluster = load("my_cluster.toml") # your own; `base` takes over what it does not set

Units are those of data sheets: GB and TFLOP are powers of ten, rates are per direction and GPU.
"""

import dataclasses
import difflib
import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from megatron_qwen3.settings import ConfigError

FOLDER: Final = Path(__file__).parent / "hardware"
# What the products of a precision are computed in.
_ARITHMETIC: Final = {"bf16": "bf16", "fp32": "fp32", "fp8": "fp8", "mxfp8": "fp8", "nvfp4": "fp4"}


@dataclass(frozen=True)
class Cluster:
    """GPUs of one kind in NVLink domains that a network joins.

    generation       ampere, hopper or blackwell: chooses the measured efficiencies
    watts            that one GPU may draw
    dense_tflops     peak without sparsity by arithmetic: bf16, fp8, fp4, fp32
    nvlink_domain    GPUs that reach each other over NVLink
    network          infiniband or efa; host: x86 or grace, which launches the kernels
    """

    name: str
    generation: str
    memory_gb: float
    memory_gb_per_s: float
    nvlink_gb_per_s: float
    nvlink_domain: int
    network_gb_per_s: float
    network: str
    host: str
    watts: float
    dense_tflops: dict[str, float]

    def supports(self, precision: str) -> bool:
        """Whether the chip multiplies in this precision; micro-scaled formats need Blackwell."""
        is_scaled_in_blocks = precision in ("mxfp8", "nvfp4")
        if is_scaled_in_blocks and self.generation != "blackwell":
            return False
        return _ARITHMETIC[precision] in self.dense_tflops

    def peak_flops(self, precision: str) -> float:
        """Dense peak of matrix products, FLOP/s."""
        return 1e12 * self.dense_tflops[_ARITHMETIC[precision]]

    @property
    def watts_per_tflop(self) -> float:
        """Power for each dense bf16 TFLOP/s of the peak; under load clocks follow it."""
        return self.watts / self.dense_tflops["bf16"]

    @property
    def memory_bytes(self) -> float:
        """Device memory, bytes."""
        return 1e9 * self.memory_gb


def names() -> list[str]:
    """The clusters that come with the planner."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load(name_or_path: str) -> Cluster:
    """A cluster by name or TOML file; ConfigError says what is missing or unknown."""
    values = _read(name_or_path)
    known = {field.name for field in dataclasses.fields(Cluster)}
    for key in values:
        if key not in known:
            raise ConfigError(
                f"{name_or_path}: {key} is not known; valid: base, {', '.join(sorted(known))}"
            )
    missing = known - set(values)
    if missing:
        raise ConfigError(
            f"{name_or_path}: {', '.join(sorted(missing))} missing; "
            f'set it, or take over the rest of a known GPU by base = "h100"'
        )
    return _checked(Cluster(**values), name_or_path)


def _read(name_or_path: str, below: tuple[Path, ...] = ()) -> dict[str, Any]:
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = FOLDER / f"{name_or_path.lower()}.toml"
        if not path.exists():
            close = difflib.get_close_matches(name_or_path.lower(), names(), 1)
            guess = f"; did you mean {close[0]}?" if close else ""
            raise ConfigError(
                f"no GPU named {name_or_path!r}{guess}; known: {', '.join(names())}, "
                f"or a TOML file of your cluster"
            )
    if path.resolve() in below:
        raise ConfigError(f"{path}: is based on itself")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ConfigError(f"{path}: cannot be read ({reason})") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    base = str(values.pop("base", ""))
    if base.endswith(".toml"):
        base = str(path.parent / base)  # as it is seen from the file that names it
    return _read(base, (*below, path.resolve())) | values if base else values


def _checked(cluster: Cluster, where: str) -> Cluster:
    choices = {
        "generation": ("ampere", "hopper", "blackwell"),
        "network": ("infiniband", "efa"),
        "host": ("x86", "grace"),
    }
    for name, valid in choices.items():
        if getattr(cluster, name) not in valid:
            raise ConfigError(
                f'{where}: {name} = "{getattr(cluster, name)}" is not one of {", ".join(valid)}'
            )
    numbers = {
        field.name: getattr(cluster, field.name)
        for field in dataclasses.fields(Cluster)
        if field.type in (int, float)
    }
    for name, value in (numbers | _peaks(cluster, where)).items():
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise ConfigError(f"{where}: {name} = {value!r} is not a number above 0")
    if type(cluster.nvlink_domain) is not int:
        raise ConfigError(f"{where}: nvlink_domain = {cluster.nvlink_domain} is no whole number")
    if not isinstance(cluster.name, str):
        raise ConfigError(f"{where}: name = {cluster.name!r} is no text")
    return cluster


def _peaks(cluster: Cluster, where: str) -> dict[str, float]:
    """The peaks by setting; bf16 and fp32 (of the router) every model needs."""
    peaks, valid = cluster.dense_tflops, sorted({*_ARITHMETIC.values()})
    if not isinstance(peaks, dict):
        raise ConfigError(
            f"{where}: dense_tflops = {peaks!r} is no table; valid: {{ bf16 = 989, fp32 = 67 }}"
        )
    for name in peaks:
        if name not in valid:
            raise ConfigError(
                f"{where}: dense_tflops.{name} is not known; valid: {', '.join(valid)}"
            )
    for name in ("bf16", "fp32"):
        if name not in peaks:
            raise ConfigError(f"{where}: dense_tflops.{name} missing")
    return {f"dense_tflops.{name}": value for name, value in peaks.items()}
