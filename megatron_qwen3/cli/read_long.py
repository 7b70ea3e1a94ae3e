"""Measure how well a model reads beyond the length that it was trained with.

    mq3 read-long runs/pretrain_3_long_context --texts books.jsonl --out runs/long
    mq3 read-long export/qwen3-8b --trained 32768 --lengths 32768 65536 131072 \\
        --ways plain yarn --texts books.jsonl --out runs/long
    torchrun --nproc-per-node 8 -m megatron_qwen3 read-long runs/pretrain_3_long_context \\
        --texts books.jsonl --out runs/long parallel.context=8

Texts are documents as mq3 data tokenize reads them; those that are long enough for the
longest length are read, up to --count of them, the same at every length. plain is rotary embedding
and nothing else; yarn (arXiv 2309.00071) and dca (Dual Chunk Attention, arXiv 2402.17463) have one
setting for all lengths, that of the longest: where none exceeds the trained one, yarn is plain;
both is YaRN's frequencies at DCA's positions. own is the model's own table [rope], read where it
has one, changed by rope.KEY=VALUE; the other ways make theirs.

A pass key, which stands at even depths of a text, is found where the model would write all of it,
token for token. For a model that was not trained on words the questions are set otherwise:
--key-said "[{key}]" --key-asked "<{key}".

OUT/report.html draws loss by position and found pass keys, OUT/results.json has all numbers.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.documents import SUFFIXES_IN_FOLDERS, Document, FilePart, files_within, read
from megatron_qwen3 import entry, launcher
from megatron_qwen3.bar import Bar
from megatron_qwen3.cli.ending import ending
from megatron_qwen3.cli.parser import Parser, one_of, or_setting, positive
from megatron_qwen3.config import Config, ConfigError
from megatron_qwen3.generate.load import ModelSource, load, tokenizer_of
from megatron_qwen3.generate.opening import close, joined
from megatron_qwen3.parallel.layout import Layout, check_world_size, near, row_unit
from megatron_qwen3.reading import passkey
from megatron_qwen3.reading.ways import WAYS, as_overrides, settings_of, usual
from megatron_qwen3.settings import ParallelConfig
from megatron_qwen3.shown import shown
from megatron_qwen3.storage.whole import write_whole

if TYPE_CHECKING:
    from megatron_qwen3.reading.measure import Done
    from megatron_qwen3.training.model import Model

BINS = 32  # parts of a text, each a point of the picture
RESULTS, PAGE = "results.json", "report.html"
_SEED = 1


@ending()
def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """The exit status: 0 done, 2 an argument is wrong."""
    given = entry.parse(_parser(prog), arguments)
    _run(given)
    return 0


def _parser(prog: str | None) -> Parser:
    words = passkey.Words()
    parser = Parser(prog=prog, description=__doc__)
    parser.add_argument("model", type=Path, metavar="MODEL", help="checkpoint, run or HF folder")
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="key=value",
        help="as parallel.context=2; rope.KEY=VALUE with --ways own",
    )
    parser.add_argument("--texts", type=Path, required=True, metavar="PATH", help="documents")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument(
        "--trained", type=positive, metavar="N", help="positions; default: as the model says"
    )
    parser.add_argument(
        "--lengths",
        type=or_setting(positive),
        nargs="+",
        metavar="N",
        help="default: trained × 1, 2 and 4",
    )
    parser.add_argument(
        "--ways",
        type=or_setting(one_of(*WAYS)),
        nargs="+",
        metavar="WAY",
        help=f"of {', '.join(WAYS)}; default: all, own where it is not plain",
    )
    parser.add_argument("--count", type=positive, default=32, metavar="N", help="texts (32)")
    parser.add_argument("--keys", type=positive, default=40, metavar="N", help="of a length (40)")
    parser.add_argument("--key-said", default=words.said, metavar="TEXT")
    parser.add_argument("--key-asked", default=words.asked, metavar="TEXT")
    parser.add_argument("--key-digits", type=positive, default=words.digits, metavar="N")
    return parser


def _run(given: argparse.Namespace) -> None:
    """Check all arguments, then measure every way at every length."""
    launcher.check()
    words = passkey.Words(given.key_said, given.key_asked, given.key_digits)
    words.check()
    source = ModelSource(given.model)
    trained = given.trained or source.trained_length()
    lengths = sorted({*(given.lengths or (trained, 2 * trained, 4 * trained))})
    configs = _configs(source, given, trained, lengths[-1])
    first = next(iter(configs.values()))
    _check(given.out, lengths, first.parallel)
    check_world_size(first, launcher.world_size())
    tokenizer = tokenizer_of(first)
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids  # noqa: E731
    texts = _texts(given.texts, lengths[-1] + 1, given.count, encode)
    prompts = {
        length: passkey.make(texts, length, given.keys, words, encode, _SEED) for length in lengths
    }
    layout, rows = joined(first), []
    total = len(configs) * len(lengths) * (len(texts) + given.keys)
    with Bar("texts", total, is_shown=launcher.rank() == 0) as bar:
        for way, config in configs.items():
            model = load(source, config, layout)
            rows += [
                _row(model, way, texts, length, prompts[length], bar.advance) for length in lengths
            ]
            del model
    if launcher.rank() == 0:
        settings = {way: asdict(config.rope) for way, config in configs.items()}
        _write(given, rows, {"trained": trained, "texts": len(texts), "ways": settings}, layout)
    close()


def _configs(
    source: ModelSource, given: argparse.Namespace, trained: int, longest: int
) -> dict[str, Config]:
    """The settings of each way. ConfigError for one of [rope], which the other ways set."""
    config_of = partial(source.config, world_size=launcher.world_size(), generates=False)
    ropes = [pair for pair in given.settings if pair.startswith("rope.")]
    own = config_of([pair for pair in given.settings if pair not in ropes])
    ways = given.ways or usual(own.rope)
    others = [way for way in ways if way != "own"]
    if ropes and (others or not given.ways):
        raise ConfigError(
            f"{ropes[0]}: {', '.join(others)} set the table [rope] themselves; valid: --ways own, "
            "which is the model's with your changes"
        )
    configs = {}
    for way in ways:
        rope = settings_of(way, trained, longest, own.rope)
        configs[way] = config_of([*given.settings, *(() if way == "own" else as_overrides(rope))])
    return configs


def _check(out: Path, lengths: Sequence[int], parallel: ParallelConfig) -> None:
    """ConfigError where ranks cannot share rows of a length, or nothing can be written to `out`."""
    unit, settings = row_unit(parallel)
    for length in lengths:
        if length % unit:
            raise ConfigError(
                f"--lengths: {length} is no multiple of {unit}, which {settings} needs; valid near "
                f"it: {near(length, unit)}"
            )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {out}: {error.strerror or error}") from None
    if not os.access(out, os.W_OK | os.X_OK):
        raise ConfigError(f"--out {out}: no file can be written there")


def _texts(path: Path, tokens: int, count: int, encode: passkey.Encode) -> list[list[int]]:
    """The first `tokens` of documents that have so many. ConfigError where none has."""
    found: list[list[int]] = []
    longest = 0
    try:
        for document in _documents(path):
            ids = encode(document.text)
            longest = max(longest, len(ids))
            found += [ids[:tokens]] if len(ids) >= tokens else []
            if len(found) == count:
                return found
    except OSError as error:
        raise ConfigError(f"{error.filename or path}: {error.strerror or error}") from None
    if not found:
        raise ConfigError(
            f"{path}: no document has {tokens:,} tokens, the longest {longest:,}; give "
            "longer ones, or smaller --lengths"
        )
    return found


def _documents(path: Path) -> Iterator[Document]:
    """Of a file, or of all files of a folder that hold documents, in order."""
    files = [path]
    if path.is_dir():
        files = [file for file in files_within(path) if file.name.endswith(SUFFIXES_IN_FOLDERS)]
        if not files:
            raise ConfigError(f"{path}: no file there ends in {', '.join(SUFFIXES_IN_FOLDERS)}")
    for file in files:
        for batch in read(FilePart(str(file), 0, file.stat().st_size), {}):
            yield from batch.documents


def _row(
    model: Model,
    way: str,
    texts: Sequence[Sequence[int]],
    length: int,
    prompts: Sequence[passkey.Prompt],
    done: Done,
) -> dict[str, Any]:
    from megatron_qwen3.reading import measure

    nats = measure.losses(model, texts, length, min(BINS, length), done)
    found = measure.keys_found(model, prompts, done)
    return {
        "way": way,
        "length": length,
        "nats": nats,
        "last_quarter": measure.last_quarter(nats),
        "keys": sum(found) / len(found),
        "found": [
            [prompt.depth, is_found] for prompt, is_found in zip(prompts, found, strict=True)
        ],
    }


def _write(
    given: argparse.Namespace, rows: list[dict[str, Any]], facts: dict[str, Any], layout: Layout
) -> None:
    from megatron_qwen3.pages import reading

    content = {"model": str(given.model), **facts, "layout": layout.counts(), "rows": rows}
    write_whole(given.out / RESULTS, [json.dumps(content, indent=1).encode()])
    reading.write(content, given.out / PAGE)
    reading.tell(content)
    print(shown(f"wrote {given.out / PAGE}"))
