"""Collects the routers' statistics around a training step, for the load-balancing loss.

    balance = Balance(model)
    balance.begin(batch, positions)     # before the first forward pass
    report = balance.report()           # after the last: metrics of the whole global batch
    balance.end()                       # once the step is taken

See model/router.py for the loss. Legend: L layers of the model, E experts.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_qwen3.model.router import Router, balance_metrics
from megatron_qwen3.training.batch import TokenBatch
from megatron_qwen3.training.model import Model


class Balance:
    """routers: this rank's, by the number of their layer in the whole model, from 0."""

    def __init__(self, model: Model) -> None:
        self.model, self.settings = model, model.config.model
        self.routers: dict[int, Router] = {}
        if self.settings.num_experts:
            layers = [layer for chunk in model.chunks for layer in chunk.decoder.layers]
            self.routers = {layer.layer_number - 1: layer.mlp.router for layer in layers}
        self._positions = 0.0
        self._routing_L3E: Tensor | None = None

    def begin(self, batch: TokenBatch, positions: float) -> None:
        """batch: this data rank's; positions: number in the global batch, without padding."""
        self._positions = positions
        if not self.settings.num_experts:
            return
        counts_LE = None
        if self.settings.router_balance == "this_batch" and self.settings.router_aux_loss:
            counts_LE = self._count_choices(batch)
        for layer, router in self.routers.items():
            counts_E = None if counts_LE is None else counts_LE[layer]
            router.begin_step(positions, counts_E, self.settings.router_balance == "micro_batch")

    def report(self) -> dict[str, Tensor]:
        """Routing metrics of all layers in this step; {} for a dense model."""
        if not self.settings.num_experts:
            return {}
        routing_L3E = self._routing_L3E = self._routing_of_all_ranks()
        of_last_step = self.settings.router_balance == "last_step"
        last_share_LE = routing_L3E[:, 2] if of_last_step else None
        return balance_metrics(routing_L3E[:, :2], self._positions, last_share_LE)

    def end(self) -> None:
        """The step was taken: its shares become those of the last step."""
        for layer, router in self.routers.items():
            assert self._routing_L3E is not None
            router.end_step(self._routing_L3E[layer, :2])

    @torch.no_grad()
    def _count_choices(self, batch: TokenBatch) -> Tensor:
        """[L, E]: how often the present weights choose each expert in the global batch.

        Runs a forward pass without logits.
        """
        for router in self.routers.values():
            router.begin_counting()
        self.model.read(batch)
        return self._routing_of_all_ranks()[:, 0]

    def _routing_of_all_ranks(self) -> Tensor:
        """[L, 3, E]: sums of each layer's choices and probabilities, and its `step_share`."""
        groups, settings = self.model.groups.ranks, self.settings
        shape = (settings.num_layers, 3, settings.num_experts)
        routing_L3E = torch.zeros(shape, device=self.model.device)
        sums_L2E = torch.zeros_like(routing_L3E[:, :2])
        for layer, router in self.routers.items():
            sums_L2E[layer] = router.sums
            routing_L3E[layer, 2] = router.step_share
        shares_positions = self.model.chunks[0].config.sequence_parallel
        dist.all_reduce(sums_L2E, group=groups.tp_dp_cp if shares_positions else groups.dp_cp)
        routing_L3E[:, :2] = sums_L2E
        dist.all_reduce(routing_L3E, group=groups.pp)
        return routing_L3E
