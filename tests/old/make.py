"""Make the things of an earlier commit: PYTHONPATH=.:tests python tests/old/make.py

Run it in a checkout of that commit, with this file and `going_on.py` put there. README.md says of
which commit the things are, and what they are for. It writes old.tar.xz and expected.json here.
"""

import contextlib
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from going_on import CHAIN, CLEAN, FINISH_TOKENS, RUNS, begin, go_on
from ranks import run_ranks

from data_prep.indexed import IndexedWriter

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TIME_NS = 1_000_000_000_000_000_000  # of inputs, which a plan notes
STAGE = """
[stages.{name}]
tokens = {tokens}
sequence_length = 16
max_epochs = 4
"""
WORDS = {
    "eng_Latn": "the river and the mill are at the end of the village where winter is long and "
    "farmers who have been there before them would say that it was always so with the bridge",
    "deu_Latn": "der Fluss und die Mühle sind am Ende des Dorfes wo der Winter lang ist und die "
    "Bauern die vor ihnen da waren würden sagen dass es mit der Brücke immer so gewesen ist",
}


def tool(*words):
    subprocess.run([sys.executable, ROOT / "tools" / words[0], *words[1:]], check=True)


def main():
    with tempfile.TemporaryDirectory() as home:
        os.chdir(home)
        write_text()
        clean()
        tokenize()
        mix()
        write_token_files()
        for name in RUNS:
            assert set(run_ranks(begin, 2, home, name)) == {True}, name
        tool("convert_checkpoint.py", "to-hf", "runs/sources", "hf")
        expected = {name: expect(home, name) for name in (*RUNS, *CHAIN)}
        expected["begun"] = finish_begun(home)
        pack(expected)


def write_text():
    """Two files of documents, of which every fifth has a copy in the other file."""
    Path("raw").mkdir()
    words = random.Random(0)
    texts = [
        " ".join(words.choices(WORDS[language].split(), k=60))
        for n in range(10)
        for language in WORDS
    ]
    for number, name in enumerate(("a", "b")):
        rows = [(k, text) for k, text in enumerate(texts) if k % 5 == 0 or k % 2 == number]
        lines = (json.dumps({"id": f"{name}{k}", "text": text}) for k, text in rows)
        Path(f"raw/{name}.jsonl").write_text("\n".join(lines) + "\n")
    settle_times("raw")


def settle_times(folder):
    for path in sorted(Path(folder).rglob("*")):
        os.utime(path, ns=(TIME_NS, TIME_NS))


def clean():
    """A cleaning that has ended, and one whose first task of two is done."""
    from data_prep.clean import plan, stages
    from data_prep.clean.settings import CleaningInput, CleanSettings

    tool(*CLEAN, "clean")
    settle_times("clean/documents")
    notes = CleaningInput("notes", "raw", "reference")
    settings = CleanSettings((notes,), "clean_begun", tasks=2, filters=False)
    files = plan.find_files(settings)
    plan.begin(settings, files)
    label = stages.stages(settings, plan.input_bytes(files))[0]
    stages._Local(label, stages._logs(settings, label)).run_task(0)


def tokenize():
    """Shards, and a folder in which one group is done and the shards of the other are missing."""
    from data_prep import tokenizer
    from data_prep.tokenization import corpus
    from data_prep.tokenization.plan import Settings

    texts = [json.loads(line)["text"] for line in Path("raw/a.jsonl").read_text().splitlines()]
    tokenizer.train(texts, 300, "tokenizer")
    settings = Settings("tokenizer", shard_tokens=64_000_000, group_bytes=1)
    for out, task, tasks in (("tokens", 0, 1), ("tokens_begun", 0, 2)):
        options = corpus.CorpusOptions(1, "auto", task, tasks)
        corpus.tokenize(["clean/documents"], Path(out), settings, options)

    def stopped(*args):
        raise KeyboardInterrupt

    corpus._write_shards = stopped
    with contextlib.suppress(KeyboardInterrupt):
        options = corpus.CorpusOptions(1, "auto", 1, 2)
        corpus.tokenize(["clean/documents"], Path("tokens_begun"), settings, options)


def mix():
    recipe = "held_out = 0.1\n" + STAGE.format(name="general", tokens=768)
    Path("recipe.toml").write_text(recipe + STAGE.format(name="reasoning", tokens=512))
    mix = ("mix", "tokens", "--recipe", "recipe.toml", "--no-page", "--out", "curriculum.json")
    tool("mix_curriculum.py", *mix)


def write_token_files():
    numbers = np.random.default_rng(0)
    for name, documents in (("a", 12), ("b", 9), ("c", 10)):
        with IndexedWriter(f"data/{name}", np.uint16) as writer:
            for _ in range(documents):
                writer.add_document(numbers.integers(0, 32, 40))


def expect(home, name):
    """The next step of this commit's code, in a copy."""
    with tempfile.TemporaryDirectory() as elsewhere:
        copy = Path(elsewhere) / "copy"
        shutil.copytree(home, copy)
        (steps,) = run_ranks(go_on, 1, str(copy), name)
    return steps


def finish_begun(home):
    """The results of the begun folders: {file of the tokenization: its sha256}."""
    with tempfile.TemporaryDirectory() as elsewhere:
        copy = Path(elsewhere) / "copy"
        shutil.copytree(home, copy)
        with contextlib.chdir(copy):
            tool(*FINISH_TOKENS)
            tool(*CLEAN, "clean_begun")
        out = copy / "tokens_begun"
        files = sorted(p for p in out.rglob("*") if p.suffix in (".bin", ".idx", ".docs"))
        for path in (copy / "clean/documents").iterdir():
            assert (copy / "clean_begun/documents" / path.name).read_bytes() == path.read_bytes()
        digests = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
        return {path.relative_to(out).as_posix(): digest for path, digest in digests.items()}


def pack(expected):
    """All of it, with neither times nor owners, and the numbers as text."""

    def plain(entry):
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = ""
        entry.mtime = TIME_NS // 1_000_000_000
        entry.mode = 0o755 if entry.isdir() else 0o644
        left_out = ("/lock", ".log", "executor.json", "stats", ".png")
        return None if entry.name.endswith(left_out) else entry

    with tarfile.open(HERE / "old.tar.xz", "w:xz", preset=9) as archive:
        for name in sorted(os.listdir(".")):
            archive.add(name, filter=plain)
    lines = ",\n".join(
        f"{json.dumps(name)}: {json.dumps(rows)}".replace('{"step"', '\n {"step"')
        for name, rows in expected.items()
    )
    (HERE / "expected.json").write_text(f"{{\n{lines}\n}}\n")


if __name__ == "__main__":
    main()
