"""Sparse MLP: routes tokens, sends them to the ranks of their experts, computes, returns them.

Stands in for megatron-core's MoELayer where Transformer Engine is absent. Choices stay lists of
indices (never a tokens × experts map), rows are sorted by expert once, and all experts of a rank
run as one grouped matrix product. Checkpoints carry the names and shapes of megatron-core's
grouped experts, so its own layers load them.

Legend: T tokens of this rank, K experts per token, R = T·K rows, E experts (e of them on this
rank), H hidden, F width of an expert on this rank.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megatron_qwen3.model import gate_and_up, grouped
from megatron_qwen3.model.linear import Products
from megatron_qwen3.model.router import Router
from megatron_qwen3.parallel.mcore import (
    MegatronModule,
    ShardedTensor,
    TransformerConfig,
    all_to_all,
)


class SparseMLP(MegatronModule):
    """Σ_k p_k · expert_k(x) over the K experts that the router chose."""

    def __init__(self, config: TransformerConfig, pg_collection: Any) -> None:
        super().__init__(config)
        self.router = Router(config)
        self.experts = GroupedExperts(config, pg_collection)
        self.exchange = ExpertExchange(
            config.num_moe_experts, pg_collection.ep, pg_collection.expt_tp
        )

    def forward(
        self, hidden_SBH: Tensor, valid_T: Tensor | None = None, products: Products | None = None
    ) -> Tensor:
        """valid_T: False for padding, in the order of hidden_SBH; None: no padding.

        products: unused, as experts have a grouped product of their own.
        """
        hidden_TH = hidden_SBH.view(-1, hidden_SBH.shape[-1])
        probs_TK, experts_TK = self.router(hidden_TH, valid_T)
        order = grouped.sort_by_expert(experts_TK, self.router.num_experts)
        rows_RH = grouped.scatter_tokens(hidden_TH, order)
        probs_R = probs_TK.flatten()[order.rows]
        if self.exchange.ranks > 1:
            output_RH = self._on_other_ranks(rows_RH, probs_R, order.counts)
        else:
            output_RH = self.experts(rows_RH, probs_R, order.counts)
        return grouped.gather_tokens(output_RH, order).view_as(hidden_SBH)

    def _on_other_ranks(self, rows_RH: Tensor, probs_R: Tensor, counts_E: Tensor) -> Tensor:
        plan = self.exchange.plan(counts_E)
        rows_RH = self.exchange.send(rows_RH, plan)
        probs_R1 = self.exchange.send(probs_R[:, None], plan)
        output_RH = self.experts(rows_RH, probs_R1.squeeze(1), plan.counts)
        return self.exchange.bring_back(output_RH, plan)


class ExchangePlan:
    """Where the rows of one micro-batch go: split sizes and the sort after arrival."""

    def __init__(
        self, sent_E: Tensor, received_tpe: Tensor, experts_per_rank: int, tensor_rank: int
    ) -> None:
        """`received_tpe`: rows from tensor rank t, expert-parallel rank p, for local expert e."""
        tensor_ranks, expert_ranks, _ = received_tpe.shape
        sizes = (
            sent_E.view(-1, experts_per_rank).sum(1),
            received_tpe[tensor_rank].sum(-1),
            received_tpe.sum((1, 2)),
        )
        # An exchange needs its sizes on the host: this is the one wait for the GPU.
        numbers: list[int] = torch.cat(sizes).tolist()
        self.send_sizes = numbers[:expert_ranks]
        self.receive_sizes = numbers[expert_ranks : 2 * expert_ranks]
        self.tensor_sizes = numbers[2 * expert_ranks :]
        local_expert = torch.arange(experts_per_rank, device=sent_E.device)
        expert_of_chunk = local_expert.repeat(tensor_ranks * expert_ranks)
        expert_of_row = expert_of_chunk.repeat_interleave(
            received_tpe.flatten(), output_size=sum(self.tensor_sizes)
        )
        self.order = grouped.sort_by_expert(expert_of_row[:, None], experts_per_rank)
        self.counts = self.order.counts


class ExpertExchange:
    """Rows between ranks: to those of their experts, then to all tensor ranks of an expert."""

    def __init__(self, num_experts: int, expert_group: Any, tensor_group: Any) -> None:
        self.expert_group, self.tensor_group = expert_group, tensor_group
        self.ranks = expert_group.size() * tensor_group.size()
        self.experts_per_rank = num_experts // expert_group.size()

    def plan(self, counts_E: Tensor) -> ExchangePlan:
        """Tell all ranks how many rows each sends to each expert."""
        p, t = self.expert_group.size(), self.tensor_group.size()
        counts_pE = _all_gather(counts_E, self.expert_group)
        first = self.expert_group.rank() * self.experts_per_rank
        mine_pe = counts_pE.view(p, -1)[:, first : first + self.experts_per_rank]
        received_tpe = _all_gather(mine_pe.contiguous(), self.tensor_group)
        received_tpe = received_tpe.view(t, p, self.experts_per_rank)
        return ExchangePlan(counts_E, received_tpe, self.experts_per_rank, self.tensor_group.rank())

    def send(self, rows: Tensor, plan: ExchangePlan) -> Tensor:
        """Rows sorted by global expert -> rows of this rank's experts, sorted by expert."""
        rows = all_to_all(self.expert_group, rows, plan.receive_sizes, plan.send_sizes)
        if self.tensor_group.size() > 1:
            rows = self._to_tensor_ranks(rows, plan)
        return grouped.scatter_tokens(rows, plan.order)

    def bring_back(self, rows: Tensor, plan: ExchangePlan) -> Tensor:
        """The inverse of `send`; partial sums of the expert-tensor ranks are added up."""
        rows = grouped.gather_tokens(rows, plan.order)
        if self.tensor_group.size() > 1:
            rows = self._from_tensor_ranks(rows, plan)
        return all_to_all(self.expert_group, rows, plan.send_sizes, plan.receive_sizes)

    def _to_tensor_ranks(self, rows: Tensor, plan: ExchangePlan) -> Tensor:
        """The rows of all expert-tensor ranks, one after the other.

        An all-to-all of copies: gloo gathers only as many rows from one rank as from the next.
        """
        ranks, mine = self.tensor_group.size(), sum(plan.receive_sizes)
        copies = rows.repeat(ranks, 1)
        return all_to_all(self.tensor_group, copies, plan.tensor_sizes, [mine] * ranks)

    def _from_tensor_ranks(self, rows: Tensor, plan: ExchangePlan) -> Tensor:
        """This rank's own rows, each added up over the expert-tensor ranks."""
        ranks, mine = self.tensor_group.size(), sum(plan.receive_sizes)
        parts = all_to_all(self.tensor_group, rows, [mine] * ranks, plan.tensor_sizes)
        return parts.view(ranks, mine, parts.shape[1]).sum(0)  # mine may be 0: no -1 here


def _all_gather(x: Tensor, group: Any) -> Tensor:
    gathered = x.new_empty((group.size(), *x.shape))
    dist.all_gather_into_tensor(gathered.view(-1), x.view(-1), group=group)
    return gathered


class GroupedExperts(MegatronModule):
    """The experts of this rank: `weight1` [e, 2F, H] holds [gate; up], `weight2` [e, H, F]."""

    def __init__(self, config: TransformerConfig, pg_collection: Any) -> None:
        super().__init__(config)
        self.expert_group, self.tensor_group = pg_collection.ep, pg_collection.expt_tp
        self.data_group = pg_collection.expt_dp
        experts = config.num_moe_experts // self.expert_group.size()
        width = config.moe_ffn_hidden_size // self.tensor_group.size()
        self.weight1 = self._weight(config, experts, 2 * width, config.hidden_size)
        self.weight2 = self._weight(config, experts, config.hidden_size, width)
        self.gradient_accumulation_fusion = config.gradient_accumulation_fusion  # as linears do

    def _weight(self, config: TransformerConfig, *shape: int) -> nn.Parameter:
        device = None if config.use_cpu_initialization else torch.cuda.current_device()
        weight = nn.Parameter(torch.empty(shape, dtype=config.params_dtype, device=device))
        # Reduced over the ranks that hold the same expert, never over the dense data group:
        # megatron-core 0.16 decides this by EP > 1 alone, and copies drift where TP > expert-TP.
        weight.allreduce = False  # type: ignore[attr-defined]
        # No rank of an expert's model-parallel group holds a copy that a norm must leave out.
        weight.tensor_model_parallel = True  # type: ignore[attr-defined]
        return weight

    def forward(self, rows_RH: Tensor, probs_R: Tensor, counts_e: Tensor) -> Tensor:
        """Rows sorted by expert -> [R, H], each weighted by its probability."""
        return grouped.experts(
            rows_RH,
            probs_R,
            counts_e,
            self.weight1,
            self.weight2,
            accumulate=self.gradient_accumulation_fusion,
        )

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None
    ) -> dict[str, Any]:
        """Shards named like megatron-core's grouped experts: [layers, E, rows, columns]."""
        t, T = self.tensor_group.rank(), self.tensor_group.size()
        base = len(sharded_offsets)
        shard = _Sharding(
            (*sharded_offsets, (base, self.expert_group.rank(), self.expert_group.size())),
            prepended=base,
            replica=(0, 0, self.data_group.rank()),
        )
        fc1, fc2 = f"{prefix}experts.linear_fc1.weight", f"{prefix}experts.linear_fc2.weight"
        return {
            f"{prefix}weight1": gate_and_up.sharded_parts(
                shard.tensor(fc1, self.weight1, (base + 1, t, T))
            ),
            f"{prefix}weight2": shard.tensor(fc2, self.weight2, (base + 2, t, T)),
        }


class _Sharding:
    """Where this rank's experts lie in the checkpoint's [layers, E, …] tensors."""

    def __init__(self, offsets: tuple, prepended: int, replica: tuple[int, int, int]) -> None:
        self.offsets, self.prepended, self.replica = offsets, prepended, replica

    def tensor(self, key: str, data: Tensor, tensor_offset: tuple[int, int, int]) -> ShardedTensor:
        return ShardedTensor.from_rank_offsets(
            key,
            data,
            *self.offsets,
            tensor_offset,
            replica_id=self.replica,
            prepend_axis_num=self.prepended,
        )
