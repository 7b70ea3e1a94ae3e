"""Prompts of passkey retrieval: a key within a long text, requested at its end. No torch.

    prompts = make(texts, length=4096, count=40, words, encode)

Passkey retrieval (arXiv 2305.16300, section 4.3): the rest of the text does not matter, so finding
the key shows how far attention reaches. Keys are at even depths, from the first place to the last
before the question.
"""

from collections.abc import Callable, Sequence
from random import Random
from typing import NamedTuple

from megatron_qwen3.config import ConfigError

Encode = Callable[[str], list[int]]
KEY = "{key}"  # placeholder in the words; other braces are text


class Words(NamedTuple):
    """said, asked: texts with {key} in them; the question's ends with the key. digits: of a key."""

    said: str = " The pass key is {key}. Remember it. "
    asked: str = " What is the pass key? The pass key is {key}"
    digits: int = 5

    def check(self) -> None:
        """ConfigError where a text has no {key}, or the question goes on after it."""
        for name in ("said", "asked"):
            if (count := getattr(self, name).count(KEY)) != 1:
                raise ConfigError(
                    f"--key-{name} {getattr(self, name)!r} has {{key}} {count} times; valid: once"
                )
        if not self.asked.endswith(KEY):
            raise ConfigError(f"--key-asked {self.asked!r} does not end with {{key}}")


class Prompt(NamedTuple):
    """ids: of exactly the requested length; the last `answer` of them are the key. depth: 0 to
    1."""

    ids: list[int]
    answer: int
    depth: float


def make(
    texts: Sequence[Sequence[int]], length: int, count: int, words: Words, encode: Encode, seed: int
) -> list[Prompt]:
    """Texts in turn, with keys of their own. ConfigError where the words do not fit the length."""
    random, prompts = Random(seed), []
    for number in range(count):
        key = "".join(random.choice("0123456789") for _ in range(words.digits))
        said, answer = encode(words.said.replace(KEY, key)), encode(key)
        asked = encode(words.asked.removesuffix(KEY))
        room = length - len(said) - len(asked) - len(answer)
        if room < 2:
            raise ConfigError(
                f"a text of {length} tokens has no room for a key and its question, which take "
                f"{length - room}; raise --lengths, or set shorter --key-said and --key-asked"
            )
        depth = (number + 0.5) / count
        text, place = texts[number % len(texts)][:room], int(depth * room)
        ids = [*text[:place], *said, *text[place:], *asked, *answer]
        prompts.append(Prompt(ids, len(answer), depth))
    return prompts
