"""A classifier as an ONNX file, written byte by byte: logits are weights times the mean token id.

write_classifier(folder, [0.5, -0.5], {"0": "high", "1": "low"})
"""

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

_FLOAT, _INT64 = 1, 7  # onnx.TensorProto.DataType
WORDS = {"[UNK]": 0, "bad": 2, "good": 6}


def write_classifier(
    folder: Path,
    weights: Sequence[float],
    labels: Mapping[str, str] | None = None,
    input_name: str = "input_ids",
    **config: object,
) -> Path:
    """model.onnx, tokenizer.json and config.json in a folder that is made."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(_model(weights, input_name))
    tokenizer = Tokenizer(WordLevel(WORDS, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"id2label": labels or {}, **config}))
    return folder


def _model(weights: Sequence[float], input_name: str) -> bytes:
    """A ModelProto (onnx.proto3): Cast, ReduceMean over tokens, MatMul."""
    to_float = _field(1, "to") + _varint(3, _FLOAT) + _varint(20, 2)
    axes = _field(1, "axes") + _varint(8, 1) + _varint(20, 7)
    nodes = (
        _node("Cast", [input_name], "floats", to_float),
        _node("ReduceMean", ["floats"], "mean", axes),
        _node("MatMul", ["mean", "weights"], "logits"),
    )
    data = struct.pack(f"<{len(weights)}f", *weights)
    shape = _varint(1, 1) + _varint(1, len(weights))
    initial = shape + _varint(2, _FLOAT) + _field(8, "weights") + _field(9, data)
    graph = b"".join(_field(1, node) for node in nodes) + _field(2, "graph")
    graph += _field(5, initial) + _field(11, _value(input_name, _INT64, ["rows", "tokens"]))
    graph += _field(12, _value("logits", _FLOAT, ["rows", "labels"]))
    return _varint(1, 8) + _field(7, graph) + _field(8, _field(1, "") + _varint(2, 13))


def _node(kind: str, inputs: Sequence[str], output: str, attribute: bytes = b"") -> bytes:
    node = b"".join(_field(1, name) for name in inputs) + _field(2, output) + _field(4, kind)
    return node + (_field(5, attribute) if attribute else b"")


def _value(name: str, kind: int, dimensions: Sequence[str]) -> bytes:
    shape = b"".join(_field(1, _field(2, dimension)) for dimension in dimensions)
    return _field(1, name) + _field(2, _field(1, _varint(1, kind) + _field(2, shape)))


def _field(number: int, content: str | bytes) -> bytes:
    """A field of bytes: protobuf's wire type 2."""
    data = content.encode() if isinstance(content, str) else content
    return _number(number << 3 | 2) + _number(len(data)) + data


def _varint(number: int, value: int) -> bytes:
    return _number(number << 3) + _number(value)


def _number(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
