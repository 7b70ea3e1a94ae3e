"""Rotary position embedding as tables of cosines and sines.

Qwen3 rotates half-split pairs (RoFormer, arXiv 2104.09864, section 3.4) with base 10,000 in the
first two pretraining stages and 1,000,000 in the long-context one (ABF, arXiv 2309.16039). YaRN
(arXiv 2309.00071) slows the pairs that turn seldom within the trained length, and makes queries and
keys larger by a factor, which the tables contain, so that no rotation can omit it.

    inv_freq_D2 = frequencies(head_dim, theta, rope)
    cos_SB1D, sin_SB1D = RotaryTables(head_dim, theta, rope).at(position_SB)

The frequencies are float32 in the order of operations of transformers, bit for bit its own: those
of float64 differ by 1e-7, which is 2e-2 of a cosine a million positions away.
Legend: S positions, B rows, D head size, D2 = D/2 pairs.
"""

import math

import torch
from torch import Tensor

from megatron_qwen3.parallel.mcore import RotaryEmbedding
from megatron_qwen3.settings_rope import RopeConfig

_PLAIN = RopeConfig()


class RotaryTables(RotaryEmbedding):
    """Stands in for GPTModel's rotary embedding, giving layers cos and sin instead of angles.

    megatron-core takes the cosine and sine of the angles in every layer and for queries and keys
    alike; here it happens once, for the longest rows so far. Rows that stand at positions of their
    own, of a generation or of documents that share a row, get tables by `at`.
    """

    def __init__(self, head_dim: int, base: float, rope: RopeConfig = _PLAIN) -> None:
        super().__init__(
            head_dim, rotary_percent=1.0, rotary_base=base, use_cpu_initialization=True
        )
        # A buffer goes where the model goes, and megatron-core makes a plain attribute. Made on the
        # CPU and moved, the frequencies have the same bits on every device.
        del self.inv_freq
        self.register_buffer("inv_freq", frequencies(head_dim, base, rope), persistent=False)
        self.factor = rope.attention_factor
        self._longest: Tensor | None = None  # made so far

    def forward(self, length: int, packed_seq: bool = False, cp_group: object = None) -> Tensor:
        """cos and sin of positions 0 … length-1, float32 [2, S, 1, 1, D]."""
        tables = self._longest
        if tables is None or tables.shape[1] < length or tables.device != self.inv_freq.device:
            position_S = torch.arange(length, device=self.inv_freq.device)
            self._longest = tables = self.at(position_S[:, None])
        return tables[:, :length]

    def at(self, position_SB: Tensor) -> Tensor:
        """cos and sin of explicit positions, float32 [2, S, B, 1, D], times the attention factor.

        The tables turn back by a negative angle as they turn: that is the derivative, factor and
        all.
        """
        angle_SBD = (position_SB[..., None].float() * self.inv_freq).repeat(1, 1, 2)
        tables = torch.stack([angle_SBD.cos(), angle_SBD.sin()])
        return tables.mul_(self.factor)[:, :, :, None, :]


def frequencies(head_dim: int, base: float, rope: RopeConfig = _PLAIN) -> Tensor:
    """The angle of each pair per position, in radians, float32 [D2], on the CPU."""
    turns = base ** (torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu") / head_dim)
    plain = 1.0 / turns
    if not rope.has_yarn:
        return plain
    slowed = 1.0 / (rope.yarn_factor * turns)
    kept = 1 - _ramp(*_bounds(head_dim, base, rope), head_dim // 2)
    return slowed * (1 - kept) + plain * kept


def _bounds(head_dim: int, base: float, rope: RopeConfig) -> tuple[float, float]:
    """Pairs up to the first are left as they are, pairs from the second are slowed by the factor.

    They are those that turn beta times within the original length; section 3.2.
    """
    low, high = (
        head_dim * math.log(rope.yarn_original_length / (beta * 2 * math.pi)) / (2 * math.log(base))
        for beta in (rope.yarn_beta_fast, rope.yarn_beta_slow)
    )
    if rope.yarn_truncate:
        low, high = math.floor(low), math.ceil(high)
    return max(low, 0), min(high, head_dim - 1)  # of head_dim, not of its pairs


def _ramp(low: float, high: float, pairs: int) -> Tensor:
    """From 0 at pair `low` to 1 at pair `high`, [D2]."""
    if low == high:
        high += 0.001
    pair = torch.arange(pairs, dtype=torch.float32, device="cpu")
    return torch.clamp((pair - low) / (high - low), 0, 1)
