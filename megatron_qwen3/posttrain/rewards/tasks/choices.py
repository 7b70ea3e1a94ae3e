"""Multiple-choice tasks: a question with one right option among four or five, in any order."""

from collections.abc import Sequence

from megatron_qwen3.posttrain.rewards.tasks.made import (
    CHINESE,
    ENGLISH,
    FRENCH,
    GERMAN,
    SPANISH,
    Made,
    TaskDraw,
)

_LETTERS = "ABCDE"
_SUM = {
    ENGLISH: ("What is {a} + {b}?", "Which of these is the sum of {a} and {b}?"),
    GERMAN: ("Was ist {a} + {b}?",),
    FRENCH: ("Combien font {a} + {b} ?",),
    SPANISH: ("¿Cuánto es {a} + {b}?",),
    CHINESE: ("{a} + {b} 等于多少？",),
}
_LARGEST = {
    ENGLISH: ("Which of these numbers is the largest?", "Pick the largest number."),
    GERMAN: ("Welche dieser Zahlen ist die größte?",),
    FRENCH: ("Lequel de ces nombres est le plus grand ?",),
    SPANISH: ("¿Cuál de estos números es el mayor?",),
    CHINESE: ("下列哪个数最大？",),
}
_MULTIPLE = {
    ENGLISH: ("Which of these numbers is divisible by {a}?",),
    GERMAN: ("Welche dieser Zahlen ist durch {a} teilbar?",),
    FRENCH: ("Lequel de ces nombres est divisible par {a} ?",),
    SPANISH: ("¿Cuál de estos números es divisible por {a}?",),
    CHINESE: ("下列哪个数能被 {a} 整除？",),
}
_ASKED = {
    ENGLISH: "Answer with the letter of the right option alone.",
    GERMAN: "Antworte allein mit dem Buchstaben der richtigen Möglichkeit.",
    FRENCH: "Réponds seulement par la lettre de la bonne option.",
    SPANISH: "Responde solo con la letra de la opción correcta.",
    CHINESE: "只回答正确选项的字母。",
}


def choice(draw: TaskDraw) -> Made:
    """A task of one of three kinds of questions."""
    question = draw.choice((_sum, _largest, _multiple))
    text, language, right, wrong = question(draw, draw.randint(3, 4))
    options = [right, *wrong]
    draw.shuffle(options)
    listed = "\n".join(f"{_LETTERS[n]}. {option}" for n, option in enumerate(options))
    letters = _LETTERS[: len(options)]
    return Made(
        f"{text}\n\n{listed}\n\n{_ASKED[language]}",
        {"kind": "choice", "gold": letters[options.index(right)], "letters": letters},
        letters[options.index(right)],
        language,
    )


_Question = tuple[str, str, int, Sequence[int]]  # text, language, right, wrong


def _sum(draw: TaskDraw, others: int) -> _Question:
    a, b = draw.randint(10, 99), draw.randint(10, 99)
    near = [a + b + distance for distance in (-20, -11, -10, -2, -1, 1, 2, 9, 10, 20)]
    language, wording = draw.wording(_SUM)
    return wording.format(a=a, b=b), language, a + b, draw.sample(near, others)


def _largest(draw: TaskDraw, others: int) -> _Question:
    right = draw.randint(30, 999)
    language, wording = draw.wording(_LARGEST)
    return wording, language, right, draw.sample(range(right // 2, right), others)


def _multiple(draw: TaskDraw, others: int) -> _Question:
    a = draw.randint(3, 9)
    right = a * draw.randint(3, 20)
    wrong = [number for number in range(right - 12, right + 13) if number % a]
    language, wording = draw.wording(_MULTIPLE)
    return wording.format(a=a), language, right, draw.sample(wrong, others)
