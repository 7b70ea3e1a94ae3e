"""The small files beside Hugging Face's config.json: tokenizer, ids, sampling.

    copy_tokenizer(source, target)      # copies the tokenizer's files, never code
    end_ids(folder)                     # every id that ends a text
    write_generation(folder, …)         # Qwen3's sampling

`hf_config.py` has config.json itself. A folder's entries on ids are kept beside the tokenizer of a
checkpoint made from it, so that the way back gives the same.
"""

import shutil
from pathlib import Path
from typing import Any, Final

from megatron_qwen3.chat_template import write_chat_template
from megatron_qwen3.config import ConfigError
from megatron_qwen3.convert.foreign import MAY_ASK, read_json
from megatron_qwen3.convert.hf_config import Ids, write_json
from megatron_qwen3.storage.inside import inside
from megatron_qwen3.storage.whole import write_whole

GENERATION_FILE: Final = "generation_config.json"
IDS_FILE: Final = "token_ids.json"  # in a checkpoint's tokenizer folder: ids of config.json
TOKENIZER_FILES: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
TEMPLATE_FILE: Final = TOKENIZER_FILES[-1]
# Text before and after a chat template.
_CUT: Final = (
    "{%- set conversation -%}",
    "{%- endset -%}\n"
    "{{- conversation[:-1] if conversation.endswith('<|im_end|>\\n') else conversation -}}\n",
)


def copy_tokenizer(source: Path, target: Path) -> bool:
    """Copy a tokenizer's files, never code; False where there are none."""
    source = _folder(source)
    if not has_tokenizer(source):
        return False
    target.mkdir(exist_ok=True)
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            _copy(source, target, name)
    copy_generation(source, target)
    return True


def copy_generation(source: Path, target: Path) -> None:
    """Copy generation_config.json, unless the target has one already."""
    source = _folder(source)
    if (source / GENERATION_FILE).is_file() and not (target / GENERATION_FILE).exists():
        target.mkdir(exist_ok=True)
        _copy(source, target, GENERATION_FILE)


def _copy(source: Path, target: Path, name: str) -> None:
    """Copy a file that others may get: no code, and none from outside its folder."""
    if name in MAY_ASK:
        read_json(source / name, "no table")
    shutil.copyfile(inside(source, name), target / name)


def has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json"))


def check_tokenizer(folder: Path, rows: int) -> None:
    """ConfigError where a folder's tokenizer has an id without a row in the embedding."""
    folder = _folder(folder)
    if (size := _vocabulary(folder)) > rows:
        raise ConfigError(
            f"{folder}: its tokenizer has {size:,} tokens, more than the model's vocab_size = "
            f"{rows:,}; valid: the tokenizer that the model was trained with"
        )


def _vocabulary(folder: Path) -> int:
    """One more than the largest id of any file that gives a token one; 0 without such a file."""
    spec, config = _table(folder, "tokenizer.json"), _table(folder, "tokenizer_config.json")
    model = spec.get("model")
    known = model.get("vocab") if isinstance(model, dict) else None
    ids: list[Any] = list(range(len(known))) if isinstance(known, list) else []
    for names in (known, _table(folder, "vocab.json"), _table(folder, "added_tokens.json")):
        ids += names.values() if isinstance(names, dict) else ()
    ids += _added_tokens(folder).values()
    more = config.get("added_tokens_decoder")
    ids += (int(n) for n in more if n.isascii() and n.isdigit()) if isinstance(more, dict) else ()
    return 1 + max((number for number in ids if type(number) is int), default=-1)


def add_chat_template(folder: Path) -> None:
    """Give a tokenizer that has Qwen3's turns, but no template, the one that we train with."""
    config_file = folder / "tokenizer_config.json"
    if (folder / TEMPLATE_FILE).exists() or not config_file.is_file():
        return
    has_one = "chat_template" in read_json(config_file, "no tokenizer")
    if not has_one and "<|im_end|>" in _added_tokens(folder):
        write_chat_template(folder)


def end_chat_template_at_the_answer(folder: Path) -> None:
    """Make a reward model's template end a conversation with its last <|im_end|>, and not with the
    line end after it.

    transformers reads the reward at the last token, and a reward model is trained at <|im_end|>.
    The text of any template is captured and cut; one that was cut before stays.
    """
    file, config_file = folder / TEMPLATE_FILE, folder / "tokenizer_config.json"
    config = _table(folder, config_file.name)
    template = file.read_text(encoding="utf-8") if file.is_file() else config.get("chat_template")
    if not isinstance(template, str) or template.startswith(_CUT[0]):
        return
    cut = template.join(_CUT)
    write_whole(file, [cut.encode()])
    if "chat_template" in config:
        write_json(config_file, config | {"chat_template": cut})


def config_ids(folder: Path) -> Ids:
    """ "bos", "eos" and "pad" of the folder's config.json, one id or several; {} without one.

    For a checkpoint's tokenizer folder, those that `keep_ids` stored. ConfigError for invalid ids.
    """
    folder = _folder(folder)
    name = IDS_FILE if (folder / IDS_FILE).is_file() else "config.json"
    return _ids(folder / name, _table(folder, name))


def keep_ids(source: Path, target: Path) -> None:
    """Store in `target` the ids of `source`'s config.json and generation_config.json."""
    copy_generation(source, target)
    if ids := config_ids(source):
        target.mkdir(exist_ok=True)
        write_json(target / IDS_FILE, {f"{role}_token_id": n for role, n in ids.items()})


def end_ids(folder: Path) -> list[int]:
    """Every id that ends a text, by the folder's config.json and generation_config.json."""
    folder = _folder(folder)
    generation = _ids(folder / GENERATION_FILE, _table(folder, GENERATION_FILE))
    said = (ids.get("eos", []) for ids in (config_ids(folder), generation))
    return sorted({number for ids in said for number in ([ids] if isinstance(ids, int) else ids)})


def token_ids(folder: Path, chat_model: bool) -> Ids:
    """ "bos", "eos" and "pad": from generation_config.json, else from the tokenizer; {} without
    both.

    A chat model ends its turn with <|im_end|>, a base model its document with <|endoftext|>.
    """
    if (folder / GENERATION_FILE).is_file():
        given = _ids(folder / GENERATION_FILE, _table(folder, GENERATION_FILE))
        firsts = {role: n[0] if isinstance(n, list) else n for role, n in given.items()}
        return dict(firsts)
    tokens = _added_tokens(folder)
    end = "<|im_end|>" if chat_model else "<|endoftext|>"
    wanted = {"bos": "<|endoftext|>", "eos": end, "pad": "<|endoftext|>"}
    return {role: tokens[token] for role, token in wanted.items() if token in tokens}


def write_generation(folder: Path, chat_model: bool, ids: Ids) -> None:
    """generation_config.json, unless the tokenizer's folder has one: Qwen3's sampling."""
    if (folder / GENERATION_FILE).exists():
        return
    generation: dict[str, Any] = {f"{role}_token_id": number for role, number in ids.items()}
    generation["do_sample"] = chat_model
    if chat_model:
        generation |= {"temperature": 0.6, "top_k": 20, "top_p": 0.95}
        if isinstance(ids.get("eos"), int) and "bos" in ids:
            generation["eos_token_id"] = [ids["eos"], ids["bos"]]
    else:
        generation["max_new_tokens"] = 2048
    write_json(folder / GENERATION_FILE, generation)


def _ids(path: Path, said: dict[str, Any]) -> Ids:
    ids = {role: said.get(f"{role}_token_id") for role in ("bos", "eos", "pad")}
    for role, value in ids.items():
        for number in value if isinstance(value, list) else [value]:
            if value is not None and (type(number) is not int or number < 0):
                raise ConfigError(
                    f"{path}: {role}_token_id = {value!r:.80}; valid: an id, or a list of ids"
                )
    return {role: value for role, value in ids.items() if value is not None and value != []}


def _added_tokens(folder: Path) -> dict[str, int]:
    added = _table(folder, "tokenizer.json").get("added_tokens")
    try:
        return {str(token["content"]): int(token["id"]) for token in added or ()}
    except (LookupError, TypeError, ValueError):
        raise ConfigError(
            f"{folder / 'tokenizer.json'}: added_tokens is not a list of tokens with ids"
        ) from None


def _table(folder: Path, name: str) -> dict[str, Any]:
    """The content of a JSON file; {} without the file."""
    return read_json(folder / name, "no table") if (folder / name).is_file() else {}


def _folder(path: Path) -> Path:
    """The folder of a tokenizer, which is named by its folder or by a file in it."""
    return path.parent if path.is_file() else path
