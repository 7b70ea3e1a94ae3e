"""GPUs and how they are connected, read from TOML.

    cluster = load("h100")            # one of planner/hardware/*.toml
    cluster = load("my_cluster.toml") # your own; `base` sets all values that it leaves out

Units are those of data sheets: GB and TFLOP are powers of ten, rates are per direction and GPU.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, get_type_hints

from megatron_qwen3.settings import ConfigError
from megatron_qwen3.toml import as_kind, check_keys, did_you_mean, read_toml

FOLDER: Final = Path(__file__).parent / "hardware"
# The least of a generation's server chips.
COMPUTE_CAPABILITY: Final = {"ampere": (8, 0), "hopper": (9, 0), "blackwell": (10, 0)}
# Between a GPU and its host, per direction: PCIe x16 (5; with Milan 4) and NVLink-C2C at about 80 %
# of their data sheets; and a rank's share of the host's memory: two sockets for eight GPUs, Grace
# for one or two.
HOST_LINK_GB_PER_S: Final = {"x86": 50.0, "milan": 25.0, "grace": 360.0}
HOST_MEMORY_GB_PER_S: Final = {"x86": 60.0, "milan": 40.0, "grace": 200.0}
# The arithmetic of a precision's products.
_ARITHMETIC: Final = {"bf16": "bf16", "fp32": "fp32", "fp8": "fp8", "mxfp8": "fp8", "nvfp4": "fp4"}


@dataclass(frozen=True)
class Cluster:
    """GPUs of one kind in NVLink domains that a network joins.

    generation       ampere, hopper or blackwell: chooses the measured efficiencies
    watts            that one GPU may draw
    dense_tflops     peak without sparsity by arithmetic: bf16, fp8, fp4, fp32
    nvlink_domain    GPUs that reach each other over NVLink
    network          infiniband or efa
    host             x86 (Xeons of 2023 on), milan (AMD's of 2021) or grace: launches the kernels
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


_KINDS: Final[dict[str, Any]] = get_type_hints(Cluster)


def names() -> list[str]:
    """The clusters that come with the planner."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load(name_or_path: str) -> Cluster:
    """A cluster by name or TOML file; ConfigError names missing or unknown entries."""
    values = _read(name_or_path)
    if missing := sorted(_KINDS.keys() - values):
        raise ConfigError(
            f"{name_or_path}: {', '.join(missing)} missing; "
            f'set it, or take over the rest of a known GPU by base = "h100"'
        )
    cluster = Cluster(**values)
    _check(cluster, name_or_path)
    return cluster


def _read(name_or_path: str, below: tuple[Path, ...] = ()) -> dict[str, Any]:
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = FOLDER / f"{name_or_path.lower()}.toml"
        if not path.exists():
            guess = did_you_mean(name_or_path.lower(), names())
            raise ConfigError(
                f"no GPU named {name_or_path!r}{guess}; known: {', '.join(names())}, "
                f"or a TOML file of your cluster"
            )
    if path.resolve() in below:
        raise ConfigError(f"{path}: is based on itself")
    found = read_toml(path, "a cluster")
    check_keys(found, ("base", *_KINDS), path)
    kinds = _KINDS | {"base": str}
    values = {name: as_kind(value, kinds[name], path, name) for name, value in found.items()}
    base = values.pop("base", "")
    if base.endswith(".toml"):
        base = str(path.parent / base)  # relative to the file that names it
    return _read(base, (*below, path.resolve())) | values if base else values


def _check(cluster: Cluster, where: str) -> None:
    choices = {
        "generation": (*COMPUTE_CAPABILITY,),
        "network": ("infiniband", "efa"),
        "host": (*HOST_LINK_GB_PER_S,),
    }
    for name, valid in choices.items():
        if getattr(cluster, name) not in valid:
            raise ConfigError(
                f'{where}: {name} = "{getattr(cluster, name)}" is not one of {", ".join(valid)}'
            )
    check_keys(cluster.dense_tflops, sorted({*_ARITHMETIC.values()}), where, "dense_tflops")
    for name in ("bf16", "fp32"):  # every model needs both: the router uses fp32
        if name not in cluster.dense_tflops:
            raise ConfigError(f"{where}: dense_tflops.{name} missing")
    numbers = {name: getattr(cluster, name) for name in _KINDS if _KINDS[name] in (int, float)}
    peaks = {f"dense_tflops.{name}": value for name, value in cluster.dense_tflops.items()}
    for name, value in (numbers | peaks).items():
        if not 0 < value < math.inf:
            raise ConfigError(f"{where}: {name} = {value:g} is not a number above 0")
