"""The Qwen3 model on megatron-core, and the arithmetic of its size (`flops.py`)."""
