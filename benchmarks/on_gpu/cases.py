"""Defines cases, their options and their reports. Nothing here imports torch.

A case is a function of one module of this package that is given Options and a Report:

    def matmul(options: Options, report: Report, size: int) -> None:
        report.note(tflops=…)                       # is on the disk before the next line runs
        report.check("logits", off, at_most=1e-2)   # and makes the case fail where it is above
"""

import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

GPU, CPU = "gpu", "cpu"
RECIPES = ("tensorwise", "delayed", "blockwise", "mxfp8", "nvfp4")
OF_A_GPU_ALONE = RECIPES[2:]
"""Recipes whose kernels nothing stands in for."""


class LeftOut(Exception):
    """A case that this machine, or its packages, cannot run; the text says why."""


@dataclass(frozen=True)
class Options:
    """Options of every case.

    device: "cuda", or "cpu", on which all runs for real at sizes of a test;
    tiny: such sizes; work: a folder for files that later cases need;
    stand_in: Transformer Engine's kernels are tests/te's, which say nothing of its own.
    """

    device: str
    tiny: bool
    work: Path
    stand_in: bool = False


@dataclass(frozen=True)
class Case:
    """One thing to run. `where`: CPU sees no GPU.

    seconds: after which it is killed; least_seconds: with less it is not worth a beginning;
    after: names of cases of the same part that must have gone well before.
    """

    part: str
    name: str
    run: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 60.0
    least_seconds: float = 0.0
    where: str = GPU
    after: tuple[str, ...] = ()

    @property
    def function(self) -> Callable[..., None]:
        """The function that `run` names, "package.module:function"."""
        module, _, name = self.run.partition(":")
        found: Callable[..., None] = getattr(importlib.import_module(module), name)
        return found


class Report:
    """The results of a case, sent as they are found."""

    def __init__(self, send: Callable[[dict[str, Any]], None]) -> None:
        self._send = send
        self.failed: list[str] = []

    def note(self, **values: Any) -> None:
        """Numbers and texts by name; they replace earlier ones of the same name."""
        self._send({"values": values})

    def check(self, name: str, value: float, at_most: float) -> None:
        """A number that may not be above a limit, nor NaN."""
        passes = math.isfinite(value) and value <= at_most
        if not passes:
            self.failed.append(f"{name} is {value:.3g}, at most {at_most:.3g} was expected")
        number = value if math.isfinite(value) else str(value)
        self._send({"checks": {name: {"value": number, "at_most": at_most, "passes": passes}}})
