"""Speed of tokenizing dialogs, next to the reference encoder, one conversation after the other.

    python benchmarks/tokenize_dialogs.py --tokenizer QWEN3    # a folder: data_prep/published.py

Ours is `mq3 data dialogs` with one worker: read, parse, check, render, encode, write,
checksums. The reference is a loop over the lines: json.loads and `ChatTokenizer`, which finds the
trained tokens by the offsets of Hugging Face's tokenizers; it writes nothing, and gets the first
`--theirs` MB. Both give the same ids and masks, which is compared here, too.

In turns, each a process of its own, `--rounds` times. `MB/s` is the text of messages in UTF-8 per
second of CPU time, of one core; the seconds of `start` (imports, tokenizer), which do not grow with
the files, are not in it. Figures are medians, `ratio` is the median of each round's.

gsm8k is its questions and answers, 0.5 KB in all, again and again with one word in twenty made of
the halves of two others, so that later rounds have new words as real text has. English is prose in
answers of 8 KB, every second with 8 KB of thinking; the 119 languages are SIB-200's sentences in
answers of that length. A chat has four queries with answers of 1 KB and becomes four samples, of
which later ones repeat the turns before them.
"""

import argparse
import json
import random
import shutil
import statistics
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.tokenize_corpus import again_and_again, english, languages, rows, run

_OURS = """
import shutil, sys, time
from pathlib import Path
from megatron_qwen3.posttrain.dialogs.samples import Choices
from megatron_qwen3.posttrain.dialogs.tokenizing import DialogOptions, tokenize
one, source, out, tokenizer = sys.argv[1:]
seconds = [time.process_time()]
for part in (one, one, source):
    shutil.rmtree(out, ignore_errors=True)
    tokenize([part], Path(out) / "set", tokenizer, Choices(), DialogOptions())
    seconds.append(time.process_time())
start = seconds[2] - seconds[1]
print(seconds[1], seconds[3] - seconds[2] - start)
"""
_THEIRS = """
import json, sys, time
from pathlib import Path
from data_prep.tokenizer import load
from megatron_qwen3.chat import ChatTokenizer, split_by_query
from megatron_qwen3.posttrain.dialogs.dialog_set import DialogSet
one, source, out, tokenizer = sys.argv[1:]
chat, samples = ChatTokenizer(load(tokenizer)), []
start = time.process_time()
with open(source, encoding="utf-8") as file:
    for line in file:
        for messages in split_by_query(json.loads(line)["messages"]):
            samples.append(chat.encode_conversation(messages, train_history=False))
print(start, time.process_time() - start)
ours = DialogSet(Path(out) / "set")
for n, sample in enumerate(samples):
    ids, trained = ours.read(n)
    assert (ids.tolist(), trained.tolist()) == (sample.ids, sample.trained), n
"""
Dialog = list[dict[str, Any]]


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokenizer", type=Path, required=True, help="a folder")
    parser.add_argument("--megabytes", type=float, default=50, help="of each corpus (50)")
    parser.add_argument("--theirs", type=float, default=3, help="MB for the reference (3)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmark_tokenize_dialogs"))
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    print("corpus            MB    dialogs   ours MB/s    start   reference MB/s    start   ratio")
    for name, dialogs in (
        ("gsm8k", gsm8k),
        ("English, 8 KB", lambda: answers(english())),
        ("119 languages", lambda: answers(languages())),
        ("chats", chats),
    ):
        measure(name, dialogs, given)
    shutil.rmtree(given.folder)


def measure(name: str, dialogs: Callable[[], Iterator[Dialog]], given: argparse.Namespace) -> None:
    """All rounds of one corpus; one line."""
    one, whole, part = (given.folder / f"{kind}.jsonl" for kind in ("one", "whole", "part"))
    write(one, dialogs(), 0)
    size, count = write(whole, dialogs(), given.megabytes)
    part_size, _ = write(part, dialogs(), given.theirs)
    rounds = []
    for _ in range(given.rounds):
        our_start, ours = run(_OURS, one, whole, given)
        their_start, theirs = run(_THEIRS, one, part, given)
        rates = size / ours, part_size / theirs
        rounds.append((rates[0], our_start, rates[1], their_start, rates[0] / rates[1]))
    ours, our_start, theirs, their_start, ratio = map(statistics.median, zip(*rounds, strict=True))
    print(
        f"{name:13} {size:6.1f} {count:10,} {ours:11.1f} {our_start:8.1f} {theirs:16.2f} "
        f"{their_start:8.1f} {ratio:7.1f}",
        flush=True,
    )


def write(path: Path, dialogs: Iterator[Dialog], megabytes: float) -> tuple[float, int]:
    """(MB of messages' text, dialogs), as JSONL of the first dialogs of at least that many MB."""
    size = count = 0
    with path.open("w", encoding="utf-8") as file:
        for messages in dialogs:
            row = {"id": f"dialog-{count}", "messages": messages, "source": "benchmark"}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            size += sum(
                len(str(message.get(name, "")).encode())
                for message in messages
                for name in ("content", "reasoning_content")
            )
            count += 1
            if size >= megabytes * 1e6:
                break
    return size / 1e6, count


def gsm8k() -> Iterator[Dialog]:
    """A question and its answer."""
    found = rows("gsm8k_train")
    questions = again_and_again([row["question"] for row in found])
    texts = again_and_again([row["answer"] for row in found])
    for question, text in zip(questions, texts, strict=True):
        yield [_user(question), _assistant(text)]


def answers(pages: Iterator[str]) -> Iterator[Dialog]:
    """Answers of 8 KB, every second with as much thinking."""
    while True:
        thinking = "\n".join(islice(pages, 3))[:8000]
        text = "\n".join(islice(pages, 3))[:8000]
        yield [_user(text[:100]), _assistant(text)]
        yield [_user(thinking[:100]), {**_assistant(text), "reasoning_content": thinking}]


def chats() -> Iterator[Dialog]:
    """Four queries, each with an answer."""
    chance = random.Random(0)
    for page in english():
        cuts = [chance.randrange(len(page) - 1000) if len(page) > 1000 else 0 for _ in range(4)]
        turns = ([_user(page[cut : cut + 100]), _assistant(page[cut : cut + 1000])] for cut in cuts)
        yield [message for turn in turns for message in turn]


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text or "?"}


def _assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text.strip() or "."}


if __name__ == "__main__":
    main()
