"""The cache of keys and values of earlier tokens, so that a new token costs one position.

    timeline = Timeline([3, 5], room=64, device=device, dtype=dtype)
    caches = {layer.layer_number: KVCache(timeline) for layer in layers}
    timeline.begin(5)  # a pass of 5 places: the prompts
    model(tokens_BS, timeline.sequences(caches, products))  # layers call cache.attend meanwhile
    timeline.begin(1)  # a pass of one token per row

Prompts are padded on the right: each is read from its row's first place by plain causal attention,
in which no token attends to a later one. In the caches they end at one place, padded on the left,
so that all rows write to the same place from then on; only a pass of one token needs a mask, of one
row, and none where prompts are equally long. Under Dual Chunk Attention (model/dca.py) chunks begin
with each row's text: the one token's query is rotated once for each distance, and a mask leaves
each of these queries its own keys. Legend: B rows, S places of this pass, L places so far, N query
heads, G key/value groups and D head size of this tensor rank.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_qwen3.model import flash, ops
from megatron_qwen3.model.attention import attention
from megatron_qwen3.model.dca import DualChunk, Tables
from megatron_qwen3.model.linear import Products
from megatron_qwen3.model.reads import Reads
from megatron_qwen3.model.sequences import Sequences

_LEAST_GROWTH = 128  # places


class Timeline:
    """The progress of all rows, which the caches of all layers share.

    padding_B: places without a token at the start of each row's cache, as many as follow its
    prompt. end: places filled after the pass that has begun. capacity: places that the caches have
    room for.
    """

    def __init__(
        self,
        lengths_B: list[int],
        room: int,
        device: torch.device,
        dtype: torch.dtype,
        dual: DualChunk | None = None,
    ) -> None:
        """lengths_B: of the prompts; room: tokens that may follow. Caches grow as they are filled,
        and beyond that only if more tokens come. dual: how texts are cut into chunks."""
        longest = max(lengths_B)
        self._expected = longest + room
        self.padding_B = longest - torch.tensor(lengths_B, device=device)
        self.is_padded = min(lengths_B) < longest
        self.dtype, self.dual = dtype, dual
        self.start = self.end = 0
        self.capacity = longest + min(room, _LEAST_GROWTH)
        self.mask: Tensor | None = None
        self.distances: _Distances | None = None
        self._visible_B11C = self._beyond_padding()

    @property
    def is_at_start(self) -> bool:
        """Whether no pass has begun."""
        return self.end == 0

    @property
    def is_at_prompts(self) -> bool:
        """Whether the pass that has begun reads the prompts."""
        return self.start == 0

    def begin(self, places: int) -> None:
        """Start a pass over the next places: all of the prompts first, then one at a time."""
        self.start, self.end = self.end, self.end + places
        if self.end > self.capacity:
            grown = self.end + max(_LEAST_GROWTH, self.capacity // 2)
            self.capacity = max(self.end, min(grown, self._expected))
            self._visible_B11C = self._beyond_padding()
        self.mask = self._visible_B11C[..., : self.end] if self.is_padded else None
        self.distances = _Distances(self) if self.has_chunks else None

    @property
    def has_chunks(self) -> bool:
        """Whether this pass of one token reads keys of other chunks."""
        return bool(self.dual and not self.is_at_prompts and self.end > self.dual.chunk)

    def sequences(self, caches: Mapping[int, Any], products: Products) -> Sequences:
        """The layout of this pass's rows, for the model."""
        if not self.is_at_prompts:
            position_B1 = self.end - 1 - self.padding_B[:, None]
            return Sequences(positions_BS=position_B1, caches=caches, products=products)
        valid_BS = None
        if self.is_padded:
            place_S = torch.arange(self.end, device=self.padding_B.device)
            valid_BS = place_S < self.end - self.padding_B[:, None]
        return Sequences(valid_BS=valid_BS, caches=caches, products=products)

    def last_B(self) -> Tensor | None:
        """Each row's last token among the places of this pass; None where it is the last place."""
        return self.end - 1 - self.padding_B if self.is_at_prompts and self.is_padded else None

    def at_one_end(self, x_SBGD: Tensor) -> Tensor:
        """Values at the prompts' places, moved so that all rows end at the last place.

        Places before a row's first are unused, but finite.
        """
        if not (self.is_at_prompts and self.is_padded):
            return x_SBGD
        S, B = x_SBGD.shape[:2]
        device = x_SBGD.device
        place_SB = (torch.arange(S, device=device)[:, None] - self.padding_B).clamp_(min=0)
        return x_SBGD[place_SB, torch.arange(B, device=device)]

    def pick(self, rows_B: Tensor) -> None:
        """Keep these rows, each as often as it is listed."""
        self.padding_B = self.padding_B[rows_B]
        self._visible_B11C = self._visible_B11C[rows_B]

    def _beyond_padding(self) -> Tensor:
        """A mask: 0 for a row's places, -inf for its padding, [B, 1, 1, capacity]."""
        place_C = torch.arange(self.capacity, device=self.padding_B.device)
        hidden_BC = place_C < self.padding_B[:, None]
        visible_BC = torch.zeros(hidden_BC.shape, dtype=self.dtype, device=hidden_BC.device)
        return visible_BC.masked_fill_(hidden_BC, -torch.inf)[:, None, None, :]


class _Distances:
    """The keys that one new token of each row reads at each distance in chunks, the last of which
    stands for all that are farther; for Dual Chunk Attention.

    visible_BdL: 0 for these keys and -inf for others. exists_Bd1: 0 where a row has such keys; -inf
    where it has none: `visible_BdL` then shows all keys, since kernels need at least one.
    """

    def __init__(self, time: Timeline) -> None:
        assert time.dual
        chunk, device = time.dual.chunk, time.padding_B.device
        self.count = min(3, -(-time.end // chunk))
        distance_d1 = torch.arange(self.count, device=device)[:, None]
        place_BL = torch.arange(time.end, device=device) - time.padding_B[:, None]
        own_B1 = place_BL[:, -1:] // chunk
        apart_BL = (own_B1 - place_BL // chunk).clamp_(max=2)
        is_read_BdL = (apart_BL[:, None] == distance_d1) & (place_BL >= 0)[:, None]
        exists_Bd1 = own_B1[:, None] >= distance_d1
        self.visible_BdL = _zero_where(is_read_BdL | ~exists_Bd1, time.dtype)
        self.exists_Bd1 = _zero_where(exists_Bd1, torch.float32)


def _zero_where(is_there: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where it is true, -inf elsewhere."""
    zeros = torch.zeros(is_there.shape, dtype=dtype, device=is_there.device)
    return zeros.masked_fill_(~is_there, -torch.inf)


class KVCache:
    """Keys and values of one layer, [B, G, capacity, D]."""

    def __init__(self, timeline: Timeline) -> None:
        self.timeline = timeline
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def attend(
        self,
        q_SBND: Tensor,
        k_SBGD: Tensor,
        v_SBGD: Tensor,
        reads: Reads | None = None,
        tables: Tables | None = None,
    ) -> Tensor:
        """Attention of this pass's places to all so far, [S, B, N·D]; stores their k and v.

        reads, tables: see `model.attention.attention`: of the prompts, and of queries still to be
        rotated.
        """
        time = self.timeline
        self.keys = self._append(self.keys, time.at_one_end(k_SBGD))
        self.values = self._append(self.values, time.at_one_end(v_SBGD))
        if q_SBND.shape[0] > 1:
            return attention(q_SBND, k_SBGD, v_SBGD, reads, tables)
        if time.distances and tables:
            return self._attend_by_distance(time.distances, q_SBND, tables)
        if tables:
            q_SBND = _rotated(q_SBND, tables[0])
        _, B, N, D = q_SBND.shape
        # The query heads of a group share keys as the queries of one head would: no key is read
        # or copied twice.
        q_BGrD = q_SBND.reshape(B, k_SBGD.shape[2], -1, D)
        mixed_BGrD = F.scaled_dot_product_attention(q_BGrD, *self._so_far(), time.mask)
        return mixed_BGrD.reshape(1, B, N * D)

    def _attend_by_distance(self, distances: _Distances, q_SBND: Tensor, tables: Tables) -> Tensor:
        """One kernel reads all keys for the queries of every distance; the softmaxes, each over
        its own keys, are merged as in attention.py."""
        _, B, N, D = q_SBND.shape
        keys, values = self._so_far()
        G, d = keys.shape[1], distances.count
        rotated = [_rotated(q_SBND, table).view(B, G, -1, D) for table in tables[:d]]
        q_BGdrD = torch.stack(rotated, 2)
        r = q_BGdrD.shape[3]
        mask_B1dL = distances.visible_BdL.repeat_interleave(r, 1)[:, None]
        mixed, lse = flash.forward(q_BGdrD.flatten(2, 3), keys, values, False, mask_B1dL)
        mixed_BGdrD, lse_BGdr = mixed.unflatten(2, (d, r)), lse.unflatten(2, (d, r))
        share_BGdr = (lse_BGdr + distances.exists_Bd1[:, None]).softmax(2)
        mixed_BGrD = (mixed_BGdrD * share_BGdr[..., None]).sum(2)
        return mixed_BGrD.to(q_SBND.dtype).reshape(1, B, N * D)

    def _so_far(self) -> tuple[Tensor, Tensor]:
        assert self.keys is not None and self.values is not None
        end = self.timeline.end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def pick(self, rows_B: Tensor) -> None:
        """Keep these rows, each as often as it is listed."""
        if self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys[rows_B], self.values[rows_B]

    def _append(self, old: Tensor | None, new_SBGD: Tensor) -> Tensor:
        """`old` with this pass's places; in a larger copy where there was no room."""
        time, new_BGSD = self.timeline, new_SBGD.permute(1, 2, 0, 3)
        if old is None or old.shape[2] < time.capacity:
            B, G, _, D = new_BGSD.shape
            larger = new_BGSD.new_empty(B, G, time.capacity, D)
            if old is not None:
                larger[:, :, : time.start] = old[:, :, : time.start]
            old = larger
        old[:, :, time.start : time.end] = new_BGSD
        return old


def _rotated(q_SBND: Tensor, table: Tensor) -> Tensor:
    return ops.rotate(q_SBND, *table, 1, out=q_SBND.new_empty(q_SBND.shape))
