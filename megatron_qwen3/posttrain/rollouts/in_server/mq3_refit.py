"""Loads new weights into a running vLLM: `vllm serve … --worker-extension-cls mq3_refit.Refit`.

    PYTHONPATH=…/megatron_qwen3/posttrain/rollouts/in_server vllm serve …

Each worker gets the methods of `Refit`, which the trainer calls over HTTP (`refit.py`). This file
needs only torch, and safetensors for folders: a machine with vLLM needs nothing else of ours.

vLLM does not check the weights that it reloads: a missing part of a fused matrix leaves the old
values in memory, experts without their kernel's packing give garbage, a tied head stays the old
one. So names and shapes are compared with the model's configuration before the model is touched,
every expert kernel is made anew, and each tensor has a checksum. After a failure the model is not
whole: the trainer starts the server again.
"""

import time
from collections.abc import Iterator
from datetime import timedelta
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._C import _distributed_c10d as c10d

Table = list[list[Any]]  # for each tensor: name, shape, dtype as torch names it

_WORDS = 1 << 20  # words of a tensor that are widened to 64 bits at once
_PRIME = 1_000_003
_ALIGNED = 16  # bytes: alignment of tensors within a bucket


def checksum(tensor: Tensor) -> int:
    """A number of 64 bits that changes when a value changes or two values swap places.

    The sum of (2i + 1) w_i over the words w_i of each block; the blocks' sums are the digits of the
    number; modulo 2^64. Computed on the tensor's device.
    """
    data = tensor.detach().contiguous().view(-1).view(torch.uint8)
    is_wide = data.numel() % 4 == 0 and data.storage_offset() % 4 == 0
    words = data.view(torch.int32) if is_wide else data
    odd = torch.arange(1, 2 * min(_WORDS, len(words)) + 1, 2, device=words.device)
    total = torch.zeros((), dtype=torch.int64, device=words.device)
    for block in torch.split(words, _WORDS):
        total = total * _PRIME + (block.long() * odd[: len(block)]).sum()
    return int(total.item())


def places(table: Table) -> tuple[list[tuple[int, int]], int]:
    """(first byte, bytes) of each tensor of a bucket in one buffer, and the buffer's bytes."""
    found, end = [], 0
    for _, shape, dtype in table:
        size = prod(shape) * getattr(torch, dtype).itemsize
        found.append((end, size))
        end += -(-size // _ALIGNED) * _ALIGNED
    return found, end


def views(table: Table, flat: Tensor) -> list[tuple[str, Tensor]]:
    """The tensors of a bucket as views of its buffer, uint8."""
    return [
        (name, flat[start : start + size].view(getattr(torch, dtype)).view(shape))
        for (name, shape, dtype), (start, size) in zip(table, places(table)[0], strict=True)
    ]


class Link:
    """A process group of the trainer, rank 0, and all workers, apart from all other groups."""

    def __init__(
        self, host: str, port: int, rank: int, size: int, backend: str, seconds: float
    ) -> None:
        """port: 0 lets rank 0 choose a free one, told in `self.port`."""
        patience = timedelta(seconds=seconds)
        self._store: Any = c10d.TCPStore(
            host, port, size, is_master=rank == 0, timeout=patience, wait_for_workers=False
        )
        self.port = self._store.port
        self._rank, self._size, self._backend, self._patience = rank, size, backend, patience
        self._group: Any = None

    def all_are_here(self) -> bool:
        """Whether all the others wait to join, as rank 0 sees it; does not wait."""
        return bool(self._store.check([f"here {rank}" for rank in range(1, self._size)]))

    def join(self) -> None:
        """Wait for all the others, at most `seconds`."""
        self._store.set(f"here {self._rank}", "yes")
        store = c10d.PrefixStore(self._backend, self._store)
        if self._backend == "gloo":
            self._group = c10d.ProcessGroupGloo(store, self._rank, self._size, self._patience)
        else:
            options = c10d.ProcessGroupNCCL.Options()
            options._timeout = self._patience
            self._group = c10d.ProcessGroupNCCL(store, self._rank, self._size, options)

    def close(self) -> None:
        """Leave; a rank that still waits for a message gets an error."""
        self._group = self._store = None

    def send(self, x: Tensor, seconds: float | None = None) -> None:
        """Send `x` of rank 0 into `x` of all the others. RuntimeError after `seconds`, if fewer
        than the group's."""
        options = c10d.BroadcastOptions()
        options.rootRank = 0
        patience = self._patience if seconds is None else timedelta(seconds=seconds)
        self._group.broadcast([x], options).wait(patience)
        if self._backend == "nccl":
            torch.cuda.synchronize(x.device)


def expected(config: Any) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a Qwen3's tensors by its config.json; lm_head even where it is tied."""
    hidden, vocabulary = config.hidden_size, config.vocab_size
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocabulary, hidden),
        "lm_head.weight": (vocabulary, hidden),
        "model.norm.weight": (hidden,),
    }
    for layer in range(config.num_hidden_layers):
        shapes |= {f"model.layers.{layer}.{k}": v for k, v in _layer(config).items()}
    return shapes


def _layer(config: Any) -> dict[str, tuple[int, ...]]:
    hidden, head = config.hidden_size, config.head_dim
    queries, keys = config.num_attention_heads * head, config.num_key_value_heads * head
    shapes: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (queries, hidden),
        "self_attn.k_proj.weight": (keys, hidden),
        "self_attn.v_proj.weight": (keys, hidden),
        "self_attn.o_proj.weight": (hidden, queries),
        "self_attn.q_norm.weight": (head,),
        "self_attn.k_norm.weight": (head,),
    }
    experts = getattr(config, "num_experts", 0)
    if not experts:
        return shapes | _swiglu("mlp.", config.intermediate_size, hidden)
    shapes["mlp.gate.weight"] = (experts, hidden)
    for expert in range(experts):
        shapes |= _swiglu(f"mlp.experts.{expert}.", config.moe_intermediate_size, hidden)
    return shapes


def _swiglu(prefix: str, width: int, hidden: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{prefix}gate_proj.weight": (width, hidden),
        f"{prefix}up_proj.weight": (width, hidden),
        f"{prefix}down_proj.weight": (hidden, width),
    }


def faults(table: Table, config: Any) -> list[str]:
    """Differences between a table and the model: one line for each tensor."""
    wanted, seen = expected(config), set[str]()
    found = []
    for name, shape, _ in table:
        if name in seen:
            found.append(f"{name} comes twice")
        elif name not in wanted:
            found.append(f"{name} is no tensor of this model")
        elif tuple(shape) != wanted[name]:
            found.append(f"{name} has shape {list(shape)}, this model {list(wanted[name])}")
        seen.add(name)
    return found + [f"{name} is missing" for name in wanted if name not in seen]


class Refit:
    """Methods of vLLM's workers; each returns a table: {"error": why}, or its result."""

    def mq3_check(self, table: Table) -> dict[str, Any]:
        """Check that these tensors are the model's; changes nothing."""
        found = faults(table, self._mq3_config())
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        return {"error": "; ".join(found[:3]) + more} if found else {"rank": self.rank}  # type: ignore[attr-defined]

    def mq3_from_folder(self, path: str, table: Table, checksums: list[int]) -> dict[str, Any]:
        """Load the weights of a folder of safetensors files."""
        return self._mq3_take(
            table, _of_folder(Path(path)), dict(zip(_names(table), checksums, strict=True))
        )

    def mq3_from_group(
        self,
        host: str,
        port: int,
        first: int,
        size: int,
        backend: str,
        seconds: float,
        buckets: list[Table],
    ) -> dict[str, Any]:
        """Load the weights that rank 0 of a process group sends bucket by bucket.

        first: rank of this server's first worker in a group of `size`. {"unbegun": why} where the
        group was not established: the weights are unchanged.
        """
        table = [row for bucket in buckets for row in bucket]
        rank = first + self.rank  # type: ignore[attr-defined]
        try:
            link = Link(host, port, rank, size, backend, seconds)
            link.join()
        except RuntimeError as error:  # torch: another process did not join
            return {"unbegun": str(error)}
        device = "cpu" if backend == "gloo" else torch.device("cuda", torch.cuda.current_device())
        checksums: dict[str, int] = {}
        stream = _of_group(link, buckets, checksums, device)
        done = self._mq3_take(table, stream, checksums)
        for _ in stream:  # even after a failure here, the trainer sends to the end
            pass
        return done

    def _mq3_config(self) -> Any:
        return self.vllm_config.model_config.hf_text_config  # type: ignore[attr-defined]

    def _mq3_take(
        self, table: Table, stream: Iterator[tuple[str, Tensor]], checksums: dict[str, int]
    ) -> dict[str, Any]:
        began = time.monotonic()
        if error := self.mq3_check(table).get("error"):
            return {"error": error}
        self._mq3_unpack_experts()
        missing = {name: (tuple(shape), dtype) for name, shape, dtype in table}
        try:
            self.reload_weights(weights_iterator=_checked(stream, missing, checksums))  # type: ignore[attr-defined]
        except Exception as error:  # the trainer logs it
            return {"error": f"{type(error).__name__}: {error}", "is_broken": True}
        if missing:
            return {"error": f"{next(iter(missing))} did not arrive", "is_broken": True}
        return {"tensors": len(table), "seconds": time.monotonic() - began}

    def _mq3_unpack_experts(self) -> None:
        """vLLM packs experts when their kernel is made, and keeps the kernel: a reload without
        this copies plain matrices into packed memory."""
        for module in self.model_runner.get_model().modules():  # type: ignore[attr-defined]
            method = getattr(module, "quant_method", None)
            if method is not None and getattr(method, "moe_kernel", None) is not None:
                method.moe_kernel = None


def _names(table: Table) -> list[str]:
    return [name for name, _, _ in table]


def _of_folder(path: Path) -> Iterator[tuple[str, Tensor]]:
    from safetensors import safe_open

    for file in sorted(path.glob("*.safetensors")):
        with safe_open(str(file), "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (no dict)
                yield name, tensors.get_tensor(name)


def _of_group(
    link: Link, buckets: list[Table], checksums: dict[str, int], device: Any
) -> Iterator[tuple[str, Tensor]]:
    """Tensors as they arrive; a bucket's checksums come first and go into `checksums`."""
    for table in buckets:
        sums = torch.empty(len(table), dtype=torch.int64, device=device)
        flat = torch.empty(places(table)[1], dtype=torch.uint8, device=device)
        link.send(sums)
        link.send(flat)
        checksums.update(zip(_names(table), sums.tolist(), strict=True))
        yield from views(table, flat)


def _checked(
    stream: Iterator[tuple[str, Tensor]],
    missing: dict[str, tuple[tuple[int, ...], str]],
    checksums: dict[str, int],
) -> Iterator[tuple[str, Tensor]]:
    """The stream, checked against its announcement; arrived tensors are removed from `missing`."""
    for name, tensor in stream:
        kind = (tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        if missing.pop(name, None) != kind:
            raise ValueError(f"{name}, {kind[0]} of {kind[1]}, was not announced like that")
        if checksum(tensor) != checksums[name]:
            raise ValueError(f"{name} did not arrive as it was sent: its checksum is another")
        yield name, tensor
