"""Sizes of the reproduction, and the folders and commands of a seed.

plan = Plan(SIZES["full"], Path("runs/reproduce/full"), seed=1)
plan.train("teacher", "base_1_facts", 240)      # the words of a command
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from examples.reproduce.running import ROOT, Part
from megatron_qwen3.toml import read_toml

HERE = "examples/reproduce"
Command = tuple[str, ...]


@dataclass(frozen=True)
class Size:
    """share: of the full number of steps and of tasks, with a fewest of each; settings: after a
    stage's own, by its run.mode."""

    name: str
    share: float
    fewest: int = 24
    settings: Mapping[str, Command] = field(default_factory=dict)

    def steps(self, full: int) -> int:
        return max(3, round(full * self.share))

    def tasks(self, full: int) -> int:
        return max(self.fewest, round(full * self.share))

    def of_stage(self, stage: str) -> Command:
        """Settings of this size for a stage of examples/reproduce/stages."""
        return self.settings.get(_stage(stage)["run"].get("mode", "pretrain"), ())


# A tenth of the steps teaches little, three steps nothing: whole batches of answers may be wrong,
# and with three steps none ends.
_ALL_WRONG = ("rl.filter=false",)
_QUICK = Size("quick", 0.1, settings={"rl": _ALL_WRONG})
_FEW = ("rollouts.prompts=8", "rollouts.eval_prompts=8", "rollouts.max_new_tokens=32")
_BY_MODE = {"pretrain": ("eval.tokens=4096",), "rl": (*_FEW, *_ALL_WRONG), "distill": _FEW}
_SMOKE = Size("smoke", 0.01, 8, _BY_MODE)
SIZES = {size.name: size for size in (Size("full", 1), _QUICK, _SMOKE)}


@dataclass(frozen=True)
class Plan:
    """size; root: the folder of all; seed."""

    size: Size
    root: Path
    seed: int

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def mine(self) -> Path:
        return self.root / f"seed_{self.seed}"

    def part(
        self, name: str, title: str, needs: Sequence[str], minutes: float, *commands: Command
    ) -> Part:
        """A part of this seed, whose needs are of this seed too unless they are data."""
        known = {"words", "texts", "long_texts", "mixed"}
        return Part(
            f"{name}_{self.seed}",
            f"{title}, seed {self.seed}",
            tuple(need if need in known else f"{need}_{self.seed}" for need in needs),
            commands,
            minutes * max(self.size.share, 0.1),
        )

    def train(self, model: str, stage: str, steps: int, *more: str) -> Command:
        """A stage of one of the pipeline's models; its run is mine/MODEL/STAGE."""
        warmup: int = _stage(stage)["optim"]["warmup_steps"]
        return (
            *("mq3", "train", f"{HERE}/stages/{stage}.toml", f"{HERE}/models/{model}.toml"),
            *(f"run.dir={self.mine}/{model}", f"run.seed={self.seed}"),
            *(f"data.tokenizer={self.data}/tokenizer", *self.length(steps, warmup)),
            *(*self.size.of_stage(stage), *more),
        )

    def length(self, steps: int, warmup: int | None = None) -> Command:
        """As many steps as the size has; a tenth of them warm up, or fewer where the stage's own
        `warmup` is shorter."""
        number = self.size.steps(steps)
        tenth = max(1, number // 10)
        steps_up = tenth if warmup is None else min(tenth, warmup)
        return f"train.steps={number}", f"optim.warmup_steps={steps_up}"

    def evaluate(self, run: str, out: str, most: int, *more: str) -> Command:
        """Held-out problems, asked of a run."""
        return (
            *("mq3", "evaluate", f"{self.mine}/{run}", "--tasks", f"{self.data}/held_out.jsonl"),
            *("--out", f"{self.mine}/evaluations/{out}", "--most", str(self.size.tasks(most))),
            *("--max-tokens", "160", "--rows", "256", "--temperature", "0.6", "--top-p", "1"),
            *("--top-k", "0", *more),
        )


def _stage(name: str) -> dict[str, Any]:
    return read_toml(ROOT / HERE / f"stages/{name}.toml", "a stage")


def dialogs(data: Path, lines: str, out: str) -> Command:
    return ("mq3", "data", "dialogs", lines, "--out", out, "--tokenizer", f"{data}/tokenizer")
