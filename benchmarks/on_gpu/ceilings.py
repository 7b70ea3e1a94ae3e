"""Measures the chip at its best: products of large matrices, and copies.

Random numbers: products of zeros switch fewer transistors and run at clocks that no training sees.
Each is repeated for a second and more, as long as a training step takes, and the middle of its
repetitions counts: the first ones still have the clocks of an idle chip.
"""

import statistics
import time
from collections.abc import Callable

import torch

from on_gpu.cases import LeftOut, Options, Report

SECONDS = 1.2
_AT_ONCE = 5  # between two looks at the clock


def products(options: Options, report: Report, sizes: list[list[int]]) -> None:
    """bf16, [M, K] by [K, N], by cuBLAS as torch calls it; TFLOP/s by size, and the best."""
    rates = {}
    for rows, inner, columns in [[64, 64, 64]] if options.tiny else sizes:
        a = torch.randn(rows, inner, device=options.device, dtype=torch.bfloat16)
        b = torch.randn(columns, inner, device=options.device, dtype=torch.bfloat16).t()
        out = torch.empty(rows, columns, device=options.device, dtype=torch.bfloat16)
        seconds = _seconds(options, lambda a=a, b=b, out=out: torch.mm(a, b, out=out))
        rates[f"{rows} x {inner} x {columns}"] = 2 * rows * inner * columns / seconds / 1e12
        report.note(tflops=rates, best_tflops=max(rates.values()))


def products_in_fp8(options: Options, report: Report, sizes: list[list[int]]) -> None:
    """E4M3 with one scale for each matrix, bf16 out, by torch._scaled_mm; as `products`."""
    if options.device == "cuda" and torch.cuda.get_device_capability() < (8, 9):
        raise LeftOut("this chip has no products in FP8")
    rates, one = {}, torch.ones((), device=options.device)
    for rows, inner, columns in [[64, 64, 64]] if options.tiny else sizes:
        a, b = (
            torch.randn(n, inner, device=options.device).to(torch.float8_e4m3fn)
            for n in (rows, columns)
        )

        def multiply(a: torch.Tensor = a, b: torch.Tensor = b) -> None:
            torch._scaled_mm(
                a, b.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True
            )

        seconds = _seconds(options, multiply)
        rates[f"{rows} x {inner} x {columns}"] = 2 * rows * inner * columns / seconds / 1e12
        report.note(tflops=rates, best_tflops=max(rates.values()))


def copies(options: Options, report: Report) -> None:
    """GB/s: within the device, bytes read and written; from pinned host memory, and back."""
    size = 1 << (16 if options.tiny else 31)
    a, b = (torch.zeros(size, dtype=torch.uint8, device=options.device) for _ in range(2))
    a.random_(256)
    report.note(device_gb_per_s=2 * size / _seconds(options, lambda: b.copy_(a)) / 1e9)
    part = size // 8
    host = torch.zeros(part, dtype=torch.uint8, pin_memory=options.device == "cuda")
    there = _seconds(options, lambda: a[:part].copy_(host, non_blocking=True))
    back = _seconds(options, lambda: host.copy_(a[:part], non_blocking=True))
    report.note(to_device_gb_per_s=part / there / 1e9, from_device_gb_per_s=part / back / 1e9)


def _seconds(options: Options, work: Callable[[], object]) -> float:
    """How long one `work` takes, in the middle of many."""
    wait = torch.cuda.synchronize if options.device == "cuda" else lambda: None
    end = time.perf_counter() + (0.01 if options.tiny else SECONDS)
    spans: list[float] = []
    while not spans or time.perf_counter() < end:
        wait()
        begin = time.perf_counter()
        for _ in range(_AT_ONCE):
            work()
        wait()
        spans.append((time.perf_counter() - begin) / _AT_ONCE)
    return statistics.median(spans[len(spans) // 3 :])
