"""Shows results on one page: lines while it runs, tables at the end, gpu.md for later."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from megatron_qwen3.planner import hardware
from megatron_qwen3.planner.hardware import Cluster
from on_gpu.aims import Parts, ceiling_tflops, tflops
from on_gpu.cases import Case
from on_gpu.record import FAILED, LEFT_OUT, NOT_BEGUN, PASSED

Rows = list[list[str]]
_STEPS = (
    *("steps", "layers", "ms/step", "tokens/s", "TFLOP/s", "of the ceiling", "of the data sheet"),
    *("peak GiB", "planned GiB", "times transformers"),
)


def line(case: Case, known: Mapping[str, Any]) -> str:
    """One case that has ended, and the first line of why where it did not go well."""
    spent = f"{known['seconds']:6.1f} s" if "seconds" in known else " " * 8
    text = f"{known['status']:<9} {spent}  {case.part}: {case.name}"
    if figure := _figure(known.get("values", {})):
        text += f"  {figure}"
    if known["status"] != PASSED and known.get("why"):
        text += f"  ({known['why'].strip().splitlines()[-1]})"
    return text


def tables(parts: Parts, aims: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, Rows]]:
    """Title and rows of each table, the names of the columns first."""
    yield "Aims", _aims(aims)
    if steps := _steps(parts):
        yield "Training steps", steps
    if ceilings := _ceilings(parts):
        yield "Ceilings", ceilings
    yield "Checks", _checks(parts)
    if faults := _faults(parts):
        yield "Cases that did not go well, or were not run", faults


def markdown(parts: Parts, aims: Sequence[Mapping[str, Any]], head: str) -> str:
    """The page."""
    pieces = [f"# {head}", _machine(parts)]
    for title, rows in tables(parts, aims):
        lines = ["| " + " | ".join(cell.replace("|", "/") for cell in row) + " |" for row in rows]
        lines.insert(1, "|---" * len(rows[0]) + "|")
        pieces += [f"## {title}", "\n".join(lines)]
    return "\n\n".join(filter(None, pieces)) + "\n"


def data_sheet(parts: Parts) -> Cluster | None:
    """Of the chip, by its name; None where the planner has none."""
    chip = str(_values(parts, "machine", "machine").get("chip", "")).lower().split()
    known = [name for name in hardware.names() if name in chip]
    return hardware.load(known[0]) if known else None


def _machine(parts: Parts) -> str:
    values = _values(parts, "machine", "machine")
    said = {name: value for name, value in values.items() if not isinstance(value, dict)}
    said |= values.get("packages", {}) | values.get("nvidia_smi", {})
    return ", ".join(f"{name} {value}" for name, value in said.items())


def _aims(aims: Sequence[Mapping[str, Any]]) -> Rows:
    rows = [["aim", "at least", "measured", "", "of"]]
    for aim in aims:
        value = "" if aim["value"] is None else f"{aim['value']:.2f}"
        met = {True: "pass", False: "FAIL", None: "not measured"}[aim["is_met"]]
        rows.append([aim["name"], f"{aim['at_least']:.2f}", value, met, aim["of"]])
    return rows


def _steps(parts: Parts) -> Rows:
    sheet, ceiling = data_sheet(parts), ceiling_tflops(parts)
    rows = []
    for name, case in parts.get("steps", {}).items():
        values = case.get("values", {})
        if "tflops" not in values:
            continue
        theirs = f"{name.split()[0]} transformers bf16"
        has_theirs = "tflops" in _values(parts, "steps", theirs)
        rows.append([
            name,
            f"{values['layers']} of {values['of_layers']}",
            f"{1e3 * values['step_seconds']:.0f}",
            f"{values['tokens_per_second']:,.0f}",
            f"{values['tflops']:.4g}",
            f"{values['tflops'] / ceiling:.0%}" if ceiling else "",
            f"{1e12 * values['tflops'] / sheet.peak_flops('bf16'):.0%}" if sheet else "",
            f"{values['peak_bytes'] / 2**30:.1f}" if "peak_bytes" in values else "",
            f"{values['planned_bytes'] / 2**30:.1f}" if "planned_bytes" in values else "",
            f"{values['tflops'] / tflops(parts, theirs):.2f}" if has_theirs else "",
        ])  # fmt: skip
    return [[*_STEPS], *rows] if rows else []


def _ceilings(parts: Parts) -> Rows:
    rows = []
    for name in ("bf16", "fp8"):
        rates = _values(parts, "ceilings", name).get("tflops", {})
        rows += [[f"{name}, {size}", f"{rate:.4g} TFLOP/s"] for size, rate in rates.items()]
    copies = _values(parts, "ceilings", "copies")
    rows += [[name.replace("_", " "), f"{value:.4g}"] for name, value in copies.items()]
    return [["ceiling", "measured"], *rows] if rows else []


def _checks(parts: Parts) -> Rows:
    """Of each case that checked something the number nearest to its limit, or furthest above."""
    rows = [["case", "checks", "worst", "is", "at most", ""]]
    for part in (name for name in parts if name != "steps"):
        for name, case in parts[part].items():
            checks = case.get("checks", {})
            if not checks:
                continue
            worst = max(checks, key=lambda each: _strain(checks[each]))
            value, limit = checks[worst]["value"], checks[worst]["at_most"]
            shown = f"{value:.2g}" if isinstance(value, (int, float)) else value
            state = case.get("status", "")
            rows.append([f"{part}: {name}", str(len(checks)), worst, shown, f"{limit:.2g}", state])
    return rows


def _strain(check: Mapping[str, Any]) -> float:
    value = check["value"]
    if not isinstance(value, (int, float)):
        return float("inf")
    return value / check["at_most"] if check["at_most"] else float(not check["passes"]) * 1e9


def _faults(parts: Parts) -> Rows:
    """Failed cases first, then those that were left out."""
    kinds: dict[bool, Rows] = {True: [], False: []}
    for part, cases in parts.items():
        for name, case in cases.items():
            status = case.get("status", "")
            if status != PASSED:
                is_fault = status not in (LEFT_OUT, NOT_BEGUN)
                why = str(case.get("why", "")).strip()
                last = why if status == FAILED else why.splitlines()[-1] if why else ""
                kinds[is_fault].append([f"{part}: {name}", status, last])
    rows = kinds[True] + kinds[False]
    return [["case", "ended", "why"], *rows] if rows else []


def _values(parts: Parts, part: str, name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = parts.get(part, {}).get(name, {}).get("values", {})
    return found


def _figure(values: Mapping[str, Any]) -> str:
    """The number that says most of a case."""
    if "tokens_per_second" in values:
        return f"{values['tflops']:.4g} TFLOP/s, {values['tokens_per_second']:,.0f} tokens/s"
    if "best_tflops" in values:
        return f"{values['best_tflops']:.4g} TFLOP/s"
    if "device_gb_per_s" in values:
        return f"{values['device_gb_per_s']:,.0f} GB/s"
    return str(values.get("chip", ""))
