"""Convert a model of any size in constant memory: `from_hf(folder, out)`, `to_hf(checkpoint, out)`.

A conversion first reads both tables, checks that they fit, and lays out the files it will write.
What is left are independent moves of bytes, which threads do: they wait for the kernel, not for
Python. The result is written under a name that nothing reads and gets its real one at the end.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from megatron_qwen3.config import ConfigError
from megatron_qwen3.convert import hf, hf_config
from megatron_qwen3.convert.dcp import BATCH_BYTES, EXPERT_SHARE, Checkpoint
from megatron_qwen3.convert.dcp_writer import Slot, Writer
from megatron_qwen3.convert.mapping import Index, Weight, in_order, weights
from megatron_qwen3.settings import ModelConfig

_PRECISIONS = {torch.bfloat16: "bf16", torch.float32: "fp32"}
# Modules of megatron-core that keep an empty extra state beside their weight; its loader asks.
_EXTRA_STATES = ("self_attention.linear_qkv", "self_attention.linear_proj")
_EXTRA_STATES_DENSE = ("mlp.linear_fc1", "mlp.linear_fc2")

Move = tuple[int, Callable[[], None]]  # bytes, and what moves them


def from_hf(folder: Path, out: Path, workers: int | None = None) -> None:
    """A folder of Hugging Face's format -> a checkpoint that a run can start from.

    ConfigError where the folder is not a whole Qwen3, or `out` exists.
    """
    source = hf.Source(folder)
    dtypes = {weight.names[0]: _dtype(source, weight) for weight in weights(source.model)}
    precision = _PRECISIONS[dtypes["embedding.word_embeddings.weight"]]
    with _written_beside(out) as partial_out:
        writer = Writer(partial_out)
        moves = [
            (slot.rows * len(slot.indices) * _row_bytes(weight, dtype), move)
            for weight in weights(source.model)
            for dtype in [dtypes[weight.names[0]]]
            for slot in writer.add_weight(weight, dtype)
            for move in [partial(_fill, source, weight, slot, _row_bytes(weight, dtype))]
        ]
        _run(moves, f"{folder} → {out}", workers)
        _add_buffers(writer, source.model)
        has_tokenizer = hf_config.copy_tokenizer(folder, partial_out / "tokenizer")
        tokenizer = str(out / "tokenizer") if has_tokenizer else ""
        settings = hf_config.settings_of(source.config, source.model, precision, tokenizer)
        writer.finish(settings)


def to_hf(
    folder: Path,
    out: Path,
    tokenizer: Path | None = None,
    workers: int | None = None,
    shard_bytes: int = hf.SHARD_BYTES,
) -> bool:
    """A checkpoint that any layout wrote -> a folder that transformers loads.

    `tokenizer`: folder of the tokenizer, where it is not the checkpoint's own or that of its
    settings. False where no tokenizer was found; ConfigError where the checkpoint is not whole,
    `out` exists, or the tokenizer that the settings name is gone.
    """
    checkpoint = Checkpoint(folder)
    model, positions = checkpoint.config.model, checkpoint.config.data.sequence_length
    tokenizer = tokenizer or _tokenizer_of(checkpoint)
    with _written_beside(out) as partial_out:
        has_tokenizer = bool(tokenizer) and hf_config.copy_tokenizer(tokenizer, partial_out)
        if tokenizer and not has_tokenizer:
            raise ConfigError(f"{tokenizer}: no tokenizer.json or vocab.json; see --tokenizer")
        sink = hf.Sink(partial_out, _hf_tensors(checkpoint), shard_bytes)
        moves = [
            (weight.rows * checkpoint.row_bytes(weight), move)
            for weight, index in in_order(model)
            for move in [partial(_send, checkpoint, weight, index, sink)]
        ]
        try:
            _run(moves, f"{folder} → {out}", workers)
        finally:
            sink.close()
        hf_config.add_chat_template(partial_out)
        chat_model = checkpoint.config.run.mode != "pretrain"
        ids = hf_config.token_ids(partial_out, chat_model)
        hf_config.write_generation(partial_out, chat_model, ids)
        dtype = str(checkpoint.dtypes["embedding.word_embeddings.weight"]).removeprefix("torch.")
        hf_config.write_config(partial_out, model, positions, dtype, ids)
    return has_tokenizer


def _row_bytes(weight: Weight, dtype: torch.dtype) -> int:
    return weight.columns * dtype.itemsize


def _dtype(source: hf.Source, weight: Weight) -> torch.dtype:
    """That of all parts of a weight in all layers: they become one tensor."""
    found = {
        source.tensors[name].dtype: name
        for index in weight.indices()
        for part in range(len(weight.parts))
        for name in [weight.part_name(part, index)]
    }
    if len(found) > 1:
        raise ConfigError(f"{source.folder}: of different types: " + ", ".join(found.values()))
    return next(iter(found))


def _fill(source: hf.Source, weight: Weight, slot: Slot, row_bytes: int) -> None:
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
                at = stored.start + (piece.part_row + low - piece.row) * row_bytes
                to = slot.data_start + (number * slot.rows + low - start) * row_bytes
                _copy(stored.path, at, file.fileno(), to, (high - low) * row_bytes, buffer)


def _copy(path: Path, at: int, target: int, to: int, count: int, buffer: np.ndarray) -> None:
    for done in range(0, count, len(buffer)):
        part = buffer[: min(len(buffer), count - done)]
        hf.read_exactly(path, at + done, part)
        hf.write_exactly(target, to + done, part)


def _send(checkpoint: Checkpoint, weight: Weight, index: Index, sink: hf.Sink) -> None:
    """Copy one tensor of ours into the HF tensors whose rows it holds."""
    row_bytes = checkpoint.row_bytes(weight)
    batch = max(1, BATCH_BYTES // row_bytes)
    buffer = np.empty((batch, row_bytes), np.uint8)
    for piece in weight.pieces():
        name = weight.part_name(piece.part, index)
        for first in range(0, piece.rows, batch):
            rows = buffer[: piece.rows - first]
            checkpoint.read_rows(weight, index, piece.row + first, rows)
            sink.write(name, (piece.part_row + first) * row_bytes, rows)


def _hf_tensors(checkpoint: Checkpoint) -> Iterator[tuple[str, tuple[int, ...], torch.dtype]]:
    for weight, index in in_order(checkpoint.config.model):
        for part in range(len(weight.parts)):
            dtype = checkpoint.dtypes[weight.names[0]]
            yield weight.part_name(part, index), weight.part_shape(part), dtype


def _add_buffers(writer: Writer, model: ModelConfig) -> None:
    """What our model keeps beside weights: even expert shares, and empty extra states."""
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
                hf.write_exactly(file.fileno(), start, share)
    for module in _EXTRA_STATES + (() if experts else _EXTRA_STATES_DENSE):
        for layer in range(layers):
            key = f"decoder.layers.{module}._extra_state/shard_{layer}_{layers}"
            writer.add_object(f"__{layer}_0.distcp", key, [None])


def _tokenizer_of(checkpoint: Checkpoint) -> Path | None:
    own = checkpoint.folder / "tokenizer"
    named = checkpoint.config.data.tokenizer
    return own if own.is_dir() else Path(named) if named else None


@contextmanager
def _written_beside(out: Path) -> Iterator[Path]:
    """A folder to write to, which becomes `out` when all went well, and else goes away."""
    if out.exists():
        raise ConfigError(f"{out} exists; remove it, or choose another name")
    beside = out.with_name(f"{out.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        yield beside
        beside.rename(out)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def _run(moves: list[Move], title: str, workers: int | None) -> None:
    """All moves, several at a time, with a bar; the first error stops them and is raised."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    workers = workers or min(8, os.cpu_count() or 1)
    with (
        Progress(*columns, console=console, disable=not console.is_terminal) as bar,
        ThreadPoolExecutor(workers) as pool,
    ):
        task = bar.add_task(title, total=sum(count for count, _ in moves))
        futures = {pool.submit(move): count for count, move in moves}
        for future, count in futures.items():
            future.add_done_callback(lambda _, count=count: bar.advance(task, count))
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
