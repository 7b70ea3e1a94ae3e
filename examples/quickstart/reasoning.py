"""Worked problems for the quickstart: questions, the steps that solve them, and the answer.

Made by code from a seed, so they cost no download and every step is right by construction: a small
model can learn to write them, and its answers can be checked. Each kind of problem is a function

of a random generator; `worked_problems` draws from all of them and drops repetitions.

    documents = worked_problems(megabytes=1.2, seed=0)
    # 'Question: …\n\nSteps:\n1. …\n2. …\n\nAnswer: 42\n'
"""

import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import pairwise
from random import Random

# fmt: off
NAMES = (
    "Amina", "Bruno", "Chen", "Dalia", "Emeka", "Fatima", "Goran", "Hana", "Ivan", "Jana", "Kofi",
    "Lucia", "Mei", "Noor", "Olga", "Pedro", "Quynh", "Rosa", "Samir", "Tariq", "Uma", "Viktor",
    "Wanjiru", "Ximena", "Yusuf", "Zofia",
)
THINGS = (
    "apples", "bricks", "candles", "coins", "eggs", "flowers", "lemons", "marbles", "notebooks",
    "oranges", "pencils", "photographs", "plates", "shells", "stamps", "stickers", "tickets",
    "tiles",
)
GOODS = (
    "a bag of rice", "a blanket", "a book", "a chair", "a hat", "a kettle", "a lamp",
    "a pair of boots", "a radio",
)
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
# fmt: on

Problem = tuple[str, list[str], str]  # question, steps, answer


def worked_problems(megabytes: float, seed: int) -> list[str]:
    """Distinct documents, about so many megabytes of them; the same for the same seed."""
    random = Random(seed)
    documents: dict[str, None] = {}
    size = 0
    while size < megabytes * 1e6:
        text = _render(*random.choice(KINDS)(random))
        size += 0 if text in documents else len(text.encode())
        documents[text] = None
    return list(documents)


def _render(question: str, steps: list[str], answer: str) -> str:
    lines = [f"{number}. {step}" for number, step in enumerate(steps, 1)]
    return "\n".join([f"Question: {question}", "", "Steps:", *lines, "", f"Answer: {answer}", ""])


# ---- written arithmetic ------------------------------------------------------------------------


def column_addition(random: Random) -> Problem:
    a, b = (random.randrange(10, 10 ** random.randint(2, 5)) for _ in range(2))
    steps = list(_carry(a, b))
    asked = random.choice(["What is {} + {}?", "Add {} and {}.", "Find the sum of {} and {}."])
    return asked.format(a, b), [*steps, f"Together: {a} + {b} = {a + b}"], str(a + b)


def _carry(a: int, b: int) -> Iterator[str]:
    carry = 0
    for place in range(max(len(str(a)), len(str(b)))):
        x, y = a // 10**place % 10, b // 10**place % 10
        total = x + y + carry
        with_carry = f" + {carry}" if carry else ""
        carry = total // 10
        after = f", carry {carry}" if carry else ""
        yield f"{_place(place)}: {x} + {y}{with_carry} = {total}, write {total % 10}{after}"


def _place(place: int) -> str:
    return ("Ones", "Tens", "Hundreds", "Thousands", "Ten thousands")[place]


def subtraction_by_counting_up(random: Random) -> Problem:
    low, high = sorted(random.sample(range(12, 5000), 2))
    ten = -(-low // 10) * 10
    steps = []
    if low < ten <= high:
        steps.append(f"From {low} to {ten} it is {ten - low}: {low} + {ten - low} = {ten}")
    start = ten if low < ten <= high else low
    steps.append(f"From {start} to {high} it is {high - start}: {start} + {high - start} = {high}")
    if start != low:
        steps.append(f"Together: {ten - low} + {high - start} = {high - low}")
    return f"How much is {high} - {low}?", steps, str(high - low)


def partial_products(random: Random) -> Problem:
    a, b = random.randrange(12, 999), random.randrange(3, 99)
    parts = [(b // 10 * 10, "tens"), (b % 10, "ones")] if b > 9 else [(b, "ones")]
    steps = [
        f"Split {b} into its {what}: {a} × {part} = {a * part}" for part, what in parts if part
    ]
    if len(steps) > 1:
        steps.append(f"Add the parts: {a * parts[0][0]} + {a * parts[1][0]} = {a * b}")
    asked = random.choice(["What is {} × {}?", "Multiply {} by {}.", "Calculate {} times {}."])
    return asked.format(a, b), steps, str(a * b)


def long_division(random: Random) -> Problem:
    divisor, number = random.randrange(3, 13), random.randrange(100, 10_000)
    steps, rest = [], 0
    for digit in str(number):
        have = 10 * rest + int(digit)
        quotient, rest = divmod(have, divisor)
        steps.append(
            f"Bring down {digit}: {divisor} goes into {have} {quotient} times, {have} - "
            f"{quotient * divisor} = {rest}"
        )
    result = f"{number // divisor} remainder {rest}" if rest else str(number // divisor)
    return f"Divide {number} by {divisor}.", steps, result


def greatest_common_divisor(random: Random) -> Problem:
    factor = random.randrange(1, 30)
    a, b = (factor * random.randrange(2, 60) for _ in range(2))
    large, small = max(a, b), min(a, b)
    steps = []
    while small:
        quotient, rest = divmod(large, small)
        steps.append(f"{large} = {quotient} × {small} + {rest}")
        large, small = small, rest
    steps.append(f"The last number divided by is {large}")
    return f"What is the greatest common divisor of {a} and {b}?", steps, str(large)


def fractions(random: Random) -> Problem:
    a, b = (Fraction(random.randrange(1, 12), random.randrange(2, 13)) for _ in range(2))
    common = math.lcm(a.denominator, b.denominator)
    x, y = a.numerator * common // a.denominator, b.numerator * common // b.denominator
    steps = [
        f"The least common multiple of {a.denominator} and {b.denominator} is {common}",
        f"{a} is {x}/{common} and {b} is {y}/{common}",
        f"Add the numerators: {x} + {y} = {x + y}, so the sum is {x + y}/{common}",
    ]
    if math.gcd(x + y, common) > 1:
        steps.append(f"Both are divisible by {math.gcd(x + y, common)}: the sum is {a + b}")
    return f"Add the fractions {a} and {b}.", steps, str(a + b)


# ---- algebra and sequences ---------------------------------------------------------------------


def linear_equation(random: Random) -> Problem:
    a, x, b = random.randrange(2, 13), random.randrange(1, 40), random.randrange(1, 60)
    letter = random.choice("nxyz")
    total = a * x + b
    steps = [
        f"Subtract {b} on both sides: {total} - {b} = {a * x}, so {a}{letter} = {a * x}",
        f"Divide both sides by {a}: {a * x} / {a} = {x}",
        f"Check: {a} × {x} = {a * x} and {a * x} + {b} = {total}",
    ]
    return f"Solve {a}{letter} + {b} = {total} for {letter}.", steps, f"{letter} = {x}"


def next_in_sequence(random: Random) -> Problem:
    first, step = random.randrange(1, 60), random.randrange(2, 15)
    growing = random.random() < 0.3
    terms = [first * 2**k for k in range(6)] if growing else [first + step * k for k in range(6)]
    if growing:
        steps = [f"Each number is twice the one before: {terms[0]} × 2 = {terms[1]}"]
        steps.append(f"The next one is {terms[4]} × 2 = {terms[5]}")
    else:
        steps = [f"{b} - {a} = {step}" for a, b in pairwise(terms[:5])]
        steps.append(
            f"The difference is always {step}, so the next one is {terms[4]} + {step} = {terms[5]}"
        )
    listed = ", ".join(map(str, terms[:5]))
    return f"Which number comes next: {listed}?", steps, str(terms[5])


def sum_and_difference(random: Random) -> Problem:
    older, younger = random.sample(NAMES, 2)
    low, gap = random.randrange(4, 50), random.randrange(2, 30)
    total = 2 * low + gap
    steps = [
        f"Without the {gap} extra years both would be equally old: {total} - {gap} = {2 * low}",
        f"Half of it is {younger}'s age: {2 * low} / 2 = {low}",
        f"{older} is older by {gap}: {low} + {gap} = {low + gap}",
    ]
    question = (
        f"{older} is {gap} years older than {younger}. Together they are {total} years old. "
        f"How old is {older}?"
    )
    return question, steps, str(low + gap)


# ---- everyday problems -------------------------------------------------------------------------


def giving_and_getting(random: Random) -> Problem:
    name, thing = random.choice(NAMES), random.choice(THINGS)
    have = random.randrange(10, 90)
    story, steps = [f"{name} has {have} {thing}."], []
    for _ in range(random.randint(2, 4)):
        friend = random.choice([other for other in NAMES if other != name])
        amount = random.randrange(2, 30)
        if amount < have and random.random() < 0.5:
            story.append(f"{name} gives {friend} {amount} of them.")
            steps.append(
                f"After giving {amount} away there are {have} - {amount} = {have - amount}"
            )
            have -= amount
        else:
            story.append(f"{friend} brings {amount} more.")
            steps.append(f"With {amount} more there are {have} + {amount} = {have + amount}")
            have += amount
    return " ".join([*story, f"How many {thing} does {name} have now?"]), steps, str(have)


def shopping(random: Random) -> Problem:
    name = random.choice(NAMES)
    basket = [
        (good, random.randrange(1, 6), random.randrange(3, 60)) for good in random.sample(GOODS, 3)
    ]
    listed = "; ".join(f"{good} costs {price}, times {count}" for good, count, price in basket)
    steps, total = [], 0
    for good, count, price in basket:
        steps.append(f"For {good}: {count} × {price} = {count * price}")
        steps.append(f"So far: {total} + {count * price} = {total + count * price}")
        total += count * price
    note = -(-total // 100) * 100
    steps.append(f"Change: {note} - {total} = {note - total}")
    question = (
        f"{name} buys at the market ({listed}) and pays with {note}. How much change is there?"
    )
    return question, steps, str(note - total)


def discount(random: Random) -> Problem:
    price, percent = 20 * random.randrange(2, 60), 5 * random.randrange(1, 16)
    off = price * percent // 100
    steps = [
        f"One percent of {price} is {price / 100:g}",
        f"{percent} percent are {off}",
        f"The new price is {price} - {off} = {price - off}",
    ]
    good = random.choice(GOODS)
    question = f"In a sale {good} that cost {price} is {percent}% cheaper. What does it cost now?"
    return question, steps, str(price - off)


def journey(random: Random) -> Problem:
    speeds = [random.randrange(4, 90) for _ in range(2)]
    hours = [random.randrange(1, 7) for _ in range(2)]
    name, (a, b) = random.choice(NAMES), (speeds[k] * hours[k] for k in range(2))
    steps = [
        f"First part: {speeds[0]} × {hours[0]} = {a} kilometres",
        f"Second part: {speeds[1]} × {hours[1]} = {b} kilometres",
        f"The whole way: {a} + {b} = {a + b} kilometres",
    ]
    question = (
        f"{name} travels {hours[0]} h at {speeds[0]} km/h, then {hours[1]} h at {speeds[1]} km/h. "
        "How long is the whole way?"
    )
    return question, steps, f"{a + b} km"


def weekday(random: Random) -> Problem:
    today, days = random.randrange(7), random.randrange(8, 400)
    weeks, rest = divmod(days, 7)
    steps = [
        f"{weeks} whole weeks fit: 7 × {weeks} = {7 * weeks}, {days} - {7 * weeks} = {rest}",
        f"Whole weeks change nothing, so count {rest} days on from {WEEKDAYS[today]}",
    ]
    answer = WEEKDAYS[(today + rest) % 7]
    return f"Today is {WEEKDAYS[today]}. Which weekday is it in {days} days?", steps, answer


def clock(random: Random) -> Problem:
    start, minutes = random.randrange(24 * 60), random.randrange(35, 600)
    hours, rest = divmod(minutes, 60)
    after_hours, end = (start + 60 * hours) % 1440, (start + minutes) % 1440
    steps = [f"{minutes} minutes are {hours} hours and {rest} minutes"]
    steps.append(f"{hours} hours after {_time(start)} it is {_time(after_hours)}")
    steps.append(f"{rest} minutes later it is {_time(end)}")
    begins, ends = random.choice(
        [
            ("A train leaves", "arrives"),
            ("The film begins", "ends"),
            ("A loaf goes into the oven", "is done"),
        ]
    )
    question = f"{begins} at {_time(start)} and {ends} {minutes} minutes later. When is that?"
    return question, steps, _time(end)


def _time(minutes: int) -> str:
    return f"{minutes // 60:02d}:{minutes % 60:02d}"


# ---- order and code ----------------------------------------------------------------------------


def who_is_first(random: Random) -> Problem:
    people = random.sample(NAMES, random.randint(3, 5))
    more, most = random.choice([("taller", "tallest"), ("older", "oldest"), ("faster", "fastest")])
    facts = [f"{a} is {more} than {b}." for a, b in pairwise(people)]
    chain = " > ".join(people)
    steps = [f"In order, the {most} first: {chain}", f"Nobody stands before {people[0]}"]
    random.shuffle(facts)
    return f"{' '.join(facts)} Who is the {most}?", steps, people[0]


def trace_a_loop(random: Random) -> Problem:
    start, first, count, step = (random.randrange(1, 9) for _ in range(4))
    operator = random.choice("+*-")
    last = first + step * (count + 1)
    loop = f"for n in range({first}, {last}, {step}):\n    total {operator}= n"
    steps, total = [f"range({first}, {last}, {step}) gives {list(range(first, last, step))}"], start
    for n in range(first, last, step):
        result = {"+": total + n, "*": total * n, "-": total - n}[operator]
        steps.append(f"n = {n}: total becomes {total} {operator} {n} = {result}")
        total = result
    return (
        f"What does this program print?\n\ntotal = {start}\n{loop}\nprint(total)",
        steps,
        str(total),
    )


KINDS: tuple[Callable[[Random], Problem], ...] = (
    column_addition,
    subtraction_by_counting_up,
    partial_products,
    long_division,
    greatest_common_divisor,
    fractions,
    linear_equation,
    next_in_sequence,
    sum_and_difference,
    giving_and_getting,
    shopping,
    discount,
    journey,
    weekday,
    clock,
    who_is_first,
    trace_a_loop,
)
