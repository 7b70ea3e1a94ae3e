"""One training step in any layout: the loops above it never see a process group.

    engine = Engine(config, layout)
    metrics = engine.train_step(batch, objectives.cross_entropy, rate)

`train_step` reads from top to bottom: count, forward and backward through megatron-core's pipeline
schedule, reduce, clip, update. Every sum over micro-batches and ranks is divided by a global count
that is known before the first forward pass, so that gradients are plain sums.

Legend: D data ranks, M micro-batches of each, K named means and largest values of the objective.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_qwen3.cpu import device
from megatron_qwen3.cpu.clock import ComputeClock
from megatron_qwen3.cpu.memory import gpu_memory
from megatron_qwen3.model.build import Qwen3
from megatron_qwen3.model.outputs import LastStage
from megatron_qwen3.parallel import fp8, overlap
from megatron_qwen3.parallel.layout import Layout
from megatron_qwen3.parallel.mcore import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
)
from megatron_qwen3.settings import Config
from megatron_qwen3.training.bad_batch import NO_LIMITS, BadBatch, StepLimits
from megatron_qwen3.training.balance import Balance
from megatron_qwen3.training.batch import TokenBatch
from megatron_qwen3.training.graphs import Graphs
from megatron_qwen3.training.model import ANOTHER, Finish, Model
from megatron_qwen3.training.objectives import Objective
from megatron_qwen3.training.optim import build_optimizer, gradient_norm, update


class NonFiniteLoss(BadBatch):
    """The loss or gradient is NaN or infinite; the text names ranks and sequences."""


class Engine:
    """The model of one run, its gradients and its optimizer."""

    def __init__(self, config: Config, layout: Layout) -> None:
        self.config, self.layout = config, layout
        overlap.begin(config, layout)
        self.model = Model(config, layout)
        self.device, self.clock = self.model.device, ComputeClock()
        self.chunks = [self._with_gradients(chunk, i) for i, chunk in enumerate(self.model.chunks)]
        self.model.replicas = self.chunks
        self.optimizer = build_optimizer(config, self.chunks)
        self.balance = Balance(self.model)
        self.graphs = Graphs(self.model, self.chunks, self.optimizer)
        self._connect_schedule()

    @property
    def data_rank(self) -> int:
        """The number, below `layout.data`, of this rank's share of a global batch."""
        return self.model.data_rank

    @property
    def share(self) -> range:
        """The rows of a global batch of train.global_batch that this rank trains."""
        count = self.config.train.global_batch // self.layout.data
        return range(self.data_rank * count, (self.data_rank + 1) * count)

    @property
    def is_first_rank(self) -> bool:
        """Whether this rank logs and writes for all."""
        return dist.get_rank() == 0

    def train_step(
        self, batch: TokenBatch, objective: Objective, rate: float, limits: StepLimits = NO_LIMITS
    ) -> dict[str, float]:
        """One optimizer step on this data rank's sequences of the global batch.

        Returns the metrics `loss`, the sum of the objective's losses, each mean of the objective by
        name if there are several, `grad_norm`, for sparse models those of
        `router.balance_metrics` and on GPUs those of `gpu_memory`, equal on all ranks.
        Raises, on every rank and before any update, BadBatch where loss or norm is above its limit,
        and NonFiniteLoss where it is NaN or infinite; before the first forward pass BadBatch where
        no position is trained or one has no id of the vocabulary, and ValueError where data ranks
        bring different numbers of sequences or lengths, or batch and objective do not fit; a rank
        without a fault of its own raises that another rank has one.
        Rows that only fill the schedule do not count.
        """
        assert self.model.chunks[0].training, "the model is in evaluation mode"
        self.clock.restart()
        rows = batch.rows
        batch, counts, positions = self._counts(batch, objective)
        replayed = self.graphs.of_step(batch)
        self.balance.begin(batch, positions)
        for chunk in self.chunks:
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        finish = _weighing(self.model, objective, counts)
        with replayed:
            reports = self.model.run_schedule(self.chunks, batch, finish, forward_only=False)
        columns = len(objective.means) + len(objective.largest)
        sums_DMK = self._sums_of_step(reports, batch.rows, columns)
        losses_DM = sums_DMK[..., : len(objective.losses)].sum(-1)
        report = _report(objective, sums_DMK) | {"grad_norm": gradient_norm(self.optimizer)}
        metrics = _read(report | self.balance.report() | self._memory())
        if not math.isfinite(metrics["loss"]):
            raise NonFiniteLoss(_where_not_finite(losses_DM, rows, self.config.train.micro_batch))
        _check_limit("loss", metrics["loss"], limits.loss)
        if not math.isfinite(metrics["grad_norm"]):
            raise NonFiniteLoss(f"the gradient norm is {metrics['grad_norm']}, the loss finite")
        _check_limit("gradient norm", metrics["grad_norm"], limits.grad_norm)
        update(self.optimizer, rate, self.config.optim.clip_grad, metrics["grad_norm"])
        self.model.count_update()
        self.balance.end()
        return metrics

    def _counts(
        self, batch: TokenBatch, objective: Objective
    ) -> tuple[TokenBatch, dict[str, float], float]:
        """The batch filled for the schedule; the count that divides each mean; and the number of
        positions of the global batch that are not padding.

        BadBatch or ValueError, on all ranks, for batches that cannot be trained.
        """
        means, fault = objective.means, None
        local = torch.zeros(len(means) + 8, dtype=torch.float64, device=self.device)
        try:
            filled, local = self._local_counts(batch, objective)
        except Exception as error:  # the others would wait for this rank
            fault = error
        read = self.model.sum_over_data(local).tolist()
        *sums, positions, within, apart, rows, length, rows_2, length_2, sound_ranks = read
        ranks = self.layout.data
        if sound_ranks != ranks:
            raise fault or ValueError(ANOTHER)
        if ranks * rows_2 != rows**2 or ranks * length_2 != length**2:
            raise ValueError("data ranks bring different numbers of sequences, or several lengths")
        size = rows * length / ranks
        if beyond := size - within:
            raise BadBatch(
                f"{beyond:,.0f} positions of the global batch have a token or label that is no id "
                f"of a vocabulary of {self.config.model.vocab_size:,}"
            )
        if astray := size - apart:
            raise ValueError(f"{astray:,.0f} positions have a weight in the loss and are padding")
        sum_of = dict(zip(means, sums, strict=True))
        if not any(sum_of[name] for name in objective.losses):
            raise BadBatch("no position of the global batch has a weight in the loss")
        # Where all weights of a mean are 0 its sum is 0 too, so any divisor will do.
        counts = {name: mean.count or sum_of[name] or 1.0 for name, mean in means.items()}
        return filled, counts, positions

    def _local_counts(self, batch: TokenBatch, objective: Objective) -> tuple[TokenBatch, Tensor]:
        """This rank's batch filled for the schedule, with counts: weights, positions that are not
        padding, that have ids of the vocabulary, that are not trained as padding, and its shape;
        the last is 1 for a rank without a fault."""
        objective.head.check(batch, self.config.model)
        filled = self.model.filled(batch).to(self.device)
        objective.check(filled)
        weights = [mean.of(filled).sum(dtype=torch.float64) for mean in objective.means.values()]
        rows, length, positions = batch.rows, batch.length, filled.positions
        within = rows * length - filled.beyond(self.config.model.vocab_size)
        apart = rows * length - objective.weights_on_padding(filled)
        known = (rows, length, rows**2, length**2, 1)
        alike = [torch.full_like(positions, n) for n in known]
        return filled, torch.stack([*weights, positions, within, apart, *alike])

    def _with_gradients(self, chunk: Qwen3, index: int) -> DistributedDataParallel:
        settings = ddp_config(self.config)
        later_chunk = index > 0  # its buckets wait for the first chunk's anyway
        wrapped = DistributedDataParallel(
            chunk.config, settings, chunk, disable_bucketing=later_chunk
        )
        device.take_shortcuts(wrapped)
        return wrapped

    def _connect_schedule(self) -> None:
        """Tell megatron-core's schedules how gradients are reduced."""
        transformer = self.model.chunks[0].config
        transformer.finalize_model_grads_func = _finalize
        transformer.grad_scale_func = None
        transformer.timers = self.clock
        if self.config.parallel.overlap:
            no_sync = [chunk.no_sync for chunk in self.chunks]
            sync = [chunk.start_grad_sync for chunk in self.chunks]
            single = len(self.chunks) == 1
            transformer.no_sync_func = no_sync[0] if single else no_sync
            if self.layout.pipeline > 1:
                transformer.grad_sync_func = sync[0] if single else sync

    def _sums_of_step(self, reports: list[Tensor], filled_rows: int, means: int) -> Tensor:
        """Each data rank's micro-batches' terms of the means of the global batch, [D, M, K]."""
        count = filled_rows // self.config.train.micro_batch
        sums_MK = torch.zeros(count, means, device=self.device)
        if reports:
            sums_MK = torch.stack(reports)
        groups = self.model.groups.ranks
        dist.all_reduce(sums_MK, group=groups.pp)
        sums_DMK = sums_MK.new_empty((self.layout.data, count, means))
        dist.all_gather_into_tensor(sums_DMK.view(-1), sums_MK.view(-1), group=groups.dp)
        return sums_DMK

    def _memory(self) -> dict[str, Tensor]:
        """Memory of the fullest GPU of all ranks, by name; {} on a CPU."""
        held = gpu_memory()
        if not held:
            return {}
        most = torch.tensor(list(held.values()), dtype=torch.float64)
        most = most.to(self.device, non_blocking=True)
        dist.all_reduce(most, op=dist.ReduceOp.MAX)
        return dict(zip(held, most, strict=True))


def ddp_config(config: Config) -> DistributedDataParallelConfig:
    """megatron-core's configuration of gradient buffers and their reduction."""
    parallel, optim = config.parallel, config.optim
    return DistributedDataParallelConfig(
        grad_reduce_in_fp32=optim.gradients == "fp32",
        overlap_grad_reduce=parallel.overlap,
        overlap_param_gather=parallel.overlap and optim.distributed,
        use_distributed_optimizer=optim.distributed,
        **fp8.of_gradients(config),
        **overlap.of_gradients(config),
    )


def _weighing(model: Model, objective: Objective, counts: Mapping[str, float]) -> Finish:
    """For a micro-batch: its part of the loss; its parts of all means and its largest values,
    [K]."""

    def finish(output: Tensor | LastStage, micro: TokenBatch) -> tuple[Tensor, Tensor]:
        assert not isinstance(output, Tensor)
        outputs = model.compute(objective.head, output, micro)
        sums, largest = objective.sums_and_largest(outputs, micro)
        shares = [x / counts[name] for name, x in sums.items()]
        shares_K = torch.stack([*shares, *largest.values()])
        return shares_K[: len(objective.losses)].sum(), shares_K.detach()

    return finish


def _report(objective: Objective, sums_DMK: Tensor) -> dict[str, Tensor]:
    """The loss, the objective's means unless there is only one, and its largest values."""
    means = len(objective.means)
    sums_K = sums_DMK[..., :means].sum((0, 1))
    report = {"loss": sums_K[: len(objective.losses)].sum()}
    if means > 1:
        report |= dict(zip(objective.means, sums_K, strict=True))
    return report | dict(zip(objective.largest, sums_DMK[..., means:].amax((0, 1)), strict=True))


def _finalize(models: list[Any], num_tokens: Tensor | None = None, **kwargs: Any) -> None:
    """Reduce gradients over all ranks that share a parameter; without dividing by the count
    again."""
    for chunk in models:
        device.check_gradients(chunk)
    finalize_model_grads(models, None, **kwargs)


def _read(report: dict[str, Tensor]) -> dict[str, float]:
    """Numbers from the device, by name, in one transfer."""
    packed = torch.stack([number.double() for number in report.values()])
    return dict(zip(report, packed.tolist(), strict=True))


def _check_limit(name: str, value: float, most: float) -> None:
    if value > most:
        raise BadBatch(f"the {name} is {value:.4g}, a spike: more than {most:.4g}")


def _where_not_finite(losses_DM: Tensor, rows: int, size: int) -> str:
    """The micro-batches of `size` sequences with such losses; each data rank has `rows`."""
    places = []
    for rank, micro in (~losses_DM.isfinite()).nonzero().tolist():
        first = rank * rows + micro * size
        last = min(first + size, (rank + 1) * rows) - 1
        places.append(
            f"data rank {rank}, micro-batch {micro} (sequences {first} to {last}): "
            f"{losses_DM[rank, micro].item()}"
        )
    return "the loss is not finite at " + "; ".join(places)
