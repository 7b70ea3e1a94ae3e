"""Trains on one CPU rank, for GPUs to be compared with: python tests/gpu/on_cpu.py MODEL FOLDER

FOLDER/runs has the runs, and the path of a checkpoint with the weights that they began with.

A process of its own, started with CUDA_VISIBLE_DEVICES="": megatron-core is redirected to the CPU
where a process sees no GPU, once and for all of its modules.
"""

import pickle
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

from layouts import MODELS, PLAIN, SHARDED, saved_fresh, train

if __name__ == "__main__":
    model, folder = sys.argv[1:]
    settings = (*MODELS[model], "train.micro_batch=4")
    runs = train((*settings, *PLAIN), (*settings, *SHARDED))
    fresh = saved_fresh(folder, *settings)
    Path(folder, "runs").write_bytes(pickle.dumps((runs, fresh)))
