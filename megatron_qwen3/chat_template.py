"""Writes Qwen3's chat template, which lies beside this module, where other programs look for it.

    write_chat_template("runs/export")  # into a tokenizer folder of Hugging Face's form

`chat.py` renders the same; a test holds the two together.
"""

import json
import os
from pathlib import Path
from typing import Final

from megatron_qwen3.chat_check import ChatError
from megatron_qwen3.storage.whole import write_whole

FILE: Final = Path(__file__).with_suffix(".jinja")


def write_chat_template(folder: str | os.PathLike[str]) -> None:
    """Put the template into a tokenizer folder, so that transformers and servers render the same.

    transformers reads chat_template.jinja first, other programs read tokenizer_config.json.
    """
    template = FILE.read_text(encoding="utf-8")
    config_file = Path(folder) / "tokenizer_config.json"
    if not config_file.exists():
        raise ChatError(f"{folder} is not a tokenizer folder: it has no tokenizer_config.json")
    config = json.loads(config_file.read_text(encoding="utf-8")) | {"chat_template": template}
    write_whole(Path(folder) / FILE.name, [template.encode()])
    write_whole(config_file, [json.dumps(config, indent=2, ensure_ascii=False).encode(), b"\n"])
