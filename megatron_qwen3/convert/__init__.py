"""Between Hugging Face's format of Qwen3 and ours: the table, the two formats, the streams."""
