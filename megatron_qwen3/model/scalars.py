"""The head of a reward model: one number per position in place of the vocabulary's logits.

    scalars = scalar_layer(hidden_SBH)
    reward_SB = scalars.values()

The head is one row of weights, which every tensor rank has whole: split over the hidden size, it
would need a sum over the ranks for every position, and save a few kilobytes. With sequence
parallelism each rank multiplies its own positions and the numbers are gathered, not the hidden
states; the weight's gradient is then this rank's part and marked to be summed, like a norm's.

Legend: S positions, B rows, H hidden size, s = S/tp with sequence parallelism, else S.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from megatron_qwen3.parallel.mcore import MegatronModule, TransformerConfig, tensor_parallel

KEY = "scalar_head.weight"  # in checkpoints; distinct from the vocabulary's matrix


@dataclass(frozen=True, eq=False)
class Scalars:
    """hidden · weight, of all positions.

    hidden_SBH: [s, B, H]; weight_1H: [1, H]; gathered_by: the tensor ranks that share the positions
    of a row, None where each has them all.
    """

    hidden_SBH: Tensor
    weight_1H: Tensor
    gathered_by: Any = None

    def values(self) -> Tensor:
        """[S, B], float32, equal on all tensor ranks.

        Multiplied in float32: bf16's 8 bits would round away the differences between answers.
        """
        x_SB = self.hidden_SBH.float() @ self.weight_1H.squeeze(0).float()
        if self.gathered_by is None:
            return x_SB
        # All ranks compute the same loss of these numbers: each takes its own positions' gradient.
        gathered: Tensor = tensor_parallel.gather_from_sequence_parallel_region(
            x_SB, tensor_parallel_output_grad=False, group=self.gathered_by
        )
        return gathered


class ScalarLayer(MegatronModule):
    """The weight of the head, which leaves the product to `Scalars`.

    It is a called module, since hooks on modules make sure that data ranks which share the update
    of a weight have all of it.
    """

    def __init__(self, config: TransformerConfig, tp_group: Any) -> None:
        super().__init__(config)
        self.tp_group = tp_group
        device = None if config.use_cpu_initialization else torch.cuda.current_device()
        shape = (1, config.hidden_size)
        self.weight = torch.nn.Parameter(
            torch.empty(shape, dtype=config.params_dtype, device=device)
        )
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, hidden_SBH: Tensor) -> Scalars:
        """hidden_SBH: with sequence parallelism this rank's part of the positions, [s, B, H]."""
        is_shared = self.config.sequence_parallel and self.tp_group.size() > 1
        return Scalars(hidden_SBH, self.weight, self.tp_group if is_shared else None)

    def sharded_state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """megatron-core's description of the weight, under a key of its own."""
        described: dict[str, Any] = super().sharded_state_dict(*args, **kwargs)
        for entry in described.values():
            entry.key = KEY
        return described
