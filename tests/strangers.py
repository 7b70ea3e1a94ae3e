"""Checkpoints that a stranger made to run code, or to lie: `ATTACKS[name](checkpoint, mark)`.

Each changes a checkpoint of ours so that something made the file `mark` when it was read, by torch,
by megatron-core, by Transformer Engine, or by a check that looks at other bytes than the loader.
The payload does nothing else.
"""

import io
import pickle
import struct
from pathlib import Path

import torch
import zstandard
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, MetadataIndex
from torch.distributed.checkpoint.planner import WriteItemType

from megatron_qwen3.convert.mapping import EXPERT_SHARE
from megatron_qwen3.storage import manifest


class Malice:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def table_of(checkpoint):
    """The .metadata of a checkpoint of our own making, as torch reads it."""
    return pickle.loads((checkpoint / ".metadata").read_bytes())


def write_table(checkpoint, metadata):
    (checkpoint / ".metadata").write_bytes(pickle.dumps(metadata))
    seal(checkpoint)


def seal(checkpoint):
    """A manifest that fits, as a stranger's would."""
    files = [p for p in checkpoint.rglob("*") if p.is_file() and p.name != manifest.FILE_NAME]
    manifest.write(checkpoint, {str(p.relative_to(checkpoint)): manifest.seal(p) for p in files})


def saved(value, **options):
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def objects_of(metadata):
    entries = metadata.state_dict_metadata
    return [i for i in metadata.storage_data if type(entries[i.fqn]) is BytesStorageMetadata]


def added(checkpoint, content):
    """The place of bytes that are put into a file of their own."""
    (checkpoint / "__99_0.distcp").write_bytes(content)
    return _StorageInfo("__99_0.distcp", 0, len(content))


def put_object(checkpoint, content, **changes):
    """Let the first object of a checkpoint be these bytes; `changes` are fields of its place."""
    metadata = table_of(checkpoint)
    index = objects_of(metadata)[0]
    metadata.storage_data[index] = added(checkpoint, content)
    vars(metadata.storage_data[index]).update(changes)
    write_table(checkpoint, metadata)


def two_faced(mark):
    """Bytes that are [None] as they are and Malice when decompressed."""
    magic = 0x184D2A55  # 'U' '*': to a pickle, a string of the next 42 bytes
    harmless = b"." * 36 + saved([None], _use_new_zipfile_serialization=False)
    harmless = harmless.ljust(0x1000, b"\0")  # a length that is ASCII
    frame = struct.pack("<II", magic, len(harmless)) + harmless  # a decompressor skips it
    return frame + zstandard.ZstdCompressor().compress(saved([Malice(mark)]))


def decoded_later(checkpoint, mark):
    put_object(checkpoint, two_faced(mark), transform_descriptors=("stream.zstd/1",))


class TwoKinds:
    """A pickle of an entry of the table whose class is an enumeration: of a tensor's fields."""

    def __init__(self, fields):
        self.fields = fields

    def __reduce__(self):
        return WriteItemType, (WriteItemType.SHARD.value,), self.fields


def other_bases(checkpoint, mark):
    """An entry whose class becomes, by BUILD, that of a tensor and of an object."""
    metadata = table_of(checkpoint)
    place = added(checkpoint, saved(Malice(mark)))
    metadata.storage_data[MetadataIndex(EXPERT_SHARE)] = place
    entries = metadata.state_dict_metadata
    entries[EXPERT_SHARE] = TwoKinds(vars(entries[EXPERT_SHARE]) | {"chunks": []})
    names = ("planner\nWriteItemType", "metadata\nTensorStorageMetadata")
    changed, *bases = (
        f"ctorch.distributed.checkpoint.{name}\n".encode()
        for name in (*names, "metadata\nBytesStorageMetadata")
    )
    # (None, {"__bases__": (both,)}) is set on the class itself
    change = changed + b"N}U\x09__bases__" + b"".join(bases) + b"\x86s\x86b0"
    (checkpoint / ".metadata").write_bytes(b"\x80\x02" + change + pickle.dumps(metadata))
    seal(checkpoint)


def plain_object(checkpoint, mark):
    put_object(checkpoint, saved([Malice(mark)]))


def legacy_object(checkpoint, mark):
    put_object(checkpoint, saved([Malice(mark)], _use_new_zipfile_serialization=False))


def the_table(checkpoint, mark):
    (checkpoint / ".metadata").write_bytes(pickle.dumps(Malice(mark)))
    seal(checkpoint)


def in_the_table(checkpoint, mark):
    metadata = table_of(checkpoint)
    metadata.planner_data = Malice(mark)
    write_table(checkpoint, metadata)


def common_file(checkpoint, mark):
    torch.save({"step": Malice(mark)}, checkpoint / "common.pt")
    seal(checkpoint)


def engine_state(checkpoint, mark):
    """Transformer Engine unpickles the bytes of this tensor; torch loads it as weights only."""
    data = bytearray(pickle.dumps(Malice(mark)))
    put_object(checkpoint, saved([torch.frombuffer(data, dtype=torch.uint8)]))


def in_a_weight(checkpoint, mark):
    metadata = table_of(checkpoint)
    index = next(i for i in metadata.storage_data if "final_layernorm" in i.fqn)
    metadata.storage_data[index] = added(checkpoint, saved(Malice(mark)))
    write_table(checkpoint, metadata)


ATTACKS = {
    name.replace("_", " "): function
    for name, function in list(globals().items())
    if name
    in (
        *("decoded_later", "other_bases", "plain_object", "legacy_object", "the_table"),
        *("in_the_table", "common_file", "engine_state", "in_a_weight"),
    )
}
