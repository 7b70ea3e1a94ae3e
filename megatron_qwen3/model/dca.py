"""Dual Chunk Attention (arXiv 2402.17463): attention never sees a distance above the chunk size.

    dual = DualChunk(chunk_size=32_768, local_size=1_024)
    rotary = dual.key_table(tables.at, positions_SB)          # keys are rotated once, by these
    tables = dual.query_tables(tables.at, place_SB)           # queries three times, by distance
    reads = Reads.of(rows, length, stretches, chunk=dual.chunk)

A text is cut into chunks of s = chunk_size - local_size places. Key j has position j mod s for
every query. Query i, at place p = i mod s of its chunk, has position p for keys of its own chunk,
min(p + s, last) for keys of the chunk before it, and `farthest` for all earlier ones: so near keys
keep their true distance as far as a chunk size allows, and the others keep the order of chunks. Up
to min(2s, last + 1) places this is plain rotary embedding. Positions count within a document.
Cached keys stay valid as the text grows.

`tables.at` is RotaryTables.at, so that YaRN's frequencies and its factor apply here, too.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from megatron_qwen3.settings_rope import RopeConfig

At = Callable[[Tensor], Tensor]  # cos and sin, [2, S, B, 1, D], of positions [S, B]
Tables = tuple[Tensor, Tensor, Tensor]  # by distance in chunks from query to key: 0, 1, 2 or more


@dataclass(frozen=True)
class DualChunk:
    """The chunks of a text, and its rotary positions.

    rule: "code" is the rule of ChunkLlama, vLLM and sglang, with chunk_size as largest distance;
    "paper" is figure 2 of the paper, with one less.
    scale: m of a run's length factor: queries and keys are multiplied by it, scores by m².
    """

    chunk_size: int
    local_size: int
    rule: str = "code"
    scale: float = 1.0

    @classmethod
    def of(cls, rope: RopeConfig) -> Self | None:
        """From the settings; None for plain attention."""
        if not rope.dca_chunk_size:
            return None
        return cls(rope.dca_chunk_size, rope.dca_local_size, rope.dca_rule, rope.dca_scale)

    @property
    def chunk(self) -> int:
        """s, places of a chunk."""
        return self.chunk_size - self.local_size

    @property
    def last(self) -> int:
        """The largest position of a query for keys of the chunk before its own."""
        return self.chunk_size if self.rule == "code" else self.chunk_size - 1

    @property
    def farthest(self) -> int:
        """The position of every query for keys of earlier chunks."""
        return min(2 * self.chunk - 1, self.last) if self.rule == "code" else self.last

    def query_positions(self, place: Tensor) -> Tables:
        """Positions of queries at `place` of their chunks, by distance."""
        far = torch.full_like(place, self.farthest)
        return place, (place + self.chunk).clamp(max=self.last), far

    def key_table(self, at: At, position_SB: Tensor) -> Tensor:
        """cos and sin of keys at these positions of their documents, [2, S, B, 1, D]."""
        return self._scaled(at(position_SB % self.chunk))

    def query_tables(self, at: At, place_SB: Tensor) -> Tables:
        """cos and sin of queries at these places of their chunks, [2, S, B, 1, D] each.

        attention.py needs those of places 0 to s - 1, or to the end of a shorter row.
        """
        own, before, far = (self._scaled(at(x)) for x in self.query_positions(place_SB))
        return own, before, far

    def for_prompt(self, places: int, original: int) -> Self:
        """With the length factor of Qwen2.5-1M (arXiv 2501.15383, as in vLLM) for a whole prompt of
        `places` after a training at `original`: max(1, 0.1 ln(places/original) + 1).

        The factor depends on the whole length: this serves to compare a single pass over a prompt
        with their results, not to train or to generate token by token.
        """
        return replace(self, scale=max(1.0, 0.1 * math.log(places / original) + 1))

    def _scaled(self, table: Tensor) -> Tensor:
        return table if self.scale == 1 else table * self.scale
