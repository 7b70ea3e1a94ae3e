"""Problems of several steps whose answers are checked, in four languages: the pipeline's tasks.

    problem = draw("chain", random.Random(7))
    problem.question          # "Keep the last digit: 4 a+3 b*7 c-5"
    problem.lines(random)     # " a4+3=7 then b7*7=9 so c9-5=4", one step a line
    problem.answer            # "=794": the last three results

Every kind is a chain of steps, of which each depends on the result before it, so that a small model
that answers at once can only guess, and one that writes each step down need only look each up:

    chain    arithmetic of which the last digit is kept; factors are 1, 3, 7 or 9, so that no step
             forgets the digit before it and no error heals
    loops    a small program: 3[+7] adds 7 three times
    swaps    neighbours of four letters change places, as in sorting

A step is known by one fact, 4+3=7 or badc1= abdc; there are 220 and 72 of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

KINDS = ("chain", "loops", "swaps")
LANGUAGES = ("en", "de", "es", "zh")
LABELS = "abcdefghijkl"
RESULTS = 3  # in an answer: a guess is right once in a thousand

# How a kind is asked for in each language.
ASKED = {
    "chain": ("Keep the last digit:", "Letzte Ziffer:", "Guarda la cifra final:", "保留末位数字："),
    "loops": ("Run the program:", "Programm starten:", "Ejecuta el programa:", "运行程序："),
    "swaps": ("Swap the letters:", "Buchstaben tauschen:", "Cambia las letras:", "交换字母："),
}  # fmt: skip
# Between lines, in each language: which of them is said has no part in what is right, so that there
# is something left to choose when every step is known.
WORDS = (
    ("then", "so", "now"),
    ("dann", "also", "nun"),
    ("luego", "pues", "ahora"),
    ("再", "就", "又"),
)


@dataclass(frozen=True)
class Problem:
    """kind and language; body: the question without its words; steps: of each step its label and
    operation; values: the start and the result of every step."""

    kind: str
    language: str
    body: str
    steps: tuple[tuple[str, str], ...]
    values: tuple[str, ...]

    @property
    def question(self) -> str:
        return f"{ASKED[self.kind][LANGUAGES.index(self.language)]}{self.body}"

    @property
    def answer(self) -> str:
        """The last three results, oldest first, as "=794" or "= bacd abcd acbd"."""
        return "=" + "".join(self.spaced(value) for value in self.values[-RESULTS:])

    def lines(self, random: Random, merged: Sequence[float] = (1.0,)) -> str:
        """The worked steps. merged: weights of lines of one step, of two, …: a line of several
        steps has the result of the last alone, which is harder to know."""
        text, at, words = "", 0, WORDS[LANGUAGES.index(self.language)]
        while at < len(self.steps):
            text += f" {random.choice(words)}" if at else ""
            taken = random.choices(range(1, len(merged) + 1), merged)[0]
            end = min(at + taken, len(self.steps))
            text += f" {self.steps[at][0]}{self.spaced(self.values[at])}{self.steps[at][1]}"
            text += "".join(f" {label}{operation}" for label, operation in self.steps[at + 1 : end])
            text += f"={self.spaced(self.values[end])}"
            at = end
        return text

    def spaced(self, value: str) -> str:
        """Letters after a space, with which they are one token; a digit is one alone."""
        return f" {value}" if self.kind == "swaps" else value


def draw(kind: str, random: Random, fewest: int = 3, most: int = 8, language: str = "") -> Problem:
    """A problem of `fewest` to `most` steps, in a language drawn where none is named."""
    language = language or random.choice(LANGUAGES)
    count = random.randint(fewest, most)
    if kind == "swaps":
        steps = tuple((LABELS[i], random.choice("123")) for i in range(count))
        start = "".join(random.sample("abcd", 4))
        body = f" {start}" + "".join(f" {label}{where}" for label, where in steps)
        return Problem(kind, language, body, steps, _results(start, steps))
    start = str(random.randrange(10))
    if kind == "chain":
        steps = tuple((LABELS[i], operation(random)) for i in range(count))
        body = f" {start}" + "".join(f" {label}{what}" for label, what in steps)
    else:
        loops = _loops(random, count)
        steps = tuple((LABELS[left - 1], op) for turns, op in loops for left in range(turns, 0, -1))
        body = f" {start}" + "".join(f" {LABELS[times - 1]}[{what}]" for times, what in loops)
    return Problem(kind, language, body, steps, _results(start, steps))


def operation(random: Random) -> str:
    """+ or - with 1 to 9, or * with a factor that has an inverse among last digits."""
    sign = random.choice("+-*")
    return f"{sign}{random.choice('379') if sign == '*' else random.randint(1, 9)}"


def applied(value: str, what: str) -> str:
    """The result of one step: the fact that a model has to know."""
    if what.isdigit():
        at = int(what) - 1
        return value[:at] + value[at + 1] + value[at] + value[at + 2 :]
    by = int(what[1:])
    whole = {"+": int(value) + by, "-": int(value) - by, "*": int(value) * by}[what[0]]
    return str(whole % 10)


def _results(start: str, steps: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    values = [start]
    for _, what in steps:
        values.append(applied(values[-1], what))
    return tuple(values)


def _loops(random: Random, count: int) -> list[tuple[int, str]]:
    """Loops of one to four turns, `count` turns in all."""
    loops = []
    while count:
        turns = min(random.randint(1, 4), count)
        loops.append((turns, operation(random)))
        count -= turns
    return loops
