"""Lists the cases, the most important first, and how long each may take. No torch here."""

from collections.abc import Iterator
from typing import Any

from on_gpu.cases import CPU, RECIPES, Case

# Rows of a step and of a micro-batch: tokens enough for large products, of experts too, and work
# enough beside that of the optimizer.
SHAPES: dict[str, dict[str, Any]] = {
    "8b": {"preset": "qwen3-8b", "rows": 8, "micro_batch": 2},
    "30b-a3b": {"preset": "qwen3-30b-a3b", "rows": 16, "micro_batch": 4},
    "4b": {"preset": "qwen3-4b", "rows": 8, "micro_batch": 4},
    "1.7b": {"preset": "qwen3-1.7b", "rows": 8, "micro_batch": 4},
    "0.6b": {"preset": "qwen3-0.6b", "rows": 16, "micro_batch": 8},
}
LENGTH = 4096  # of the first stage of pretraining
# Rows of a micro-batch of 8B by its widths, and a square one, [M, K, N].
PRODUCTS = [[8192, 8192, 8192], [8192, 4096, 24576], [8192, 12288, 4096], [16384, 4096, 6144]]
PARTS = {
    "machine": "chip, driver, versions; whether Transformer Engine loads",
    "kernels": "Transformer Engine's own modules against torch, bf16 and each FP8 recipe",
    "correct": "small models, torch and te, bf16 and each recipe, against float32 on the CPU",
    "ceilings": "matrix products in bf16 and FP8, copies",
    "steps": "steps of Qwen3's sizes, torch, te, FP8 and transformers",
    "tests": "pytest -m gpu tests/gpu",
}


def cases(parts: tuple[str, ...]) -> list[Case]:
    """The cases of some parts, in the order in which they are worth most.

    Results that a short time must give come first: of `correct` and `steps` the pairs that the aims
    are about, then all else.
    """
    every = [*_first(), *_second(), *_rest()]
    return [case for case in every if case.part in parts]


def chosen(parts: tuple[str, ...], text: str) -> list[Case]:
    """The cases of some parts with a text in their name, and those that they need."""
    of_parts = cases(parts)
    named = [case for case in of_parts if text in case.name]
    needed = {name for case in named for name in case.after}
    return [case for case in of_parts if case in named or case.name in needed]


def _first() -> Iterator[Case]:
    yield Case("machine", "machine", "on_gpu.machine:describe", seconds=30)
    yield Case(
        "machine", "transformer engine", "on_gpu.machine:load_transformer_engine", seconds=90
    )
    yield Case("machine", "torch.compile", "on_gpu.machine:compiled")
    for recipe in ("bf16", *RECIPES):
        yield from _kernels(recipe)
    for packed in (False, True):
        name = "attention, documents" if packed else "attention, rows"
        yield Case("kernels", name, "on_gpu.machine:attention", {"packed": packed}, seconds=30)
    yield from _references()
    yield from _compared("dense", ["torch bf16", "te bf16", "te tensorwise"])
    yield from _compared("moe", ["torch bf16", "te bf16"])


def _second() -> Iterator[Case]:
    sizes = {"sizes": PRODUCTS}
    yield Case("ceilings", "bf16", "on_gpu.ceilings:products", sizes, seconds=25)
    yield Case("ceilings", "fp8", "on_gpu.ceilings:products_in_fp8", sizes, seconds=25)
    yield Case("ceilings", "copies", "on_gpu.ceilings:copies", seconds=20)
    yield from _steps("8b", ["te bf16", "te tensorwise", "torch bf16"], profile=True)
    yield from _steps("30b-a3b", ["te bf16", "torch bf16"], profile=True)
    yield from _steps("8b", ["transformers bf16"])
    yield from _steps("30b-a3b", ["transformers bf16"])


def _rest() -> Iterator[Case]:
    yield from _compared("dense", ["torch fp32", *(f"te {r}" for r in RECIPES[1:])])
    yield from _compared("moe", ["torch fp32", *(f"te {r}" for r in RECIPES)])
    yield from _steps("8b", ["te delayed", "te blockwise", "te mxfp8"])
    yield from _steps("30b-a3b", ["te tensorwise"])
    for model in ("dense", "moe"):
        needs = (f"{model} reference",)
        told = {"model": model}
        yield Case("correct", f"{model} te graphs", "on_gpu.correct:replays", told, after=needs)
    yield from _steps("0.6b", ["te graphs"])
    for shape in ("1.7b", "0.6b", "4b"):
        yield from _steps(shape, ["te bf16", "torch bf16", "te tensorwise", "transformers bf16"])
    paths = {"paths": ["tests/gpu"]}
    yield Case("tests", "tests/gpu", "on_gpu.suite:tests", paths, 240, least_seconds=60)


def _kernels(recipe: str) -> Iterator[Case]:
    for name in ("linear", "grouped_linear"):
        told = {"recipe": recipe}
        yield Case("kernels", f"{name}, {recipe}", f"on_gpu.machine:{name}", told, seconds=30)


def _references() -> Iterator[Case]:
    for model in ("dense", "moe"):
        yield Case(
            "correct", f"{model} reference", "on_gpu.correct:reference", {"model": model}, where=CPU
        )


def _compared(model: str, ways: list[str]) -> Iterator[Case]:
    """`ways`: kind, and precision or recipe."""
    for way in ways:
        kind, _, precision = way.partition(" ")
        told = {"model": model, "kind": kind, "precision": precision}
        if precision in RECIPES:
            told |= {"precision": "bf16", "recipe": precision}
        needs = (f"{model} reference",)
        yield Case("correct", f"{model} {way}", "on_gpu.correct:compare", told, 90, after=needs)


def _steps(shape: str, ways: list[str], profile: bool = False) -> Iterator[Case]:
    size = SHAPES[shape] | {
        "length": LENGTH,
        "tiny": "tiny-moe" if "a3b" in shape else "tiny-dense",
    }
    for way in ways:
        kind, _, precision = way.partition(" ")
        told: dict[str, Any] = {"shape": size}
        function = "on_gpu.steps:transformers_steps"
        if kind != "transformers":
            function = "on_gpu.steps:ours_steps"
            told |= {"kind": kind, "profile": profile}
            told |= {"recipe": precision} if precision in RECIPES else {}
            told |= {"graphs": ["attn", "mlp"]} if precision == "graphs" else {}
        yield Case("steps", f"{shape} {way}", function, told, seconds=50)
