"""Compares results with aims. Pure arithmetic on the record's parts.

for aim in aims(parts): aim["name"], aim["value"], aim["at_least"], aim["is_met"]
"""

from collections.abc import Mapping
from typing import Any

from on_gpu.cases import RECIPES

Parts = Mapping[str, Mapping[str, Mapping[str, Any]]]

DENSE_SHARE, SPARSE_SHARE, FP8_TIMES = 0.60, 0.40, 1.3


def aims(parts: Parts) -> list[dict[str, Any]]:
    """`value` and `is_met` are None where something that the aim is about was not measured; `of`
    names the measured case, or the missing one."""
    return [
        _share(parts, "8b", DENSE_SHARE, "dense 8B, bf16: share of the measured product"),
        _share(parts, "30b-a3b", SPARSE_SHARE, "30B-A3B's layers, bf16: share of it"),
        _times(parts),
    ]


def _share(parts: Parts, shape: str, at_least: float, name: str) -> dict[str, Any]:
    ceiling = ceiling_tflops(parts)
    best = _fastest(parts, [f"{shape} te bf16", f"{shape} torch bf16"])
    if ceiling is None:
        return _aim(name, None, at_least, "ceilings: bf16 was not measured")
    if best is None:
        return _aim(name, None, at_least, f"steps: no {shape} in bf16 was measured")
    return _aim(name, tflops(parts, best) / ceiling, at_least, best)


def _times(parts: Parts) -> dict[str, Any]:
    name = "dense 8B: the fastest FP8 recipe, times bf16"
    plain = _fastest(parts, ["8b te bf16", "8b torch bf16"])
    fast = _fastest(parts, [f"8b te {recipe}" for recipe in RECIPES])
    if plain is None or fast is None:
        lacking = "8b in bf16" if plain is None else "8b in FP8"
        return _aim(name, None, FP8_TIMES, f"steps: no {lacking} was measured")
    value = tflops(parts, fast) / tflops(parts, plain)
    return _aim(name, value, FP8_TIMES, f"{fast} / {plain}")


def _aim(name: str, value: float | None, at_least: float, of: str) -> dict[str, Any]:
    is_met = None if value is None else value >= at_least
    return {"name": name, "value": value, "at_least": at_least, "is_met": is_met, "of": of}


def _fastest(parts: Parts, names: list[str]) -> str | None:
    """Of the steps that were measured, and whose losses were finite."""
    rates = {name: tflops(parts, name) for name in names if _is_sound(parts, name)}
    return max(rates, key=lambda name: rates[name]) if rates else None


def _is_sound(parts: Parts, name: str) -> bool:
    case = parts.get("steps", {}).get(name, {})
    checks = case.get("checks", {}).values()
    return "tflops" in case.get("values", {}) and all(check["passes"] for check in checks)


def tflops(parts: Parts, name: str) -> float:
    """Of a case of `steps`."""
    return float(parts["steps"][name]["values"]["tflops"])


def ceiling_tflops(parts: Parts, precision: str = "bf16") -> float | None:
    """The best product that was measured; None where none was."""
    case = parts.get("ceilings", {}).get(precision, {})
    best = case.get("values", {}).get("best_tflops")
    return None if best is None else float(best)
