"""Between Hugging Face's format of Qwen3 and ours: the table, both formats, streams and the loader.

All but `verify.py` and `reference.py` is about files: no model is built, so that training, which
starts from either format, may ask.
"""
