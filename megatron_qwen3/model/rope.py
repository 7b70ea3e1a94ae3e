"""Rotary position embedding as tables of cosines and sines.

Qwen3 rotates half-split pairs (RoFormer, arXiv 2104.09864, section 3.4) with base 10,000 in the
first two pretraining stages and 1,000,000 in the long-context one (ABF, arXiv 2309.16039).
Legend: S positions, B rows, D head size.
"""

import torch
from torch import Tensor

from megatron_qwen3.parallel.mcore import RotaryEmbedding


class RotaryTables(RotaryEmbedding):
    """Stands in for GPTModel's rotary embedding, giving layers cos and sin instead of angles.

    megatron-core takes the cosine and sine of the angles in every layer and for queries and keys
    alike; here it happens once, for the longest rows so far. Rows that stand at positions of their
    own, of a generation or of documents that share a row, get tables by `at`.
    """

    def __init__(self, head_dim: int, base: float) -> None:
        super().__init__(
            head_dim, rotary_percent=1.0, rotary_base=base, use_cpu_initialization=True
        )
        # A buffer goes where the model goes, and megatron-core makes a plain attribute. Made on the
        # CPU and moved, the frequencies have the same bits on every device.
        inv_freq = self.inv_freq
        del self.inv_freq
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self._longest: Tensor | None = None  # made so far

    def forward(self, length: int, packed_seq: bool = False, cp_group: object = None) -> Tensor:
        """cos and sin of positions 0 … length-1, float32 [2, S, 1, 1, D]."""
        tables = self._longest
        if tables is None or tables.shape[1] < length or tables.device != self.inv_freq.device:
            position_S = torch.arange(length, device=self.inv_freq.device)
            self._longest = tables = self.at(position_S[:, None])
        return tables[:, :length]

    def at(self, position_SB: Tensor) -> Tensor:
        """cos and sin of explicit positions, float32 [2, S, B, 1, D]."""
        angle_SBD = (position_SB[..., None].float() * self.inv_freq).repeat(1, 1, 2)
        return torch.stack([angle_SBD.cos(), angle_SBD.sin()])[:, :, :, None, :]
