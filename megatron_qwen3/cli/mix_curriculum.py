"""Mix tokenized documents into a curriculum of stages, and find the text of a trained row again.

    mq3 data mix SHARDS [KEY=VALUE …] [--recipe RECIPE.toml] [--out FILE.json]
    mq3 data mix show FILE.json
    mq3 data mix locate RUN STEP ROW

mix reads the inventory that mq3 data tokenize left in the folder SHARDS, and a recipe,
which gives the sources of each stage; examples/curriculum.toml is the one for Qwen3's stages and
explains every key. It prints the documents of each stage, writes the curriculum for
data.curriculum, and beside it a page with tables and pictures. A recipe that cannot be met, with
more tokens than may be read, is refused with the way out. locate lists the documents that a row of
a step was made of, and where they came from.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep import curriculum as manifests
from data_prep import fingerprint
from data_prep.curriculum import Curriculum, Stage
from data_prep.inventory import Inventory, paths, read_inventory
from data_prep.mixing import recipe as recipes
from data_prep.mixing.plan import plan
from megatron_qwen3 import entry, tables
from megatron_qwen3.cli.ending import ending
from megatron_qwen3.cli.parser import Parser
from megatron_qwen3.config import ConfigError
from megatron_qwen3.hub import tokenizer_folder
from megatron_qwen3.pretrain.record import ReadBefore, RunRecord
from megatron_qwen3.shown import plain, shown, shown_text

if TYPE_CHECKING:
    from megatron_qwen3.pretrain.provenance import RowOrigin

ROOT = Path(__file__).resolve().parents[2]
_EXAMPLES = """examples:
  mq3 data mix data/tokens --out data/curriculum.json
  mq3 data mix data/tokens general.tokens=2e9 reasoning.tokens=4e8 \\
      long_context.tokens=5e7 general.max_epochs=2
  mq3 data mix data/tokens --recipe mine.toml --after runs/8b/general
  mq3 data mix show data/curriculum.json --json
  mq3 data mix locate runs/8b/pretrain_1_general 1200 7 --text
"""


@ending()
def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """The exit status: 0 done, 2 something is wrong with a file, a recipe or a name."""
    given = entry.parse(_parser(prog), arguments)
    given.run(given)
    return 0


def _parser(prog: str | None) -> Parser:
    parser = Parser("mix", prog=prog, description=__doc__, epilog=_EXAMPLES)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    text: dict[str, Any] = {"description": __doc__, "epilog": _EXAMPLES}
    mix = commands.add_parser(
        "mix", help="write a curriculum from an inventory and a recipe", **text
    )
    mix.set_defaults(run=_mix)
    mix.add_argument("shards", type=Path, metavar="SHARDS", help="folder with an inventory.parquet")
    mix.add_argument(
        "settings", nargs="*", metavar="KEY=VALUE", help="replaces a value of the recipe"
    )
    default = ROOT / "examples" / "curriculum.toml"
    is_there = default.is_file()  # it comes with a checkout, not with an installed package
    mix.add_argument(
        "--recipe",
        type=Path,
        default=default,
        required=not is_there,
        metavar="FILE",
        help="default: %(default)s",
    )
    mix.add_argument("--out", type=Path, metavar="FILE", help="default: curriculum.json in SHARDS")
    mix.add_argument(
        "--after", type=Path, metavar="RUN", help="go on from the tokens that this run has read"
    )
    mix.add_argument("--no-page", action="store_true", help="write no page with pictures")
    show = commands.add_parser("show", help="print the documents of a curriculum's stages", **text)
    show.set_defaults(run=_show)
    show.add_argument("curriculum", type=Path, metavar="FILE.json")
    show.add_argument("--json", action="store_true", help="print one JSON object, with all rows")
    for command in (mix, show):
        command.add_argument(
            "--rows", type=int, default=10, metavar="N", help="of a table (default: 10)"
        )
    locate = commands.add_parser("locate", help="the text of a row of a training step", **text)
    locate.set_defaults(run=_locate)
    locate.add_argument("folder", type=Path, metavar="RUN", help="folder of the run")
    locate.add_argument("step", type=int, metavar="STEP", help="as the log counts, from 1")
    locate.add_argument("row", type=int, metavar="ROW", help="of the global batch, from 0")
    locate.add_argument(
        "--rank", type=int, nargs=2, metavar=("R", "OF"), help="ROW is one of data rank R's"
    )
    locate.add_argument("--text", action="store_true", help="print the text, too")
    locate.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _mix(given: argparse.Namespace) -> None:
    recipe = recipes.load(given.recipe, given.settings)
    inventory = read_inventory(given.shards)
    marks = _marks(inventory)
    before = _read_before(given.after)
    curriculum = plan(inventory, recipe, marks, before.tokens)
    out = given.out or given.shards / "curriculum.json"
    if out.suffix != ".json":
        raise ConfigError(f"--out {out}: the name of a curriculum ends in .json")
    manifests.write(curriculum, out)
    _print(curriculum, given.rows)
    sources = [share.source for share in curriculum.stages[0].shares]
    gone_on = before.tokens(sources)
    rest = [source for source in sources if source.name not in gone_on]
    if again := manifests.put_together_otherwise(rest, before.sources.values()):
        print(
            shown(
                f"{manifests.listed(again)} are put together otherwise than in {given.after}: "
                "tokens that it read of them come again. To go on, mix by the same labels (a "
                "weight of 1 is enough) and the same held_out"
            )
        )
    taken = f"data.sources=[] data.curriculum={out} data.stage=…"
    print(shown(f"wrote {out}; a run takes it by {taken}"))
    if not given.no_page:
        from megatron_qwen3.pages import curriculum as page_of  # matplotlib loads slowly

        page = out.with_suffix(".html")
        page_of.write(curriculum, page)
        print(shown(f"wrote {page}, pictures in {page.with_suffix('')}"))


def _marks(inventory: Inventory) -> dict[str, str]:
    """By path, the mark that identifies the contents of each shard with tokens."""
    shards = paths(inventory)
    found = fingerprint.marks([str(inventory.folder / path) for path in shards])
    return dict(zip(shards, found, strict=True))


def _read_before(run: Path | None) -> ReadBefore:
    """Tokens that a run and the stages before it read up to its newest checkpoint, if it is given.

    ConfigError where its folder holds no record or no checkpoint.
    """
    if run is None:
        return ReadBefore()
    record = RunRecord.read(run)
    steps = sorted((run / "checkpoints").glob("step_" + "[0-9]" * 8))
    if record is None or not steps:
        raise ConfigError(f"--after {run}: no run with a data.json and a checkpoint")
    return ReadBefore.of(record, int(steps[-1].name.removeprefix("step_")))


def _show(given: argparse.Namespace) -> None:
    plan = manifests.read(given.curriculum)
    if given.json:
        print(json.dumps({"stages": [_stage_json(plan, stage) for stage in plan.stages]}))
    else:
        _print(plan, given.rows)


def _stage_json(curriculum: Curriculum, stage: Stage) -> dict[str, Any]:
    """What the tables of a stage say, and rows that they fold."""
    from data_prep.mixing.summary import labels_of, summary, texts, total

    by = {label: summary(stage, label) for label in labels_of(curriculum)}
    return {
        "name": stage.name,
        "sequence_length": stage.sequence_length,
        "all": asdict(total(stage)),
        "by": {label: [asdict(row) for row in rows] for label, rows in by.items()},
        "texts": [asdict(row) for row in texts(stage)],
    }


def _print(curriculum: Curriculum, rows: int) -> None:
    from data_prep.mixing.summary import folded, labels_of, summary, texts, total
    from megatron_qwen3.pages.curriculum_rows import HEADER, OF_TEXTS, cells

    console = tables.console()
    for stage in curriculum.stages:
        console.print()
        console.print(
            plain(stage.name, "bold"), f"in sequences of {stage.sequence_length:,} tokens"
        )
        lines, labels, ends = [HEADER, cells(total(stage))], [], [0]
        for label in (*labels_of(curriculum), OF_TEXTS):
            found = texts(stage) if label == OF_TEXTS else folded(summary(stage, label), rows)
            if len(found) > 1:
                labels.append(len(lines) - 1)
                lines += [[label], *map(cells, found)]
                ends.append(len(lines) - 2)
        table = tables.table(lines)
        for number in labels:
            table.rows[number].style = "bold"
        for number in ends:
            table.rows[number].end_section = True
        console.print(table)


def _locate(given: argparse.Namespace) -> None:
    from megatron_qwen3.pretrain.provenance import locate

    row = locate(given.folder, given.step, _global_row(given))
    if given.json:
        print(json.dumps(_row_json(row, _decoder(given.folder) if given.text else None)))
        return
    print(shown(f"global sample {row.sample}: {row.source}, epoch {row.epoch + 1}"))
    decode = _decoder(given.folder) if given.text else None
    for piece in row.pieces:
        last = piece.position + len(piece.tokens) - 1
        print(
            shown(
                f"  positions {piece.position}–{last}: {piece.shard} document {piece.document}, "
                f"tokens {piece.place}–{piece.place + len(piece.tokens) - 1} of the shard"
            )
        )
        if piece.file:
            print(shown(f"    from {piece.file} line {piece.line}, id {piece.id}"))
        for field, value in piece.fields.items():
            print(shown(f"    {field}: {value}"))
        if decode:
            print("    " + shown_text(decode(piece.tokens.tolist()).replace("\n", "\n    ")))


def _row_json(row: RowOrigin, decode: Callable[[list[int]], str] | None) -> dict[str, Any]:
    """epoch: from 1; of each piece place and tokens in its shard, and its text where it is asked
    for."""
    pieces = []
    for piece in row.pieces:
        tokens = piece.tokens.tolist()
        told = vars(piece) | {"tokens": len(tokens), "fields": dict(piece.fields)}
        pieces.append(told | ({"text": decode(tokens)} if decode else {}))
    return {"sample": row.sample, "source": row.source, "epoch": row.epoch + 1, "pieces": pieces}


def _global_row(given: argparse.Namespace) -> int:
    if given.rank is None:
        return int(given.row)
    rank, ranks = given.rank
    record = RunRecord.read(given.folder)
    if record is None or given.step < 1:
        return int(given.row)  # locate raises the error
    batch = record.part_of(given.step - 1).global_batch
    if ranks < 1 or batch % ranks:
        raise ConfigError(
            f"--rank {rank} {ranks}: {ranks} data ranks do not divide the {batch} rows of a step"
        )
    rows = batch // ranks
    if not (0 <= rank < ranks and 0 <= given.row < rows):
        raise ConfigError(
            f"--rank {rank} {ranks}, row {given.row}: ranks are 0 to {ranks - 1}, each with rows 0 "
            f"to {rows - 1}"
        )
    return int(rank * rows + given.row)


def _decoder(run: Path) -> Callable[[list[int]], str]:
    from data_prep import tokenizer
    from megatron_qwen3 import config

    settings = config.load([run / "config.toml"])
    if not settings.data.tokenizer:
        raise ConfigError(f"--text: data.tokenizer is not set in {run / 'config.toml'}")
    tokenizer_folder(settings.data.tokenizer)  # where it is not there, the error has the setting
    whole = tokenizer.load(settings.data.tokenizer)
    return lambda ids: whole.decode(ids, skip_special_tokens=False)
