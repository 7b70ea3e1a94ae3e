"""Writes what post-training begins with: worked dialogs, tasks with verifiers, and fused dialogs.

    python -m examples.reproduce.dialogs cold-start --count 3000 --out worked.jsonl
    python -m examples.reproduce.dialogs tasks --count 4000 --out tasks.jsonl
    python -m examples.reproduce.dialogs flagged --count 4000 --out flagged.jsonl
    python -m examples.reproduce.dialogs fuse thought/dialogs.jsonl --out fused.jsonl

`cold-start`: questions with thinking that merges steps now and then, and right answers: a few
hundred steps of them give the form and leave reinforcement learning room. `tasks`: questions and
the verifier of each. `flagged`: the same in dialogs of several turns with flags. `fuse`: the right
thinking of a model, as `mq3 data build distill` kept it, and its answers without thinking, in
dialogs of several turns whose flags say which.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

from examples.reproduce import problems
from megatron_qwen3.chat import thinks
from megatron_qwen3.storage.whole import write_whole

MERGED = (0.8, 0.15, 0.05)  # of the cold start's lines: of one step, of two, of three
MOST_TURNS = 5  # of fused dialogs, one more than general RL and the evaluation ask
DIALOGS = 3  # for each thought, with other flags and neighbours: few would be learned by heart
SYSTEM = "You are a helpful assistant."
# Half of the turns have no flag, so that an earlier one is in force: a small model obeys one that
# it has before it at once, and looks for one further back only if it has to. Of those that have,
# half have both, whose order is what counts.
OF_TURN = ("", "", "", "", "/think", "/no_think", "/think /no_think", "/no_think /think")
OF_SYSTEM = ("", "/think", "/no_think")


def cold_start(random: Random, fewest: int) -> dict[str, Any]:
    """A dialog with thinking."""
    problem = _drawn(random, fewest)
    said = {"reasoning_content": problem.lines(random, MERGED), "content": problem.answer}
    return {"messages": [_asked(problem), {"role": "assistant", **said}], "source": problem.kind}


def task(random: Random, fewest: int) -> dict[str, Any]:
    """A question and how its answer is verified."""
    problem = _drawn(random, fewest)
    return {
        "messages": [_asked(problem)],
        # A part of "every", since steps state results, of which none is the answer.
        "verifier": {"kind": "every", "specs": [{"kind": "exact", "gold": problem.answer}]},
        "gold": problem.answer,
        "domain": problem.kind,
        "source": problem.kind,
        "language": problem.language,
    }


def flagged(random: Random, fewest: int) -> dict[str, Any]:
    """A task in a dialog of one to four turns, whose flags change; the last one is in force. An
    answer at once is right by chance alone, from which there is nothing to learn."""
    row = task(random, fewest)
    messages = _system(random)
    for _ in range(random.randint(0, 3)):
        before = _drawn(random, fewest)
        messages.append(_with_flag(_asked(before), random))
        messages.append({"role": "assistant", "content": before.answer})
    messages.append(_with_flag(row["messages"][-1], random))
    return {**row, "messages": messages, "rewards": {} if thinks(messages) else {"verifier": 0}}


def fuse(thought: Path, seed: int) -> Iterator[dict[str, Any]]:
    """Dialogs of both modes. thought: lines of one question and its right answer with thinking."""
    random = Random(seed)
    rows = [json.loads(line) for line in thought.open()]
    for number in range(DIALOGS * len(rows)):
        turns = random.choices(rows, k=random.randint(1, MOST_TURNS))
        domain = {"source": turns[-1]["source"], "domain": turns[-1]["domain"]}
        yield {"id": f"fused-{number}", **domain, "messages": _both_modes(turns, random)}


def _both_modes(turns: Sequence[Mapping[str, Any]], random: Random) -> list[dict[str, Any]]:
    """Each turn's question with flags, and its answer in the mode that they set."""
    messages = _system(random)
    for turn in turns:
        question, answer = turn["messages"]
        messages.append(_with_flag(question, random))
        messages.append(answer if thinks(messages) else {**answer, "reasoning_content": ""})
    return messages


def _system(random: Random) -> list[dict[str, Any]]:
    """No message, or in four of ten dialogs the system's, with a flag or without."""
    if random.random() >= 0.4:
        return []
    return [{"role": "system", "content": f"{SYSTEM} {random.choice(OF_SYSTEM)}".strip()}]


def _with_flag(message: dict[str, Any], random: Random) -> dict[str, Any]:
    return {**message, "content": f"{message['content']} {random.choice(OF_TURN)}".strip()}


def _drawn(random: Random, fewest: int = 3) -> problems.Problem:
    return problems.draw(random.choice(problems.KINDS), random, fewest)


def _asked(problem: problems.Problem) -> dict[str, Any]:
    return {"role": "user", "content": problem.question}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=("cold-start", "tasks", "flagged", "fuse"))
    parser.add_argument("thought", nargs="?", type=Path, help="of fuse: dialogs with thinking")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--fewest", type=int, default=3, help="steps of a problem (3, of 8)")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    random = Random(f"{given.what}/{given.seed}")
    makes: dict[str, Callable[[Random, int], dict[str, Any]]] = {
        "cold-start": cold_start,
        "tasks": task,
        "flagged": flagged,
    }
    made = (
        fuse(given.thought, given.seed)
        if given.what == "fuse"
        else (makes[given.what](random, given.fewest) for _ in range(given.count))
    )
    given.out.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in made)
    write_whole(given.out, lines)


if __name__ == "__main__":
    main()
