"""Parts of a reward that check the form of an answer, not its content.

    well_formed(text, is_thinking=True)     # "", or why it is not
    obedient(text, is_thinking=True)
    language_share(text, "deu_Latn", question)       # (1.0 - share in other languages, why)

The text is everything that the model wrote, with its thinking. No torch.
"""

import re

from data_prep import scripts
from data_prep.languages import UNKNOWN, code_of
from megatron_qwen3.chat import END_THINK, THINK, TURN_END, split_thinking
from megatron_qwen3.posttrain.building.languages import LanguageUse, Use

_TURN = "<|im_start|>assistant\n"
_ENDS = (TURN_END, "<|endoftext|>")
_MOST_CHARACTERS = 12_000  # of a text for language identification; of longer ones both ends
_LETTERS = {"Hans": "CJK", "Hant": "CJK", "Jpan": "HIRAGANA", "Hang": "HANGUL"}


def last_turn(text: str, turns: int = 1) -> str:
    """The model's last turn of a rollout with tools, without the token that ends it."""
    text = text.rpartition(_TURN)[2] if turns > 1 else text
    for end in _ENDS:
        text = text.rstrip("\n").removesuffix(end)
    return text


def well_formed(text: str, is_thinking: bool) -> str:
    """Why the text is not one think block, closed and not nested, followed by an answer; else "".

    Where thinking was not requested the block may be missing, as the prompt may contain it. An
    empty block is well formed in either mode; `obedient` checks whether there is thinking.
    """
    opened, closed = text.count(THINK), text.count(END_THINK)
    if not is_thinking and not opened and not closed:
        return "" if text.strip() else "the answer is empty"
    if (opened, closed) != (1, 1):
        return f"{opened} {THINK} and {closed} {END_THINK}; asked: one of each"
    match = re.fullmatch(rf"\s*{THINK}.*{END_THINK}(.*)", text, re.S)
    if not match:
        return f"the text does not begin with a block {THINK} … {END_THINK}"
    return "" if match.group(1).strip() else "no answer follows the thinking"


def obedient(text: str, is_thinking: bool) -> str:
    """ "" where there is thinking exactly if it was requested; else why."""
    thinks = bool(split_thinking(text)[0].strip())
    if thinks == is_thinking:
        return ""
    return "there is no thinking" if is_thinking else "there is thinking"


def language_share(text: str, language: str, question: str) -> tuple[float, str]:
    """(1.0 - share of letters in other languages or scripts, why it is not 1.0).

    The lower value of thinking and answer counts; a part wholly in another language has 0.
    language: a code or name; "" is the question's. A part too short for identification is judged by
    its script alone, and one without letters has 1. The first call loads 100 MB of models.
    """
    use = LanguageUse()
    wanted = code_of(language) if language else UNKNOWN
    if wanted == UNKNOWN:
        wanted = use.of(_cut(question)).main
    scored = [
        (*_scored(use.of(_cut(part), question), part, wanted, question), name)
        for name, part in zip(("thinking", "answer"), split_thinking(text), strict=True)
    ]
    share, reason, name = min(scored, key=lambda one: one[0])
    return share, f"{name}: {reason}" if reason else ""


def _scored(use: Use, part: str, wanted: str, question: str) -> tuple[float, str]:
    if use.main == UNKNOWN or wanted == UNKNOWN:
        known = {*scripts.census(question), _script_of(wanted)}
        found = next(iter(scripts.census(part)), "")
        if found and wanted != UNKNOWN and found not in known:
            return 0.0, f"written in letters of {found}, asked for {wanted}"
    elif use.main != wanted:
        return 0.0, f"written in {use.main}, asked for {wanted}"
    return 1.0 - use.foreign, f"{use.foreign:.0%} in other languages" if use.foreign else ""


def _script_of(code: str) -> str:
    suffix = code.partition("_")[2]
    return scripts.SCRIPT_OF_CODE.get(suffix) or _LETTERS.get(suffix, "")


def _cut(text: str) -> str:
    half = _MOST_CHARACTERS // 2
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:half]} {text[-half:]}"
