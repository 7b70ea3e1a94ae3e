"""Tokenize documents into Megatron's .bin/.idx shards, shuffled, in the order of their labels.

    mq3 data tokenize data/clean/documents --out data/tokens \\
        --tokenizer data/tokenizer
    mq3 data tokenize books.jsonl.gz --out data/books --tokenizer data/tokenizer \\
        --default source=books domain=books language=eng_Latn
    mq3 data tokenize web/*.parquet --out data/web --tokenizer data/tokenizer \\
        --field text=content language=lang --task-id $SLURM_ARRAY_TASK_ID \\
        --num-tasks $SLURM_ARRAY_TASK_COUNT
    mq3 data tokenize data/clean/documents --out data/packed \\
        --tokenizer data/tokenizer --pack 32768

A document is a line of JSON, or a row of Parquet, with "text", maybe "id", and maybe the labels
"source", "language", "domain", "quality" and "education" (0 to 1), beside them or in "metadata".
OUT/inventory.parquet, written last, lists the labels of each shard's parts; OUT/problems lists
lines that were left out. Combinations of labels share shards, which mix_curriculum.py takes apart;
--apart gives each of them shards of its own, for other readers.
Other fields of one value (url, date, licence) stay beside each document's origin, at most 4,096
bytes of them (--keep-fields).

--pack TOKENS lays documents out in rows of that many tokens, for runs of this sequence length: none
that fits into a row is cut, each row ends with filler that is never trained on. A longer document
fills whole rows, and its rest is packed like a document.

The same documents, seed and sizes give the same bytes, with any number of workers and tasks. A run
that was stopped or killed goes on where it was when the same command is run again.
"""

import math
import time
from collections.abc import Sequence
from pathlib import Path

from data_prep.documents import NAMES
from data_prep.engines import AUTO, ENGINES
from data_prep.inventory import INVENTORY, Inventory, paths, totals
from data_prep.labels import Labels
from data_prep.tokenization.corpus import CorpusOptions, tokenize
from data_prep.tokenization.groups import TokenizeReport
from data_prep.tokenization.plan import DEFAULTED, Settings
from megatron_qwen3.bar import duration
from megatron_qwen3.cli import grammar
from megatron_qwen3.cli.ending import ending
from megatron_qwen3.cli.inspect_shards import print_table
from megatron_qwen3.cli.parser import Parser
from megatron_qwen3.config import ConfigError
from megatron_qwen3.cores import cores
from megatron_qwen3.shown import counted, shown

ROWS_SHOWN = 12
_MUCH_FILLER = 2  # percent


@ending(goes_on=True)
def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """The exit status: 0 done, 2 something is wrong, 130 or 143 stopped."""
    given = _parser(prog).parse_args(arguments)
    start = time.monotonic()
    settings = Settings(
        tokenizer=given.tokenizer,
        seed=given.seed,
        names=pairs(given.field, "--field"),
        defaults=pairs(given.default, "--default"),
        shard_tokens=_tokens(given.shard_mtokens),
        group_bytes=amount(given.group_gb, 1e9, "--group-gb"),
        pack=given.pack,
        keep_fields=tuple(given.keep_fields),
        apart=given.apart,
    )
    options = CorpusOptions(
        given.workers, given.engine, given.task, given.of, given.on_error == "stop"
    )
    report = tokenize(given.inputs, given.out, settings, options)
    if report is None:
        print(shown(f"task {given.task} of {given.of} is done; the last task writes the inventory"))
    else:
        _print(report, given.out, time.monotonic() - start)
    return 0


def _parser(prog: str | None) -> Parser:
    parser = Parser(prog=prog, description=__doc__)
    add = parser.add_argument
    add("inputs", nargs="+", help="files or folders of documents, here or by URL (s3://, hf://)")
    add("--out", type=Path, required=True, metavar="FOLDER", help="of the shards; is made")
    text = "of the tokenizer, its tokenizer.json, or its name on Hugging Face's hub"
    add("--tokenizer", required=True, metavar="FOLDER", help=text)
    add("--field", nargs="+", default=[], metavar="OURS=THEIRS", help=f"of {', '.join(NAMES)}")
    add("--default", nargs="+", default=[], metavar="NAME=VALUE", help=f"of {', '.join(DEFAULTED)}")
    add(
        "--keep-fields",
        nargs="+",
        default=["all"],
        metavar="NAME",
        help="fields that stay in the provenance: names, none, or all single values (all)",
    )
    text = "of the order of documents (default 0)"
    add("--seed", type=int, default=0, metavar="N", help=text)
    text = "most tokens of a shard: 64M (1G; apart: 64M)"
    grammar.add_size(add, "--shard-tokens", "--shard-mtokens", 1e6, text, is_counted=True)
    add("--apart", action="store_true", help="each combination of labels has shards of its own")
    text = "input that is shuffled as one (64GB)"
    grammar.add_size(add, "--group", "--group-gb", 1e9, text, default=64)
    add("--pack", type=int, default=0, metavar="TOKENS", help="lay out in rows of this length")
    add("--on-error", choices=("skip", "stop"), default="skip", help="at a bad line (skip)")
    text = "processes, of about 0.7 GB each (cores)"
    add("--workers", type=int, default=cores(), metavar="N", help=text)
    add("--engine", choices=(AUTO, *ENGINES), default=AUTO, help="all give the same ids")
    grammar.add_share(add)
    return parser


def pairs(words: Sequence[str], option: str) -> dict[str, str]:
    """NAME=VALUE words of the command line."""
    pairs = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals and value):
            raise ConfigError(f"{option}: {word!r} is not NAME=VALUE")
        pairs[name] = value
    return pairs


def amount(value: float, unit: float, option: str) -> int:
    """A number of millions or billions from the command line."""
    if not 1 <= value * unit < math.inf:
        raise ConfigError(f"{option} = {value:g}; valid: a number of at least {1 / unit:g}")
    return round(value * unit)


def _tokens(millions: float | None) -> int | None:
    return None if millions is None else amount(millions, 1e6, "--shard-mtokens")


def _print(report: TokenizeReport, out: Path, seconds: float) -> None:
    """Print the contents of the shards, and the count of lines left out."""
    print_table(report.inventory, ("source", "language"), ROWS_SHOWN)
    if report.inventory.cells[0].packed:
        print(shown(_packed(report.inventory)))
    if report.problems:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in report.problems.most_common())
        print(shown(f"left out of {report.lines:,} lines: {kinds}; see {out / 'problems'}"))
    cells, shards = len(report.inventory.cells), len(paths(report.inventory))
    found = f"{counted(cells, 'cell')} in {counted(shards, 'shard')}"
    print(shown(f"{out / INVENTORY}: {found}, in {duration(seconds)}"))


def _packed(inventory: Inventory) -> str:
    """How full the rows of shards are, and how many documents were cut."""
    packed = inventory.cells[0].packed
    assert packed is not None
    ways = totals(inventory, [name for name in Labels._fields if name != "length"])
    tokens, filler, cut = (sum(r[k] for r in ways.values()) for k in ("tokens", "filler", "cut"))
    share = 100 * filler / tokens
    told = (
        f"{tokens // packed.row_length:,} rows of {packed.row_length:,} tokens: {filler:,} "
        f"tokens of filler ({share:.2g} %), {counted(cut, 'document')} longer than a row cut"
    )
    if share < _MUCH_FILLER:
        return told
    return (
        f"{told}; documents of other labels never share a row, and {len(ways):,} combinations of "
        f"labels have {tokens / len(ways):,.0f} tokens each: fewer labels, a larger --group-gb or "
        "--shard-mtokens, shorter rows leave less filler"
    )
