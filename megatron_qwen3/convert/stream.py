"""Converts a model of any size in constant memory: `from_hf(folder, out)`, `to_hf(checkpoint,
out)`.

A conversion first reads both tables, checks that they fit, and lays out the files to be written.
The rest are independent moves of bytes, done by threads, which wait for the kernel, not for Python.
Bytes are unchanged unless `dtype` is given: then each batch is rounded to that type on the way, to
the nearest, ties to even. The result is written under a name that no reader accepts, and renamed at
the end (`storage/whole.py`).
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path

import numpy as np
import torch

from megatron_qwen3.bar import Bar, in_megabytes
from megatron_qwen3.config import ConfigError
from megatron_qwen3.convert import hf, hf_config, hf_files, hf_writer
from megatron_qwen3.convert.dcp import BATCH_BYTES, Checkpoint
from megatron_qwen3.convert.dcp_writer import CheckpointWriter, Slot
from megatron_qwen3.convert.hf_rope import LONG_FILE, dca_fault
from megatron_qwen3.convert.mapping import EXPERT_SHARE, Index, Weight, in_order, weights
from megatron_qwen3.cores import cores
from megatron_qwen3.hub import tokenizer_folder
from megatron_qwen3.settings import ModelConfig
from megatron_qwen3.settings_rope import RopeConfig
from megatron_qwen3.storage.whole import sync_tree, whole_folder

_PRECISIONS = {torch.bfloat16: "bf16", torch.float32: "fp32"}
# Modules of megatron-core with an empty extra state beside their weight, which its loader needs.
_EXTRA_STATES = ("self_attention.linear_qkv", "self_attention.linear_proj")
_EXTRA_STATES_DENSE = ("mlp.linear_fc1", "mlp.linear_fc2")

Move = tuple[int, Callable[[], None]]  # number of bytes, and the function that moves them


def from_hf(
    folder: Path,
    out: Path,
    workers: int | None = None,
    dtype: torch.dtype | None = None,
    with_dca: bool = False,
) -> None:
    """A folder of Hugging Face's format -> a checkpoint that a run can start from.

    dtype: bfloat16 or float32, of every tensor; None: as they are. with_dca: with Dual Chunk
    Attention from config_1m.json; otherwise that file is ignored. ConfigError where the
    folder is not a whole Qwen3, its types do not fit together, its tokenizer has too many tokens,
    or `out` exists.
    """
    with whole_folder(out) as beside:
        fill_from_hf(folder, beside, workers, dtype, out, with_dca)
        sync_tree(beside)


def fill_from_hf(
    folder: Path,
    out: Path,
    workers: int | None = None,
    dtype: torch.dtype | None = None,
    named: Path | None = None,
    with_dca: bool = False,
) -> None:
    """`from_hf` into an empty folder that will be called `named`; it need not outlive a crash."""
    source, named = hf.HFFolder(folder, with_dca), named or out
    hf_files.check_tokenizer(folder, source.model.vocab_size)
    hf_files.end_ids(folder)  # reports invalid ids before any byte is moved
    dtypes = {w.names[0]: dtype or _common_dtype(source, w) for w in weights(source.model)}
    writer = CheckpointWriter(out)
    moves = [
        (slot.rows * len(slot.indices) * weight.columns * to.itemsize, move)
        for weight in weights(source.model)
        for to in [dtypes[weight.names[0]]]
        for slot in writer.add_weight(weight, to)
        for move in [partial(_fill, source, weight, slot, to)]
    ]
    _run(moves, f"{folder} → {named}", workers)
    _add_buffers(writer, source.model)
    has_tokenizer = hf_files.copy_tokenizer(folder, out / "tokenizer")
    hf_files.keep_ids(folder, out / "tokenizer")
    tokenizer = str(named / "tokenizer") if has_tokenizer else ""
    precision = _PRECISIONS[dtypes["embedding.word_embeddings.weight"]]
    writer.finish(hf_config.settings_of(source.config, precision, tokenizer))


def to_hf(
    folder: Path,
    out: Path,
    tokenizer: Path | None = None,
    workers: int | None = None,
    shard_bytes: int = hf_writer.SHARD_BYTES,
    dtype: torch.dtype | None = None,
    rope: RopeConfig | None = None,
    dca_length: int = 0,
) -> bool:
    """A checkpoint that any layout wrote -> a folder that transformers loads.

    `tokenizer`: folder of the tokenizer, where it is not the checkpoint's own or that of its
    settings; `dtype`: as in `from_hf`; `rope`: in place of the checkpoint's; `dca_length`: tokens
    that servers with Dual Chunk Attention may take, for config_1m.json; 0 writes none. False
    where no tokenizer was found; ConfigError where the checkpoint is not whole, `out` exists, or
    the tokenizer that the settings name is gone or has more tokens than the model.
    """
    checkpoint = Checkpoint(folder)
    model, rope = checkpoint.config.model, rope or checkpoint.config.rope
    positions = checkpoint.config.data.sequence_length
    if dca_length and (fault := dca_fault(rope, dca_length)):
        raise ConfigError(f"{folder}: {LONG_FILE} cannot be written: {fault}")
    tokenizer = tokenizer or _tokenizer_of(checkpoint)
    if tokenizer:
        hf_files.check_tokenizer(tokenizer, model.vocab_size)
    with whole_folder(out) as beside:
        has_tokenizer = bool(tokenizer) and hf_files.copy_tokenizer(tokenizer, beside)
        if tokenizer and not has_tokenizer:
            raise ConfigError(f"{tokenizer}: no tokenizer.json or vocab.json; see --tokenizer")
        sink = hf_writer.Sink(beside, _hf_tensors(checkpoint, dtype), shard_bytes)
        moves = [
            (weight.rows * checkpoint.row_bytes(weight), move)
            for weight, index in in_order(model)
            for move in [partial(_send, checkpoint, weight, index, sink)]
        ]
        try:
            _run(moves, f"{folder} → {out}", workers)
        finally:
            sink.close()
        hf_files.add_chat_template(beside)
        chat_model = checkpoint.config.run.mode != "pretrain"
        if (own := folder / "tokenizer").is_dir():
            hf_files.copy_generation(own, beside)
        ids = hf_files.token_ids(beside, chat_model) | _said_ids(tokenizer, own)
        if model.head == "vocabulary":
            hf_files.write_generation(beside, chat_model, ids)
        else:
            hf_files.end_chat_template_at_the_answer(beside)
        kind = dtype or checkpoint.dtypes["embedding.word_embeddings.weight"]
        name = str(kind).removeprefix("torch.")
        hf_config.write_config(beside, model, rope, positions, name, ids)
        if dca_length:
            hf_config.write_long_config(beside, rope, dca_length)
        sync_tree(beside)
    return has_tokenizer


def _common_dtype(source: hf.HFFolder, weight: Weight) -> torch.dtype:
    """The type of all parts of a weight in all layers, which become one tensor."""
    found: dict[torch.dtype, str] = {}
    for index in weight.indices():
        for part in range(len(weight.parts)):
            name = weight.part_name(part, index)
            found.setdefault(source.tensors[name].dtype, name)
    which = ", ".join(f"{name} is {hf.NAMES[dtype]}" for dtype, name in found.items())
    if len(found) > 1:
        raise ConfigError(
            f"{source.folder}: {which}, tensors of different types, which become parts of one; "
            "--dtype bfloat16 or --dtype float32 converts them"
        )
    (dtype,) = found
    if dtype not in _PRECISIONS:
        raise ConfigError(
            f"{source.folder}: {which}; valid: BF16, F32; --dtype bfloat16 or --dtype float32 "
            "converts it"
        )
    return dtype


def _fill(source: hf.HFFolder, weight: Weight, slot: Slot, dtype: torch.dtype) -> None:
    """Copy the rows that one chunk of ours holds out of the HF tensors."""
    buffer = np.empty(BATCH_BYTES, np.uint8)
    start, end = slot.row, slot.row + slot.rows
    with slot.path.open("r+b", buffering=0) as file:
        for number, index in enumerate(slot.indices):
            for piece in weight.pieces():
                low, high = max(start, piece.row), min(end, piece.row + piece.rows)
                if low >= high:
                    continue
                stored = source.tensors[weight.part_name(piece.part, index)]
                first = (piece.part_row + low - piece.row) * weight.columns
                to = (number * slot.rows + low - start) * weight.columns * dtype.itemsize
                count = (high - low) * weight.columns
                for at, data in _read(stored, first, count, dtype, buffer):
                    hf_writer.write_exactly(file.fileno(), slot.data_start + to + at, data)


def _read(
    stored: hf.FileTensor, first: int, count: int, dtype: torch.dtype, buffer: np.ndarray
) -> Iterator[tuple[int, np.ndarray]]:
    """(bytes before it, bytes) in turns of `count` elements from the `first`, as `dtype`."""
    item = stored.dtype.itemsize
    batch = len(buffer) // item
    for done in range(0, count, batch):
        part = buffer[: min(batch, count - done) * item]
        hf.read_exactly(stored.path, stored.start + (first + done) * item, part)
        yield done * dtype.itemsize, _converted(part, stored.dtype, dtype)


def _converted(data: np.ndarray, given: torch.dtype, wanted: torch.dtype) -> np.ndarray:
    """Contiguous bytes of numbers, rounded to the nearest, ties to even, where the type changes."""
    if given == wanted:
        return data
    return torch.from_numpy(data.reshape(-1)).view(given).to(wanted).view(torch.uint8).numpy()


def _send(checkpoint: Checkpoint, weight: Weight, index: Index, sink: hf_writer.Sink) -> None:
    """Copy one tensor of ours into the HF tensors whose rows it holds."""
    row_bytes, given = checkpoint.row_bytes(weight), checkpoint.dtypes[weight.names[0]]
    batch = max(1, BATCH_BYTES // row_bytes)
    buffer = np.empty((batch, row_bytes), np.uint8)
    for piece in weight.pieces():
        name = weight.part_name(piece.part, index)
        wanted = sink.stored[name].dtype
        for first in range(0, piece.rows, batch):
            rows = buffer[: piece.rows - first]
            checkpoint.read_rows(weight, index, piece.row + first, rows)
            at = (piece.part_row + first) * weight.columns * wanted.itemsize
            sink.write(name, at, _converted(rows, given, wanted))


def _hf_tensors(
    checkpoint: Checkpoint, dtype: torch.dtype | None
) -> Iterator[tuple[str, tuple[int, ...], torch.dtype]]:
    for weight, index in in_order(checkpoint.config.model):
        for part in range(len(weight.parts)):
            kind = dtype or checkpoint.dtypes[weight.names[0]]
            yield weight.part_name(part, index), weight.part_shape(part), kind


def _add_buffers(writer: CheckpointWriter, model: ModelConfig) -> None:
    """Add our model's buffers: even expert shares, and empty extra states."""
    layers, experts = model.num_layers, model.num_experts
    if experts:
        share = np.full(experts, 1 / experts, np.float32)
        for layer in range(layers):
            start = writer.add(
                f"__{layer}_0.distcp",
                EXPERT_SHARE,
                (layers, experts),
                torch.float32,
                (layer, 0),
                (1, experts),
            )
            with (writer.folder / f"__{layer}_0.distcp").open("r+b", buffering=0) as file:
                hf_writer.write_exactly(file.fileno(), start, share)
    for module in _EXTRA_STATES + (() if experts else _EXTRA_STATES_DENSE):
        for layer in range(layers):
            key = f"decoder.layers.{module}._extra_state/shard_{layer}_{layers}"
            writer.add_object(f"__{layer}_0.distcp", key, [None])


def _tokenizer_of(checkpoint: Checkpoint) -> Path | None:
    own = checkpoint.folder / "tokenizer"
    named = checkpoint.config.data.tokenizer
    if hf_files.has_tokenizer(own):
        return own
    return tokenizer_folder(named) if named else None


def _said_ids(tokenizer: Path | None, own: Path) -> hf_config.Ids:
    """Ids of the config.json beside the tokenizer, else of the model before from-hf."""
    return (hf_files.config_ids(tokenizer) if tokenizer else {}) or hf_files.config_ids(own)


def _run(moves: list[Move], title: str, workers: int | None) -> None:
    """Run all moves, several at a time, with a bar; the first error stops them and is raised."""
    workers, total = workers or min(8, cores()), sum(count for count, _ in moves)
    with Bar(title, total, in_megabytes) as bar, ThreadPoolExecutor(workers) as pool:
        futures = {pool.submit(move): count for count, move in moves}
        try:
            for future in as_completed(futures):
                future.result()
                bar.advance(futures[future])
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
