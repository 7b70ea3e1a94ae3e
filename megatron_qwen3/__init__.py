"""Qwen3 training on megatron-core: from raw text to an aligned model in Hugging Face format.

Start reading at `megatron_qwen3/train.py` (the command line) and `megatron_qwen3/config.py` (every setting).
This file imports nothing, so that reading a configuration never loads torch.
"""

__version__ = "0.1.0"
