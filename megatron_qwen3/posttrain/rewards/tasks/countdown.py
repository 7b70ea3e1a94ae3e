"""Countdown tasks: reach a target with given numbers; a solution is known to exist."""

from megatron_qwen3.posttrain.rewards.tasks.made import (
    CHINESE,
    ENGLISH,
    FRENCH,
    GERMAN,
    SPANISH,
    Made,
    TaskDraw,
    tagged,
)

_WORDINGS = {
    ENGLISH: (
        "Using the numbers {numbers}, each at most once, and + - * / and brackets, write an "
        "expression that equals {target}.",
        "Reach {target} with the numbers {numbers}. You may add, subtract, multiply and divide, "
        "and use no number twice.",
        "Countdown! Numbers: {numbers}. Target: {target}. Which expression gets there?",
    ),
    GERMAN: (
        "Bilde aus den Zahlen {numbers}, jede höchstens einmal, mit + - * / und Klammern einen "
        "Ausdruck, der {target} ergibt.",
    ),
    FRENCH: (
        "Avec les nombres {numbers}, chacun utilisé au plus une fois, et + - * / et des "
        "parenthèses, écris une expression égale à {target}.",
    ),
    SPANISH: (
        "Con los números {numbers}, cada uno a lo sumo una vez, y + - * / y paréntesis, escribe "
        "una expresión igual a {target}.",
    ),
    CHINESE: (
        "用数字 {numbers}（每个最多用一次）以及 + - * / 和括号，写一个等于 {target} 的算式。",
    ),
}


def countdown(draw: TaskDraw) -> Made:
    """3 to 5 numbers from 1 to 25; 2 or more of them make a target from 1 to 999."""
    numbers = [draw.randint(1, 25) for _ in range(draw.randint(3, 5))]
    expression, target = _way(draw, draw.sample(numbers, draw.randint(2, len(numbers))))
    language, wording = draw.wording(_WORDINGS)
    text = wording.format(numbers=", ".join(map(str, numbers)), target=target)
    return Made(
        text + tagged(language),
        {"kind": "countdown", "numbers": numbers, "target": target},
        f"<answer>{expression}</answer>",
        language,
    )


def _way(draw: TaskDraw, numbers: list[int]) -> tuple[str, int]:
    """An expression of all numbers, one after another, and its value, which stays in bounds."""
    expression, value = str(numbers[0]), numbers[0]
    for number in numbers[1:]:
        options = {"+": value + number, "-": value - number, "*": value * number}
        if value % number == 0:
            options["/"] = value // number
        sign = draw.choice([sign for sign, result in options.items() if 0 < result < 1000])
        expression, value = f"({expression} {sign} {number})", options[sign]
    return expression[1:-1], value
