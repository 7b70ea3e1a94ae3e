"""Writes what post-training begins with: worked dialogs, tasks with verifiers, and fused dialogs.

    python -m examples.reproduce.dialogs cold-start --count 3000 --out worked.jsonl
    python -m examples.reproduce.dialogs tasks --count 4000 --out tasks.jsonl
    python -m examples.reproduce.dialogs flagged --count 4000 --out flagged.jsonl
    python -m examples.reproduce.dialogs fuse thought/dialogs.jsonl --out fused.jsonl

`cold-start`: questions with thinking that merges steps now and then, and right answers: a few
hundred steps of them give the form and leave reinforcement learning room. `tasks`: questions and
the verifier of each. `flagged`: the same in dialogs of several turns with flags. `fuse`: the right
thinking of a model, as `mq3 data build distill` kept it, beside as many other questions that are
answered at once, with flags, in dialogs of several turns.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from examples.reproduce import problems
from megatron_qwen3.chat import thinks
from megatron_qwen3.posttrain.building.flags import Answered, FlagSettings, fused
from megatron_qwen3.posttrain.building.queries import Query
from megatron_qwen3.posttrain.generators.answers import Answer
from megatron_qwen3.storage.whole import write_whole

MERGED = (0.8, 0.15, 0.05)  # of the cold start's lines: of one step, of two, of three
# Turns whose flag stands in an earlier one are many, and most flags follow the other one: a small
# model obeys a flag that it has before it at once. Of those further back it asks whether there is
# any /no_think, and which was the last only if it has to.
FLAGS = FlagSettings(flagged_thinking=0.1, joined=0.95, several_flags=0.2, system_flags=0.25)
AFTER_OTHER = 0.7  # of the flags
VERSIONS = 4  # of every sample, with other flags and neighbours: few would be learned by heart
SYSTEM = "You are a helpful assistant."
OF_TURN = ("", "/think", "/no_think", "/think /no_think", "/no_think /think")
OF_SYSTEM = ("", "/think", "/no_think")
BARE = 0.6  # of the last turns have no flag, so that an earlier one is in force


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
    messages: list[dict[str, Any]] = []
    if random.random() < 0.4:
        text = f"{SYSTEM} {random.choice(OF_SYSTEM)}".strip()
        messages.append({"role": "system", "content": text})
    for _ in range(random.randint(0, 3)):
        before = _drawn(random, fewest)
        messages.append(_with_flag(_asked(before), random))
        messages.append({"role": "assistant", "content": before.answer})
    asked = row["messages"][-1]
    messages.append(asked if random.random() < BARE else _with_flag(asked, random))
    return {**row, "messages": messages, "rewards": {} if thinks(messages) else {"verifier": 0}}


def _with_flag(message: dict[str, Any], random: Random) -> dict[str, Any]:
    return {**message, "content": f"{message['content']} {random.choice(OF_TURN)}".strip()}


def fuse(thought: Path, seed: int) -> Iterator[dict[str, Any]]:
    """Dialogs of both modes. thought: lines of one question and one answer with thinking each."""
    random = Random(seed)
    rows = [json.loads(line) for line in thought.open()]
    samples = [_thinking(row, number) for number, row in enumerate(rows)]
    samples += [_at_once(_drawn(random), number) for number in range(len(rows))]
    for version in range(VERSIONS):
        for row in fused(samples, replace(FLAGS, seed=version)):
            for message in row["messages"]:
                if message["role"] == "user" and random.random() < AFTER_OTHER:
                    message["content"] = _after_other(message["content"])
            yield row


def _after_other(text: str) -> str:
    """The text with the other flag before its last one, which it does not change."""
    before, flag, after = text.rpartition("/no_think" if text.endswith("/no_think") else "/think")
    other = "/think" if flag == "/no_think" else "/no_think"
    return f"{before}{other} {flag}" if flag and not after else text


def _thinking(row: dict[str, Any], number: int) -> Answered:
    question, answer = row["messages"]
    text = f"<think>\n{answer['reasoning_content']}\n</think>\n\n{answer['content']}"
    query = Query(f"thinking-{number}", (question,), "", row["source"], row["source"])
    return Answered(query, "thinking", lambda: Answer(text, "stop"))


def _at_once(problem: problems.Problem, number: int) -> Answered:
    query = Query(f"at-once-{number}", (_asked(problem),), "", problem.kind, problem.kind)
    return Answered(query, "non-thinking", lambda: Answer(problem.answer, "stop"))


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
