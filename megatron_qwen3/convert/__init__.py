"""Converts between Hugging Face's format of Qwen3 and ours: table, formats, streams, loader.

All modules except `verify.py` and `reference.py` work on files and build no model, so that
training, which starts from either format, may import them.
"""
