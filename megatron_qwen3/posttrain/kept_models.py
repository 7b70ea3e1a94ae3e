"""Refuses to resume a run with another teacher, reference or reward model than it began with.

    check(config)               # before any rank starts
    write(config)               # once, on the first rank, when the run begins

Resuming with another teacher would change the objective, and no metric would show it. So
`models.json` in the run folder keeps a digest of each model's weights, except of models on another
machine, which are unknown. No torch here.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from megatron_qwen3 import launcher
from megatron_qwen3.generate.load import ModelSource
from megatron_qwen3.settings import Config, ConfigError
from megatron_qwen3.storage.folder import checkpoints
from megatron_qwen3.storage.whole import write_whole

FILE = "models.json"
_FILES = ("*.safetensors", "*.distcp", ".metadata", "config.json")
_PIECES, _PIECE_BYTES = 16, 4096  # how much of each file of weights is read
_SMALL_BYTES = 1 << 20  # smaller files are read whole


def check(config: Config) -> None:
    """ConfigError where a run would resume with another model than it began with. Only the first
    rank checks, since all would read the same pieces of the same files."""
    file = config.run_dir / FILE
    if launcher.rank() or not (checkpoints(config.run_dir) and file.is_file()):
        return
    try:
        before = dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{file}: cannot be read ({error}); remove it") from None
    for name, path in _named(config):
        if name in before and before[name] != _digest_of(name, path):
            raise ConfigError(
                f"{name} = {path} has other weights than the model that {config.run_dir} began "
                "with, which a run keeps: set that one; with another run.name, "
                f'checkpoint.init_from = "{config.run_dir}" goes on from its weights with this one'
            )


def write(config: Config) -> None:
    """Record the digests of the models that this run uses."""
    digests = {name: _digest_of(name, path) for name, path in _named(config)}
    file = config.run_dir / FILE
    if digests or file.exists():  # an earlier run in this folder may have left one
        write_whole(file, [json.dumps(digests, indent=1).encode()])


def _digest_of(name: str, path: str) -> str:
    try:
        return digest(ModelSource(Path(path)).path)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None


def digest(folder: Path) -> str:
    """Digest of a model folder, ours or Hugging Face's: its small files, and pieces of the large
    ones. Training changes nearly every weight, so pieces suffice; a copy has the same digest."""
    found = hashlib.sha256()
    for path in sorted({path for form in _FILES for path in folder.glob(form)}):
        size = path.stat().st_size
        found.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            if size <= _SMALL_BYTES:
                found.update(file.read())
                continue
            for piece in range(_PIECES):
                file.seek(piece * (size - _PIECE_BYTES) // (_PIECES - 1))
                found.update(file.read(_PIECE_BYTES))
    return found.hexdigest()


def _named(config: Config) -> Iterator[tuple[str, str]]:
    """(setting, path) of each model that the objective uses."""
    mode, rl = config.run.mode, config.rl
    if mode == "sft" and config.sft.teacher.path:
        yield "sft.teacher.path", config.sft.teacher.path
    if mode == "distill" and config.distill.teacher.path:
        yield "distill.teacher.path", config.distill.teacher.path
    if mode == "rl" and rl.kl.coefficient:
        yield "rl.kl.reference", rl.kl.reference or config.checkpoint.init_from
    if mode == "rl" and rl.judge.model:
        yield "rl.judge.model", rl.judge.model
