"""Qwen3 training on megatron-core: from raw text to an aligned model in Hugging Face format.

Start reading at `train.py` (the command line) and `settings.py` (everything that can be set).
This file imports nothing, so that reading a configuration never loads torch.
"""

__version__ = "0.1.0"
