"""Compares two models' outputs: `compare(a, b)`, each an HF folder or a checkpoint of ours.

For language models it compares logits, for reward models the numbers of all positions.

Ours is a `Model` of this process alone, loaded as a run would load it, whatever layout wrote it;
the other is transformers'. They are in memory one after the other, so the larger one must fit.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from megatron_qwen3.config import Config, ConfigError
from megatron_qwen3.convert import hf, reference
from megatron_qwen3.convert.dcp import Checkpoint
from megatron_qwen3.convert.load import fill
from megatron_qwen3.model.scalars import Scalars
from megatron_qwen3.parallel import runtime
from megatron_qwen3.settings import ModelConfig, ParallelConfig
from megatron_qwen3.settings_fp8 import Fp8Config
from megatron_qwen3.settings_overlap import OverlapConfig
from megatron_qwen3.settings_rope import RopeConfig
from megatron_qwen3.storage import manifest
from megatron_qwen3.toml import emit
from megatron_qwen3.training.model import Model

SEQUENCES, POSITIONS = 4, 64
# Least mean cosine similarity of two faithful copies: rounding alone makes them differ, in bf16 by
# a
# token that goes to another expert.
_LEAST_COSINE = {"fp32": 1 - 1e-6, "bf16": 1 - 1e-2}
_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


@dataclass(frozen=True)
class LogitComparison:
    """Comparison of logits at all positions of some random sequences, in float32.

    cosine: similarity of two positions' logits, on average and at worst; largest_difference: in
    units of logits, whose standard deviation is `spread`; greedy_agreement: share of positions with
    the same likeliest token. For reward models a sequence's numbers form the one vector that is
    compared, and the agreement is on the position of the largest. without_dca: Dual Chunk Attention
    was left out, as transformers lacks it. rope_changes: settings of [rope] that differ between the
    models, such as "yarn_factor 1.0 → 4.0".
    """

    cosine: float
    worst_cosine: float
    largest_difference: float
    greedy_agreement: float
    spread: float
    precision: str
    without_dca: bool = False
    rope_changes: tuple[str, ...] = ()

    @property
    def agree(self) -> bool:
        return self.cosine >= _LEAST_COSINE[self.precision]


def compare(a: Path, b: Path, precision: str = "fp32", seed: int = 0) -> LogitComparison:
    """Both models in `precision` on the same tokens. ConfigError where one cannot be read."""
    models = model_of(a), model_of(b)
    sizes, heads = [m.vocab_size for m in models], [m.head for m in models]
    if sizes[0] != sizes[1]:
        raise ConfigError(f"{a} has a vocabulary of {sizes[0]} tokens, {b} one of {sizes[1]}")
    if heads[0] != heads[1]:
        names = [(a, b)[heads.index(head)] for head in ("scalar", "vocabulary")]
        raise ConfigError(f"{names[0]} is a reward model, {names[1]} a language model")
    random = torch.Generator().manual_seed(seed)
    ids_BS = torch.randint(sizes[0], (SEQUENCES, POSITIONS), generator=random)
    with_dca = is_checkpoint(a) == is_checkpoint(b)
    first_BSV, second_BSV = (logits(path, ids_BS, precision, with_dca) for path in (a, b))
    cosine_BS = torch.nn.functional.cosine_similarity(
        first_BSV.double(), second_BSV.double(), dim=-1
    )
    return LogitComparison(
        cosine=cosine_BS.mean().item(),
        worst_cosine=cosine_BS.min().item(),
        largest_difference=(first_BSV - second_BSV).abs().max().item(),
        greedy_agreement=(first_BSV.argmax(-1) == second_BSV.argmax(-1)).float().mean().item(),
        spread=first_BSV.std().item(),
        precision=precision,
        without_dca=not with_dca and any(_rope_of(path).has_dca for path in (a, b)),
        rope_changes=_rope_changes(a, b, with_dca),
    )


def is_checkpoint(path: Path) -> bool:
    """Whether `path` has our format; else it should have Hugging Face's."""
    return (path / "config.toml").is_file()


def _rope_of(path: Path) -> RopeConfig:
    return Checkpoint(path).config.rope if is_checkpoint(path) else hf.HFFolder(path).rope


def _rope_changes(a: Path, b: Path, with_dca: bool) -> tuple[str, ...]:
    before, now = (vars(rope if with_dca else rope.without_dca()) for rope in map(_rope_of, (a, b)))
    return tuple(
        f"{name} {emit(before[name])} → {emit(now[name])}"
        for name in before
        if before[name] != now[name]
    )


def model_of(path: Path) -> ModelConfig:
    if is_checkpoint(path):
        return Checkpoint(path).config.model
    return hf.HFFolder(path).model  # all files are checked before transformers reads them


def logits(path: Path, ids_BS: Tensor, precision: str, with_dca: bool = True) -> Tensor:
    """Float32 [B, S, V] on the CPU, of an HF folder or of a checkpoint of ours.

    [B, 1, S] of a reward model. with_dca: Dual Chunk Attention, where a checkpoint has it.
    """
    if is_checkpoint(path):
        return _logits_of_ours(path, ids_BS, precision, with_dca)
    x_BSV = reference.logits(path, ids_BS, _DTYPES[precision])
    return x_BSV.transpose(1, 2) if hf.HFFolder(path).model.head == "scalar" else x_BSV


@torch.no_grad()
def _logits_of_ours(path: Path, ids_BS: Tensor, precision: str, with_dca: bool) -> Tensor:
    config = _on_one_rank(Checkpoint(path).config, ids_BS.shape[1], precision)
    if not with_dca:
        config = replace(config, rope=config.rope.without_dca())
    try:
        model = Model(config, runtime.start(config))
        sealed = (path / manifest.FILE_NAME).is_file()  # another program's checkpoint is not
        free = () if with_dca else ("rope",)
        fill(model, path, config.checkpoint.verify if sealed else "", free=free)
        (chunk,) = model.chunks
        output = chunk.eval()(ids_BS.to(model.device))
        if isinstance(output, Scalars):
            return output.values().t().unsqueeze(1).cpu()
        return output.whole().transpose(0, 1).float().cpu()
    finally:
        runtime.stop()


def _on_one_rank(config: Config, length: int, precision: str) -> Config:
    return replace(
        config,
        model=replace(config.model, kind="auto"),  # what this machine has
        fp8=Fp8Config(),
        overlap=OverlapConfig(),
        parallel=ParallelConfig(),
        data=replace(config.data, sequence_length=length),
        train=replace(config.train, global_batch=1, micro_batch=1, precision=precision),
        run=replace(config.run, device="auto"),
    )
