"""Logits of transformers' model, in a process of its own: `logits(folder, ids_BS, dtype)`.

The reference must not depend on what our process did to torch (`parallel/cpu.py`), and its memory
goes away with it. Run as a program, this module is that process.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from megatron_qwen3.config import ConfigError


def logits(folder: Path, ids_BS: Tensor, dtype: str) -> Tensor:
    """Float32 [B, S, V] of the model in `folder`, computed in `dtype` ("float32", "bfloat16").

    ConfigError with the last words of transformers where it cannot load the folder.
    """
    with tempfile.TemporaryDirectory() as temporary:
        ids_file, logits_file = Path(temporary, "ids.npy"), Path(temporary, "logits.npy")
        np.save(ids_file, ids_BS.numpy())
        command = [sys.executable, "-m", __name__, folder, ids_file, logits_file, dtype]
        process = subprocess.run(
            [str(word) for word in command],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
        )
        if process.returncode:
            last = process.stderr.strip().rpartition("\n")[2]
            raise ConfigError(f"{folder}: transformers cannot run it: {last}")
        return torch.from_numpy(np.load(logits_file))


@torch.no_grad()
def _main(folder: str, ids_file: str, logits_file: str, dtype: str) -> None:
    import transformers

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    ids_BS = torch.from_numpy(np.load(ids_file)).to(device)
    logits_BSV = model.eval().to(device)(ids_BS).logits
    np.save(logits_file, logits_BSV.float().cpu().numpy())


if __name__ == "__main__":
    _main(*sys.argv[1:])
