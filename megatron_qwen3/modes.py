"""Says which settings belong to which mode, so that none is given to a loop that ignores it.

    belongs("sft.loss", "pretrain")          # False
    faults("sft", ["data.curriculum"])       # one line, with the way out
    head_of("reward")                        # "scalar"

`config.load` checks every setting of files and of the command line. No torch here.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

# A table or setting that some modes alone have; all others are every mode's.
_MODES_OF: Final = {
    "sft": ("sft",),
    "reward": ("reward",),
    "rollouts": ("rl", "distill"),
    "rl": ("rl",),
    "distill": ("distill",),
    "data.sources": ("pretrain",),
    "data.curriculum": ("pretrain",),
    "data.stage": ("pretrain",),
    "data.held_out": ("pretrain",),
    "data.reset_at_documents": ("pretrain",),
    "data.loader": ("pretrain", "sft", "reward"),
    "train.tokens": ("pretrain", "sft", "reward"),
    "train.global_batch": ("pretrain", "sft", "reward"),
    "eval.tokens": ("pretrain", "sft", "reward"),
    "eval.by": ("pretrain",),
}
_UNREAD: Final = ("train.tokens", "train.global_batch", "eval.tokens")  # but written by some runs
# In place of a setting of another mode.
_INSTEAD: Final = {
    "data.sources": "it trains on {trained_on}",
    "data.curriculum": "it trains on {trained_on}",
    "data.stage": "it trains on {trained_on}",
    "data.held_out": "set {held_out}",
    "data.reset_at_documents": "texts that share a row never see each other there",
    "data.loader": "batches are sampled, and none is read ahead",
    "train.tokens": "answers are of any length; set train.steps",
    "train.global_batch": "an update has rollouts.prompts * rollouts.samples / {updates} answers",
    "eval.tokens": "set rollouts.eval_prompts",
    "eval.by": "labels are those of a curriculum",
}


def head_of(mode: str) -> str:
    """model.head of the model that a mode trains."""
    return "scalar" if mode == "reward" else "vocabulary"


def belongs(name: str, mode: str) -> bool:
    """Whether a loop of `mode` knows the setting of this dotted name."""
    alone = _alone(name)
    return not alone or mode in _MODES_OF[alone]


def of_saved(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a run wrote down, without those that its mode does not read: runs of modes
    that sample have some, which no file of a person may name there."""
    mode = values.get("run.mode", "")
    unread = [n for n in _UNREAD if n in values and mode and not belongs(n, mode)]
    return {name: value for name, value in values.items() if name not in unread}


def faults(mode: str, names: Iterable[str]) -> Iterator[str]:
    """A line for each table or setting of another mode among the names."""
    told = set()
    for name in names:
        alone = _alone(name)
        if belongs(name, mode) or alone in told:
            continue
        told.add(alone)
        whose = _either([f'"{one}"' for one in _MODES_OF[alone]])
        way_out = f"leave [{alone}] out, or set run.mode = {whose}"
        if alone in _INSTEAD:
            way_out = f"leave it out: {_INSTEAD[alone].format(**_words(mode))}"
        yield f'{name} is a setting of run.mode = {whose}, but run.mode = "{mode}"; {way_out}'


def _alone(name: str) -> str:
    """The entry of _MODES_OF that a setting stands in; empty where every mode has it."""
    return next((entry for entry in _MODES_OF if f"{name}.".startswith(f"{entry}.")), "")


def _words(mode: str) -> dict[str, str]:
    """Names of the settings of a mode's data: trained on, and held out."""
    words = {"trained_on": f"[[{mode}.sources]]", "held_out": f"{mode}.held_out"}
    if belongs("rollouts", mode):
        words = {"trained_on": "[[rollouts.tasks]]", "held_out": "rollouts.held_out"}
    return words | {"updates": f"{mode}.updates"}


def _either(names: list[str]) -> str:
    """a, b or c."""
    return " or ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)
