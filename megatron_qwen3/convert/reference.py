"""Computes logits by transformers, in a process of its own: `logits(folder, ids_BS, dtype)`.

The reference must not depend on our changes to torch (`cpu/redirect.py`), and its memory is freed
with its process. Run as a program, this module is that process. The folder is not trusted: the
process imports nothing from it or from the caller's folder, downloads nothing, and tells
transformers to run no code that the folder contains or names.
"""

import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from megatron_qwen3.config import ConfigError
from megatron_qwen3.processes import isolated
from megatron_qwen3.shown import shown

_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "USE_HUB_KERNELS": "0"}


def logits(folder: Path, ids_BS: Tensor, dtype: str) -> Tensor:
    """Float32 [B, S, V] of the model in `folder`, computed in `dtype` ("float32", "bfloat16").

    [B, S, 1] for a reward model, the number of each position.
    ConfigError with the last words of transformers where it cannot load the folder,
    ModuleNotFoundError where it is not installed.
    """
    if find_spec("transformers") is None:
        raise ModuleNotFoundError("transformers is not installed", name="transformers")
    with tempfile.TemporaryDirectory() as temporary:
        ids_file, logits_file = Path(temporary, "ids.npy"), Path(temporary, "logits.npy")
        np.save(ids_file, ids_BS.numpy())
        command = [sys.executable, "-P", "-m", __name__, folder.resolve(), ids_file, logits_file]
        process = subprocess.run(
            [*map(str, command), dtype],
            env=isolated() | _OFFLINE,
            cwd=temporary,
            capture_output=True,
            text=True,
        )
        if process.returncode:
            last = process.stderr.strip().rpartition("\n")[2]
            raise ConfigError(f"{shown(folder)}: transformers cannot run it: {shown(last)}")
        return torch.from_numpy(np.load(logits_file, allow_pickle=False))


@torch.no_grad()
def _main(folder: str, ids_file: str, logits_file: str, dtype: str) -> None:
    import transformers

    device = "cuda" if torch.cuda.is_available() else "cpu"
    options = {"local_files_only": True, "trust_remote_code": False}
    architectures = transformers.AutoConfig.from_pretrained(folder, **options).architectures
    is_scorer = any("ForSequenceClassification" in name for name in architectures or ())
    kind = "AutoModelForSequenceClassification" if is_scorer else "AutoModelForCausalLM"
    model = getattr(transformers, kind).from_pretrained(
        folder,
        dtype=getattr(torch, dtype),
        use_safetensors=True,
        attn_implementation="sdpa",
        **options,
    )
    model = model.eval().to(device)
    ids_BS = torch.from_numpy(np.load(ids_file, allow_pickle=False)).to(device)
    if is_scorer:  # its own forward pass keeps only the last position
        logits_BSV = model.score(model.model(ids_BS).last_hidden_state)
    else:
        logits_BSV = model(ids_BS).logits
    np.save(logits_file, logits_BSV.float().cpu().numpy())


if __name__ == "__main__":
    _main(*sys.argv[1:])
