"""One training step in any layout: the loops above it never see a process group.

    engine = Engine(config, layout)
    metrics = engine.train_step(batch, losses.cross_entropy, rate)
    log_prob_BS = engine.score(batch)

A step reads from top to bottom in `train_step`: normalise, forward and backward through
megatron-core's pipeline schedule, reduce, clip, update. Everything that depends on how many
micro-batches or ranks shared the work is divided by a global count, known before the first
forward pass, so that gradients are plain sums.
"""

import functools
import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_qwen3.config import Config
from megatron_qwen3.cpu import device
from megatron_qwen3.cpu.clock import ComputeClock
from megatron_qwen3.cpu.memory import gpu_memory
from megatron_qwen3.model.build import build, last_position_only
from megatron_qwen3.model.router import Router, balance_metrics
from megatron_qwen3.parallel.layout import Layout
from megatron_qwen3.parallel.mcore import (
    DistributedDataParallel,
    DistributedDataParallelConfig,
    finalize_model_grads,
    get_forward_backward_func,
    parallel_state,
)
from megatron_qwen3.training.batch import TokenBatch
from megatron_qwen3.training.guard import NO_LIMITS, BadBatch, Limits
from megatron_qwen3.training.losses import Loss, TokenOutputs
from megatron_qwen3.training.optim import build_optimizer, gradient_norm, update


class NonFiniteLoss(BadBatch):
    """A loss or gradient that is NaN or infinite; the text names ranks and sequences."""


class Engine:
    """The model of one run, its gradients and its optimizer."""

    def __init__(self, config: Config, layout: Layout) -> None:
        self.config, self.layout = config, layout
        self.device = torch.device(torch.cuda.current_device())
        # What the schedules call the token count; the loss is normalised before it reaches them.
        self.one = torch.ones((), dtype=torch.int, device=self.device)
        self.clock = ComputeClock()
        self.models = build(config, layout)
        self.chunks = [self._with_gradients(model, i) for i, model in enumerate(self.models)]
        self.optimizer = build_optimizer(config, self.chunks)
        self.routers = [m for model in self.models for m in model.modules() if _is_router(m)]
        self._connect_schedule()

    @property
    def data_rank(self) -> int:
        """Which of `layout.data` shares of a global batch this rank trains."""
        return parallel_state.get_data_parallel_rank()

    @property
    def is_first_rank(self) -> bool:
        """Whether this rank is the one that speaks and writes for all."""
        return dist.get_rank() == 0

    def synchronize_weights(self) -> None:
        """Make the weights of every rank those of the last step.

        With overlap each data rank updates its share, and the shares meet in the next forward
        pass: whoever reads weights between two steps must call this first.
        """
        for chunk in self.chunks:
            if chunk.ddp_config.overlap_param_gather:
                chunk.start_param_sync(force_sync=True)

    def sum_over_data(self, x: Tensor) -> Tensor:
        """`x`, a CPU tensor of one number or more per data rank, added up over the data ranks."""
        return self._sum_over_data(x.to(self.device)).cpu()

    def weights_are_finite(self) -> bool:
        """Whether no weight of any rank is NaN or infinite; the same answer on all ranks."""
        finite = [p.isfinite().all() for model in self.models for p in model.parameters()]
        everywhere = torch.stack(finite).all().int()
        dist.all_reduce(everywhere, op=dist.ReduceOp.MIN)
        return bool(everywhere.item())

    def train_step(
        self, batch: TokenBatch, loss: Loss, rate: float, limits: Limits = NO_LIMITS
    ) -> dict[str, float]:
        """One optimizer step on this data rank's sequences of the global batch.

        The loss is Σ weight · loss(token) / Σ weight over all ranks. Returns the metrics `loss`,
        `grad_norm`, for sparse models those of `router.balance_metrics` and on GPUs those of
        `watch.gpu_memory`, equal on all ranks.
        Raises BadBatch, on every rank, before anything is updated, where one of them is above its
        limit or no position is trained, and NonFiniteLoss where it is NaN or infinite. All data
        ranks bring equally many sequences of equal length, one at least; rows that the schedule
        needs beyond them count for nothing.
        """
        self.clock.restart()
        rows = batch.rows
        batch = self._filled(batch).to(self.device)
        total_weight, positions = self._sum_over_data(batch.size).tolist()
        if not total_weight:
            raise BadBatch("no position of the global batch has a weight in the loss")
        self._begin_routing(batch, positions)
        for chunk in self.chunks:
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        forward = functools.partial(self._training_forward, loss=loss, total_weight=total_weight)
        micro_losses = self._run_schedule(forward, batch, forward_only=False)
        losses_DM = self._losses_of_step(micro_losses, batch.rows)
        report = {"loss": losses_DM.sum(), "grad_norm": gradient_norm(self.optimizer)}
        routing_L3E = self._routing_of_all_ranks()
        metrics = _read(report | self._balance(routing_L3E, positions) | self._memory())
        if not math.isfinite(metrics["loss"]):
            size = self.config.train.micro_batch
            raise NonFiniteLoss(_where_not_finite(losses_DM, rows, size))
        _check_limit("loss", metrics["loss"], limits.loss)
        if not math.isfinite(metrics["grad_norm"]):
            raise NonFiniteLoss(f"the gradient norm is {metrics['grad_norm']}, the loss finite")
        _check_limit("gradient norm", metrics["grad_norm"], limits.grad_norm)
        update(self.optimizer, rate, self.config.optim.clip_grad, metrics["grad_norm"])
        for layer, router in self._numbered_routers():
            router.end_step(routing_L3E[layer, :2])
        return metrics

    @torch.no_grad()
    def score(self, batch: TokenBatch) -> Tensor:
        """log p(label) of every position, float32 [B, S], on every rank of the data rank.

        All data ranks call it with equally many sequences, one at least: they share experts.
        """
        rows = batch.rows
        padded = self._filled(batch).to(self.device)
        micro = self._evaluate(self._scoring_forward, padded)
        log_prob_BS = torch.empty(padded.tokens_BS.shape, device=self.device)
        if micro:
            log_prob_BS = torch.cat(micro)
        last = parallel_state.get_pipeline_model_parallel_last_rank()
        dist.broadcast(log_prob_BS, last, group=parallel_state.get_pipeline_model_parallel_group())
        return log_prob_BS[:rows]

    def _evaluate(self, forward: Any, batch: TokenBatch) -> list[Any]:
        """What `forward` reports of micro-batches, on the last stage; without gradients."""
        for model in self.models:
            model.eval()
        reports = self._run_schedule(forward, batch, forward_only=True)
        for model in self.models:
            model.train()
        return reports

    def _with_gradients(self, model: torch.nn.Module, index: int) -> DistributedDataParallel:
        settings = DistributedDataParallelConfig(
            grad_reduce_in_fp32=True,
            overlap_grad_reduce=self.config.parallel.overlap,
            overlap_param_gather=self.config.parallel.overlap and self.config.optim.distributed,
            use_distributed_optimizer=self.config.optim.distributed,
        )
        later_chunk = index > 0  # whose buckets wait for the first chunk's anyway
        chunk = DistributedDataParallel(
            model.config, settings, model, disable_bucketing=later_chunk
        )
        device.take_shortcuts(chunk)
        return chunk

    def _connect_schedule(self) -> None:
        """Tell megatron-core's schedules how gradients are reduced."""
        transformer = self.models[0].config
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

    def _run_schedule(self, forward: Any, batch: TokenBatch, forward_only: bool) -> list[Any]:
        """What `forward`'s reports add up to on the last pipeline stage; [] on the others."""
        size = self.config.train.micro_batch
        iterators = [batch.split(size) for _ in self.chunks]
        return get_forward_backward_func()(
            forward_step_func=forward,
            data_iterator=iterators if len(iterators) > 1 else iterators[0],
            model=self.chunks if len(self.chunks) > 1 else self.chunks[0],
            num_microbatches=batch.rows // size,
            seq_length=batch.tokens_BS.shape[1],
            micro_batch_size=size,
            forward_only=forward_only,
        )

    def _training_forward(
        self, micro_batches: Iterator[TokenBatch], chunk: Any, loss: Loss, total_weight: float
    ) -> tuple[Tensor, Any]:
        micro = next(micro_batches)

        def weighted(output_2BS: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            per_token_BS = loss(TokenOutputs(output_2BS[0], output_2BS[1]), micro)
            trained_BS = micro.weights_BS != 0  # what is not trained may even be NaN
            per_token_BS = torch.where(trained_BS, per_token_BS * micro.weights_BS, 0.0)
            share = per_token_BS.sum() / total_weight
            return share, self.one, share.detach()

        return _model_output(chunk, micro), weighted

    def _scoring_forward(
        self, micro_batches: Iterator[TokenBatch], chunk: Any
    ) -> tuple[Tensor, Any]:
        def report(output_2BS: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return output_2BS.sum(), self.one, output_2BS[0]

        return _model_output(chunk, next(micro_batches)), report

    def _counting_forward(
        self, micro_batches: Iterator[TokenBatch], chunk: Any
    ) -> tuple[Tensor, Any]:
        """Without labels: there is nothing to report, the routers count."""
        output = _model_output(chunk, next(micro_batches), with_labels=False)
        return output, lambda logits: (logits.sum(), self.one, None)

    def _losses_of_step(self, micro_losses: list[Tensor], filled_rows: int) -> Tensor:
        """What each data rank's micro-batches add to the loss of the global batch, [D, M]."""
        count = filled_rows // self.config.train.micro_batch
        losses_M = torch.zeros(count, device=self.device)
        if micro_losses:
            losses_M = torch.stack(micro_losses)
        dist.all_reduce(losses_M, group=parallel_state.get_pipeline_model_parallel_group())
        losses_DM = losses_M.new_empty((self.layout.data, count))
        group = parallel_state.get_data_parallel_group(with_context_parallel=True)
        dist.all_gather_into_tensor(losses_DM.view(-1), losses_M, group=group)
        return losses_DM

    def _memory(self) -> dict[str, Tensor]:
        """What the fullest GPU of all ranks holds, by name; {} on a CPU."""
        held = gpu_memory()
        if not held:
            return {}
        most = torch.tensor(list(held.values()), dtype=torch.float64)
        most = most.to(self.device, non_blocking=True)
        dist.all_reduce(most, op=dist.ReduceOp.MAX)
        return dict(zip(held, most, strict=True))

    def _begin_routing(self, batch: TokenBatch, positions: float) -> None:
        """Tell the routers of which shares of experts the balance loss is: see model/router.py."""
        model = self.config.model
        if not model.num_experts:
            return
        counts_LE = None
        if model.router_balance == "this_batch" and model.router_aux_loss:
            counts_LE = self._count_choices(batch)
        for layer, router in self._numbered_routers():
            router.begin_step(positions, None if counts_LE is None else counts_LE[layer])

    @torch.no_grad()
    def _count_choices(self, batch: TokenBatch) -> Tensor:
        """[L, E]: how often each expert is chosen in the global batch, by the weights as they are.

        A forward pass; it computes no logits to speak of.
        """
        for router in self.routers:
            router.begin_counting()
        with last_position_only(self.models):
            self._evaluate(self._counting_forward, batch)
        return self._routing_of_all_ranks()[:, 0]

    def _balance(self, routing_L3E: Tensor, positions: float) -> dict[str, Tensor]:
        """The metrics of all layers' routing in this step; {} for a dense model."""
        if not self.routers:
            return {}
        of_last_step = self.config.model.router_balance == "last_step"
        last_share_LE = routing_L3E[:, 2] if of_last_step else None
        return balance_metrics(routing_L3E[:, :2], positions, last_share_LE)

    def _routing_of_all_ranks(self) -> Tensor:
        """[L, 3, E]: each layer's choices and probabilities, added up, and its `step_share`.

        Nothing, [L, 3, 0], for a dense model.
        """
        model = self.config.model
        routing_L3E = torch.zeros(model.num_layers, 3, model.num_experts, device=self.device)
        sums_L2E = routing_L3E.new_zeros(model.num_layers, 2, model.num_experts)
        if not self.routers:
            return routing_L3E
        for layer, router in self._numbered_routers():
            sums_L2E[layer] = router.sums
            routing_L3E[layer, 2] = router.step_share
        group = parallel_state.get_tensor_and_data_parallel_group(with_context_parallel=True)
        if not self.models[0].config.sequence_parallel:
            group = parallel_state.get_data_parallel_group(with_context_parallel=True)
        dist.all_reduce(sums_L2E, group=group)
        routing_L3E[:, :2] = sums_L2E
        dist.all_reduce(routing_L3E, group=parallel_state.get_pipeline_model_parallel_group())
        return routing_L3E

    def _numbered_routers(self) -> Iterator[tuple[int, Router]]:
        """This rank's routers, each with the number of its layer in the whole model, from 0."""
        if not self.routers:
            return
        for model in self.models:
            for layer in model.decoder.layers:
                yield layer.layer_number - 1, layer.mlp.router

    def _sum_over_data(self, x: Tensor) -> Tensor:
        dist.all_reduce(x, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
        return x

    def _filled(self, batch: TokenBatch) -> TokenBatch:
        """With padding at its end, if that is needed: the schedule takes multiples of rows."""
        groups = self.layout.pipeline if self.layout.virtual > 1 else 1
        unit = self.config.train.micro_batch * groups
        return batch.padded_to(-(-batch.rows // unit) * unit)


def _finalize(models: list[Any], num_tokens: Tensor | None = None, **kwargs: Any) -> None:
    """Reduce gradients over all ranks that share a parameter; the count is not divided by again."""
    finalize_model_grads(models, None, **kwargs)


def _model_output(chunk: Any, micro: TokenBatch, with_labels: bool = True) -> Tensor:
    return chunk(
        micro.tokens_BS,
        position_ids=None,
        attention_mask=None,
        labels=micro.labels_BS if with_labels else None,
        stretches=micro.stretches,
        valid_BS=micro.valid_BS,
    )


def _is_router(module: torch.nn.Module) -> bool:
    return isinstance(module, Router)


def _read(report: dict[str, Tensor]) -> dict[str, float]:
    """Numbers on the device, by name, packed into one tensor: one wait for all of them."""
    packed = torch.stack([number.double() for number in report.values()])
    return dict(zip(report, packed.tolist(), strict=True))


def _check_limit(name: str, value: float, most: float) -> None:
    if value > most:
        raise BadBatch(f"the {name} is {value:.4g}, a spike: more than {most:.4g}")


def _where_not_finite(losses_DM: Tensor, rows: int, size: int) -> str:
    """Micro-batches of `size` sequences, of which each data rank has `rows`; what fills is none."""
    places = []
    for rank, micro in (~losses_DM.isfinite()).nonzero().tolist():
        first = rank * rows + micro * size
        last = min(first + size, (rank + 1) * rows) - 1
        places.append(
            f"data rank {rank}, micro-batch {micro} (sequences {first} to {last}): "
            f"{losses_DM[rank, micro].item()}"
        )
    return "the loss is not finite at " + "; ".join(places)
