"""A model in one layout, for inference: teacher, reference, reward model, evaluation, generation.

    model = Model(config, layout)                  # fresh weights; convert/load.py fills them
    outputs = model.score(batch, log_probs)        # {"log_prob": [B, S], "log_z": [B, S]}

`engine.py` trains one. A process may have several, each in its own layout:
`ProcessGroups.make` makes the process groups of a second one.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_qwen3.model import scaling
from megatron_qwen3.model.build import build
from megatron_qwen3.model.context import ContextShare
from megatron_qwen3.model.document_share import DocumentShare
from megatron_qwen3.model.outputs import Head, LastStage, Outputs
from megatron_qwen3.parallel.groups import ProcessGroups
from megatron_qwen3.parallel.layout import Layout, row_unit
from megatron_qwen3.parallel.mcore import (
    get_forward_backward_func,
    is_float8tensor,
    post_all_gather_processing,
)
from megatron_qwen3.settings import Config
from megatron_qwen3.training.batch import Share, TokenBatch

ANOTHER = "another data rank got a batch that cannot be computed: see that rank's own error"
# On a micro-batch's last stage: the value to differentiate, and the report.
Finish = Callable[[Tensor | LastStage, TokenBatch], tuple[Tensor, Any]]


class Model:
    """A model and the ranks that hold it.

    chunks: this rank's, one for each virtual pipeline stage; groups: process groups of the model;
    weights_version: marks texts with the weights that wrote them. It is at least the number of
    updates of the weights, and grows with every update and every load.
    """

    def __init__(self, config: Config, layout: Layout, groups: ProcessGroups | None = None) -> None:
        """With fresh weights. groups: None for the run's own."""
        self.config, self.layout = config, layout
        self.groups = groups or ProcessGroups.of_run()
        self.device = torch.device(torch.cuda.current_device())
        self.chunks = build(config, layout, self.groups)
        self.weights_version = 0
        self.replicas: list[Any] = []  # the chunks with gradients, where an engine trains them
        # The schedules' token count; losses are normalised before they reach the schedules.
        self._one = torch.ones((), dtype=torch.int, device=self.device)

    @property
    def data_rank(self) -> int:
        """The number, below `layout.data`, of this rank's share of a global batch."""
        return int(self.groups.ranks.dp.rank())

    @torch.no_grad()
    def score(self, batch: TokenBatch, head: Head) -> Outputs:
        """The head's outputs of every position, on every rank of the data rank.

        All data ranks call it with equally many sequences, at least one, since they share experts.
        ValueError, on all of them and before any pass, where one's batch cannot be computed.
        """
        with self.together():
            head.check(batch, self.config.model)
            if beyond := int(batch.beyond(self.config.model.vocab_size)):
                raise ValueError(
                    f"{beyond:,} positions have a token or label that is no id of a vocabulary of "
                    f"{self.config.model.vocab_size:,}"
                )
            rows, padded = batch.rows, self.filled(batch).to(self.device)

        def finish(output: Tensor | LastStage, micro: TokenBatch) -> tuple[Tensor, Outputs]:
            assert not isinstance(output, Tensor)
            return output.hidden_SBH.sum(), self.compute(head, output, micro)

        micro = self._evaluate(padded, finish)
        outputs = head.empty(padded.rows, padded.length, self.device)
        if micro:
            outputs = {name: torch.cat([each[name] for each in micro]) for name in outputs}
        pipeline = self.groups.ranks.pp
        for x in outputs.values():
            dist.broadcast(x, group=pipeline, group_src=pipeline.size() - 1)
        return {name: x[:rows] for name, x in outputs.items()}

    def share_of(self, micro: TokenBatch) -> Share | None:
        """This rank's share of a micro-batch's rows; None where it has them whole."""
        group, parallel = self.groups.ranks.cp, self.config.parallel
        if self.layout.context == 1:
            return None
        is_ours = parallel.context_exchange == "own"
        if is_ours or micro.stretches is None:
            return ContextShare(group, is_ours)
        unit, _ = row_unit(parallel, self.config.fp8)
        return DocumentShare.of_rows(group, micro.stretches, unit)

    def compute(self, head: Head, output: LastStage, micro: TokenBatch) -> Outputs:
        """The head's outputs of all positions of a micro-batch, on the last pipeline stage."""
        share = self.share_of(micro)
        if share is None:
            return head.compute(output, micro)
        outputs = head.compute(output, micro.part(share))
        return {name: share.whole(x, micro.length) for name, x in outputs.items()}

    def read(self, batch: TokenBatch) -> None:
        """Run all layers on the batch, for the statistics that they collect: no gradients."""

        def finish(output: Tensor | LastStage, _: TokenBatch) -> tuple[Tensor, None]:
            assert not isinstance(output, Tensor)
            return output.hidden_SBH.sum(), None

        self._evaluate(batch, finish)

    def run_schedule(
        self, modules: Sequence[Any], batch: TokenBatch, finish: Finish, forward_only: bool
    ) -> list[Any]:
        """The reports of `finish` on each micro-batch, on the last pipeline stage; [] on others.

        modules: the chunks, or their wrappers. The batch must be `filled`.
        """
        size = self.config.train.micro_batch
        iterators = [batch.split(size) for _ in modules]

        def forward(
            micro_batches: Iterator[TokenBatch], chunk: Any, return_schedule_plan: bool = False
        ) -> tuple[Any, Any]:
            micro = next(micro_batches)
            share = self.share_of(micro)

            def told(output: Tensor | LastStage) -> tuple[Tensor, Tensor, Any]:
                trained, report = finish(output, micro)
                return trained, self._one, report

            tokens_BS = micro.tokens_BS if share is None else share.of(micro.tokens_BS)
            if return_schedule_plan:  # megatron-core asks for one with overlap.experts
                plan = chunk.plan(tokens_BS, micro.sequences(share))
                return plan, lambda hidden_SBH: told(chunk.last_stage(hidden_SBH))
            return chunk(tokens_BS, micro.sequences(share)), told

        several = len(modules) > 1
        with self.groups.current():
            reports: list[Any] = get_forward_backward_func()(
                forward_step_func=forward,
                data_iterator=iterators if several else iterators[0],
                model=list(modules) if several else modules[0],
                num_microbatches=batch.rows // size,
                seq_length=batch.length,
                micro_batch_size=size,
                forward_only=forward_only,
            )
        return reports

    def filled(self, batch: TokenBatch) -> TokenBatch:
        """The batch with padding at its end if needed: the schedule takes multiples of rows.

        ValueError where rows cannot be split among context or tensor ranks.
        """
        unit, settings = row_unit(self.config.parallel, self.config.fp8)
        if batch.length % unit:
            raise ValueError(
                f"rows of {batch.length} positions are no multiple of {unit}, which {settings} "
                "needs"
            )
        stages = self.layout.pipeline if self.layout.virtual > 1 else 1
        unit = self.config.train.micro_batch * stages
        return batch.padded_to(-(-batch.rows // unit) * unit)

    def count_update(self) -> None:
        """Record that the weights have changed."""
        self.weights_version += 1

    def weights(self) -> dict[str, Any]:
        """megatron-core's description of this rank's weights and buffers, by chunk."""
        metadata = {"dp_cp_group": self.groups.ranks.dp_cp}
        with self.groups.current():
            return {
                f"chunk{index}": chunk.sharded_state_dict(metadata=metadata)
                for index, chunk in enumerate(self.chunks)
            }

    def template(self) -> dict[str, Any]:
        """`weights` to read into; for weights kept in FP8, new tensors that `take_weights` casts
        whole."""
        return {
            chunk: {name: _to_read_into(entry) for name, entry in entries.items()}
            for chunk, entries in self.weights().items()
        }

    def take_weights(self, weights: Mapping[str, Any]) -> None:
        """Load weights and buffers from tensors for all entries of `weights`."""
        for index, chunk in enumerate(self.chunks):
            chunk.load_state_dict(scaling.taken(chunk, weights[f"chunk{index}"]))
        self.count_update()

    def synchronize(self) -> None:
        """Make the weights of every rank those of the last step.

        With overlap each data rank updates its share, and shares are gathered in the next forward
        pass: code that reads weights between two steps must call this first.
        """
        for replica in self.replicas:
            if replica.ddp_config.overlap_param_gather:
                replica.start_param_sync(force_sync=True)
                self.finish_fp8(replica)

    def finish_fp8(self, replica: Any) -> None:
        """Derive the backward passes' copy of FP8 weights from gathered ones; megatron-core does
        that only where the next forward pass gathers them."""
        if low := [weight for weight in replica.parameters() if is_float8tensor(weight)]:
            post_all_gather_processing(low)

    @contextmanager
    def together(self) -> Iterator[None]:
        """An error raised within is raised on all data ranks, so that none waits for another.

        Ranks without an error of their own raise ValueError. All data ranks enter.
        """
        fault: Exception | None = None
        try:
            yield
        except Exception as error:
            fault = error
        if self.layout.data > 1:
            flag = torch.tensor(int(fault is not None), device=self.device)
            dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self.groups.ranks.dp)
            fault = fault or (ValueError(ANOTHER) if flag.item() else None)
        if fault:
            raise fault

    def sum_over_data(self, x: Tensor) -> Tensor:
        """`x`, one number or more per data rank, added up over the data ranks in place."""
        dist.all_reduce(x, group=self.groups.ranks.dp)
        return x

    def gather_over_data(self, x: Tensor) -> Tensor:
        """`x` of all data ranks, of equal shape, concatenated along the first axis."""
        every = x.new_empty((self.layout.data * len(x), *x.shape[1:]))
        dist.all_gather_into_tensor(every.view(-1), x.reshape(-1), group=self.groups.ranks.dp)
        return every

    def weights_are_finite(self) -> bool:
        """Whether no weight of any rank is NaN or infinite; the same answer on all ranks."""
        finite = [p.isfinite().all() for chunk in self.chunks for p in chunk.parameters()]
        everywhere = torch.stack(finite).all().int()
        dist.all_reduce(everywhere, op=dist.ReduceOp.MIN)
        return bool(everywhere.item())

    def _evaluate(self, batch: TokenBatch, finish: Finish) -> list[Any]:
        """The reports of `finish` on micro-batches in evaluation mode, on the last stage."""
        was_training = self.chunks[0].training
        for chunk in self.chunks:
            chunk.eval()
        try:
            with scaling.untouched(self.chunks):
                return self.run_schedule(self.chunks, batch, finish, forward_only=True)
        finally:
            for chunk in self.chunks:
                chunk.train(was_training)


def _to_read_into(entry: Any) -> Any:
    data: Any = getattr(entry, "data", None)
    if not is_float8tensor(data):
        return entry
    return replace(entry, data=torch.empty(data.shape, dtype=data.dtype, device=data.device))
