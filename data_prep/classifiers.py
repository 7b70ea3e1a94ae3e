"""Runs classifiers that users bring: fastText's files, and ONNX files of transformers' encoders.

    model = classifier("quality.bin")        # or a folder with model.onnx, or "glotlid"
    model.best(text)                         # ("high", 0.93)
    model.outputs(text)                      # {"high": 0.93, "low": 0.07}, or one number

An ONNX file stands beside its tokenizer.json and config.json, as `optimum-cli export onnx` writes
them: labels are config.json's, and of a text as many tokens are read as the model takes. Models are
loaded at their first use in each process, and read on one thread: processes share the cores.
"""

import json
import os
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from megatron_qwen3.config import ConfigError

GLOTLID = "glotlid"
_GLOTLID_REPO, _GLOTLID_FILE = "cis-lmu/glotlid", "model.bin"
_ONNX = ".onnx"
_ONNX_PLACES = ("model.onnx", "onnx/model.onnx")
_TOKENIZER, _CONFIG = "tokenizer.json", "config.json"
_MOST_TOKENS = 512  # where config.json does not say how many positions there are
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class Classifier(Protocol):
    """outputs: the probability of each label; of a model that gives one number, that number."""

    def best(self, text: str) -> tuple[str, float]: ...

    def outputs(self, text: str) -> dict[str, float]: ...


def classifier(name: str | os.PathLike[str]) -> Classifier:
    """The model of a file, a folder, or the word `glotlid`. ConfigError where there is none."""
    files = model_files(name)
    return OnnxModel(files[0]) if files[0].suffix == _ONNX else FastTextModel(files[0])


def model_files(name: str | os.PathLike[str]) -> list[Path]:
    """The model's own file, and after it those that belong to it."""
    path = Path(name)
    if str(name) == GLOTLID and not path.exists():
        return [_glotlid()]
    if path.is_dir():
        found = [path / place for place in _ONNX_PLACES if (path / place).is_file()]
        if not found:
            raise ConfigError(f"{path} holds no {' or '.join(_ONNX_PLACES)}")
        path = found[0]
    elif not path.is_file():
        raise ConfigError(f"{path} does not exist; a file of fastText or ONNX is needed")
    if path.suffix != _ONNX:
        return [path]
    return [path, *(_beside(path, other) for other in (_TOKENIZER, _CONFIG))]


def _beside(path: Path, name: str) -> Path:
    """A file of the model's folder, or of the one above, where an export keeps it."""
    for folder in (path.parent, path.parent.parent):
        if (folder / name).is_file():
            return folder / name
    raise ConfigError(f"{path} needs {name} beside it, as an export of transformers has it")


def _glotlid() -> Path:
    """GlotLID's file in the cache of Hugging Face's tools."""
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        raise needs("finding GlotLID's file", "huggingface_hub") from None
    found = try_to_load_from_cache(_GLOTLID_REPO, _GLOTLID_FILE)
    if isinstance(found, str):
        return Path(found)
    raise ConfigError(
        f"GlotLID's file (1.7 GB) is not on this machine: hf download {_GLOTLID_REPO} "
        f"{_GLOTLID_FILE}; or give its path in place of the word {GLOTLID}"
    )


class FastTextModel:
    """A fastText classifier."""

    def __init__(self, file: str | os.PathLike[str]) -> None:
        self._file = Path(file)
        if not self._file.is_file():
            raise ConfigError(f"{file} does not exist; a fastText model file is needed")

    def best(self, text: str) -> tuple[str, float]:
        """The most probable label, without `__label__`, and its probability."""
        labels, probabilities = self._model.predict(_one_line(text), k=1)
        return (
            (labels[0].removeprefix("__label__"), float(probabilities[0])) if labels else ("", 0.0)
        )

    def outputs(self, text: str) -> dict[str, float]:
        """The probability of each label."""
        labels, probabilities = self._model.predict(_one_line(text), k=-1)
        names = (label.removeprefix("__label__") for label in labels)
        return dict(zip(names, map(float, probabilities), strict=True))

    @cached_property
    def _model(self) -> Any:
        try:
            import fasttext
        except ImportError:
            raise needs("reading a fastText model", "fasttext-predict") from None
        try:
            return fasttext.load_model(str(self._file))
        except ValueError as error:
            raise ConfigError(f"{self._file} is not a fastText model: {error}") from None

    def __getstate__(self) -> dict[str, Any]:
        return {"_file": self._file}


class OnnxModel:
    """An encoder with a head for sequences, by onnxruntime."""

    def __init__(self, file: Path) -> None:
        self._files = model_files(file)

    def best(self, text: str) -> tuple[str, float]:
        """The most probable label, and its probability."""
        outputs = self.outputs(text)
        label = max(outputs, key=lambda name: outputs[name])
        return label, outputs[label]

    def outputs(self, text: str) -> dict[str, float]:
        """The probability of each label, or the one number that the model gives."""
        logits = self._logits(text)
        if len(logits) == 1:
            return {self._labels(1)[0]: float(logits[0])}
        if self._config.get("problem_type") == "multi_label_classification":
            shares = 1 / (1 + np.exp(-logits))
        else:
            powers = np.exp(logits - logits.max())
            shares = powers / powers.sum()
        return dict(zip(self._labels(len(logits)), map(float, shares), strict=True))

    def _labels(self, count: int) -> list[str]:
        names = self._config.get("id2label") or {}
        return [str(names.get(str(k), f"LABEL_{k}")) for k in range(count)]

    def _logits(self, text: str) -> Any:
        encoded = self._tokenizer.encode(text)
        given = {
            "input_ids": encoded.ids,
            "attention_mask": encoded.attention_mask,
            "token_type_ids": encoded.type_ids,
        }
        wanted = [one.name for one in self._session.get_inputs()]
        if unknown := [name for name in wanted if name not in _INPUTS]:
            raise ConfigError(
                f"{self._files[0]} asks for {', '.join(unknown)}; valid: {', '.join(_INPUTS)}"
            )
        arrays = {name: np.array([given[name]], np.int64) for name in wanted}
        return np.asarray(self._session.run(None, arrays)[0], np.float64).reshape(-1)

    @cached_property
    def _session(self) -> Any:
        try:
            import onnxruntime
        except ImportError:
            raise needs("reading an ONNX model", "onnxruntime") from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        try:
            return onnxruntime.InferenceSession(
                str(self._files[0]), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # of its own kinds, for whatever is wrong with a file
            first = str(error).split("\n")[0]
            raise ConfigError(f"{self._files[0]} is not an ONNX model: {first}") from None

    @cached_property
    def _tokenizer(self) -> Any:
        from data_prep.tokenizer import load

        tokenizer = load(self._files[1])
        positions = self._config.get("max_position_embeddings")
        most = positions if isinstance(positions, int) and positions > 0 else _MOST_TOKENS
        tokenizer.enable_truncation(min(most, _MOST_TOKENS))
        tokenizer.no_padding()
        return tokenizer

    @cached_property
    def _config(self) -> dict[str, Any]:
        try:
            content = json.loads(self._files[2].read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{self._files[2]} is damaged: {error}") from None
        if not isinstance(content, dict):
            raise ConfigError(f"{self._files[2]} holds no object of settings")
        return content

    def __getstate__(self) -> dict[str, Any]:
        return {"_files": self._files}


def needs(what: str, package: str) -> ConfigError:
    """The error for a package that is not installed."""
    return ConfigError(
        f"{what} needs {package}, which is not installed: python -m pip install {package}"
    )


def _one_line(text: str) -> str:
    return text.replace("\n", " ")
