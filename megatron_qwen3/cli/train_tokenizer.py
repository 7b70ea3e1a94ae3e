"""Train Qwen's kind of tokenizer on a sample of documents in which no language drowns the others.

    mq3 data tokenizer data/clean/documents --out data/tokenizer --vocab-size 151669
    mq3 data tokenizer wiki/*.jsonl.zst --out data/tokenizer --vocab-size 32000 \\
        --sample-mb 200 --exponent 0.3 --field text=content language=lang

Byte-level BPE with Qwen3's normalisation, split pattern and 26 control tokens, which --vocab-size
includes. Documents are those of mq3 data tokenize. The table says how much of each language
was sampled, and how many bytes one token stands for in it.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_prep.documents import NAMES
from data_prep.tokenization.sample import DocumentSample
from data_prep.tokenizer import DocumentTokenizer, check_vocab_size, train
from megatron_qwen3 import tables
from megatron_qwen3.bar import Bar, in_megabytes
from megatron_qwen3.cli import grammar
from megatron_qwen3.cli.ending import ending
from megatron_qwen3.cli.parser import Parser
from megatron_qwen3.cli.tokenize_corpus import amount, pairs
from megatron_qwen3.config import ConfigError
from megatron_qwen3.shown import plain

MEASURED_BYTES = 100_000  # of each language's text, for bytes per token
ROWS_SHOWN = 20


@ending()
def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """The exit status: 0 done, 2 something is wrong."""
    given = _parser(prog).parse_args(arguments)
    if (given.out / "tokenizer.json").exists():
        raise ConfigError(f"{given.out} holds a tokenizer; remove it, or choose another folder")
    check_vocab_size(given.vocab_size)
    if not 0 <= given.exponent < math.inf:
        raise ConfigError(f"--exponent = {given.exponent:g}; valid: 0 or more")
    sample = DocumentSample(
        given.inputs,
        pairs(given.field, "--field"),
        amount(given.sample_mb, 1e6, "--sample-mb"),
        given.exponent,
        given.seed,
        amount(given.read_gb, 1e9, "--read-gb"),
    )
    given.out.mkdir(parents=True, exist_ok=True)  # an error here comes before the reading
    texts = _train(sample, given.vocab_size, given.out)
    _print(sample, texts, given.out)
    return 0


def _train(sample: DocumentSample, vocab_size: int, out: Path) -> dict[str, list[str]]:
    """Train on the sample and return some of each language's text."""
    kept: dict[str, list[str]] = {}
    with Bar("", 2 * sample.num_bytes, in_megabytes) as bar:
        bar.stage("measuring languages", sample.num_bytes, sample.num_bytes)
        sample.measure(bar.advance)
        bar.stage("reading the sample", sample.num_bytes, sample.num_bytes)

        def texts() -> Iterator[str]:
            for language, text in sample.texts(bar.advance):
                some = kept.setdefault(language, [])
                if sum(map(len, some)) < MEASURED_BYTES:
                    some.append(text)
                yield text
            bar.say("merging pairs")

        train(texts(), vocab_size, out)
    return kept


def _parser(prog: str | None) -> Parser:
    parser = Parser(prog=prog, description=__doc__)
    add = parser.add_argument
    add("inputs", nargs="+", help="files or folders of documents, here or by URL (s3://, hf://)")
    add("--out", type=Path, required=True, metavar="FOLDER", help="of the tokenizer; is made")
    add("--vocab-size", type=int, required=True, help="control tokens included; Qwen3's: 151669")
    grammar.add_size(add, "--sample", "--sample-mb", 1e6, "text to train on (1GB)", default=1000)
    add("--exponent", type=float, default=0.5, help="of a language's share; 0: all alike (0.5)")
    text = "most bytes that it reads of the inputs (20GB)"
    grammar.add_size(add, "--read", "--read-gb", 1e9, text, default=20)
    add("--field", nargs="+", default=[], metavar="OURS=THEIRS", help=f"of {', '.join(NAMES)}")
    add("--seed", type=int, default=0, metavar="N", help="of the sample (0)")
    return parser


def _print(sample: DocumentSample, texts: dict[str, list[str]], out: Path) -> None:
    tokenizer = DocumentTokenizer(out)
    lines = [["language", "MB in the corpus", "MB sampled", "bytes/token"]]
    for language, size in sample.available.most_common(ROWS_SHOWN):
        some = texts.get(language, [])
        tokens = len(tokenizer.encode_flat(some).tokens) - len(some)
        ratio = f"{sum(len(text.encode()) for text in some) / tokens:.2f}" if tokens else "–"
        sampled = sample.sampled[language]
        lines.append([language, f"{size / 1e6:,.2f}", f"{sampled / 1e6:,.2f}", ratio])
    hidden = len(sample.available) - ROWS_SHOWN
    if hidden > 0:
        lines.append([f"{hidden} more"])
    console = tables.console()
    table = tables.table(lines)
    console.print(table)
    console.print(plain(f"{out}: {tokenizer.vocab_size:,} tokens"), soft_wrap=True)
