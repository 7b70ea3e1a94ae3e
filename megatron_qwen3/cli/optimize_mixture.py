"""Find the mixture of text to train on by small runs, at the level of combinations of labels.

    mq3 data optimize STUDY.toml             # here, resumable
    mq3 data optimize STUDY.toml --submit    # SLURM job arrays; call it again when
                                             # they are done
    mq3 data optimize STUDY.toml --report    # only finished runs

Texts whose labels go together (domain × quality × education × language × length, as shards keep
them apart) are cells. Proxies, small models, are trained on a swarm of mixtures around the natural
one; a law of their held-out losses, or gradient boosting, whichever predicts mixtures that it has
not seen better, gives the mixture with the lowest weighted mean, under caps on epochs. It is
trained once more beside the natural mixture and one of coarser labels. The study's folder then has
recipe.toml for `mix`, mixture.json, and a page. A study with `reuse` proposes only cells that
changed anew; one with several stages has a mixture for each.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_qwen3 import entry, tables
from megatron_qwen3.cli import grammar
from megatron_qwen3.cli.ending import ending
from megatron_qwen3.cli.parser import Parser
from megatron_qwen3.shown import as_json, counted, plain, shown

if TYPE_CHECKING:
    from megatron_qwen3.studies.local import Point
    from megatron_qwen3.studies.mixture.study import MixtureCorpus, Study
    from megatron_qwen3.studies.mixture.swarm import Parts

_EXAMPLES = """examples:
  mq3 data optimize examples/reproduce/mixture/study.toml
  mq3 data optimize study.toml --by domain,quality
  mq3 data mix data/tokens --recipe runs/mixture/recipe.toml
"""


@ending()
def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """The exit status: 0 done, 1 a run failed, 2 something is wrong with a file or a setting."""
    given = entry.parse(_parser(prog), arguments)
    return _run(given)


def _parser(prog: str | None) -> Parser:
    parser = Parser("optimize", prog=prog, description=__doc__, epilog=_EXAMPLES)
    parser.add_argument("study", type=Path, metavar="STUDY.toml")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--submit", action="store_true", help="as SLURM job arrays, not here")
    how.add_argument("--report", action="store_true", help="only report on finished runs")
    parser.add_argument("--by", metavar="LABEL,…", help="labels of cells, in place of the study's")
    grammar.add_minutes(parser.add_argument, default=60)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return parser


def _run(given: argparse.Namespace) -> int:
    import sklearn  # noqa: F401  (missed now, not when the runs are done)

    from megatron_qwen3.studies.files import read
    from megatron_qwen3.studies.mixture import finding, result
    from megatron_qwen3.studies.mixture.study import MixtureCorpus, Study

    study = read(given.study, Study)
    if given.by:
        study = replace(study, by=tuple(given.by.split(",")))
    corpus = MixtureCorpus.of(study)
    parts, kept = result.parts_of(corpus)
    shares_NP = result.proposed(corpus, parts)
    points = [
        corpus.point(shares_C, f"mix-{n:03}", study.seed)
        for n, shares_C in enumerate(shares_NP @ parts.cells_PC)
    ]
    _tell(corpus, parts, kept, points)
    failed = _train(given, study, points, "proxies")
    tried = finding.TriedMixtures.read(corpus, parts, shares_NP, points)
    if tried is None or (given.submit and not all(point.is_done for point in points)):
        done = sum(point.is_done for point in points)
        print(f"{done:,} of {len(points)} proxies are done; call this again later", file=sys.stderr)
        return 1 if failed else 0
    found = finding.find(corpus, parts, tried)
    checks = finding.runs(corpus, found, (shares_NP[0] @ parts.cells_PC, points[0]))
    every = list({point.name: point for own in checks.values() for point in own}.values())
    failed += _train(given, study, every, "checks")
    rows = finding.compared(tried, checks)
    content = result.write(corpus, tried, found, rows, [*points, *every])
    _report(given, study, content)
    return 1 if failed else 0


def _train(
    given: argparse.Namespace, study: "Study", points: Sequence["Point"], title: str
) -> list["Point"]:
    """Run the unfinished points, or submit them; the points that failed here."""
    from megatron_qwen3.cores import cores
    from megatron_qwen3.studies import local, slurm

    if given.report or all(point.is_done for point in points):
        return []
    if given.submit:
        folder = Path(study.dir)
        for script in slurm.write(folder, points, study.gpus_per_node, given.minutes, study.sbatch):
            slurm.submit(script)
        return []
    on_cpu = points[0].config.run.device == "cpu"
    at_once = study.at_once or (max(1, cores() // study.ranks) if on_cpu else 1)
    return local.run_all(points, title, at_once)


def _tell(
    corpus: "MixtureCorpus", parts: "Parts", kept: Sequence[str], points: Sequence["Point"]
) -> None:
    """Print the mixtures to be tried, before the runs."""
    from megatron_qwen3.model.flops import parameter_count
    from megatron_qwen3.studies.mixture.result import TRUSTED_PARAMETERS
    from megatron_qwen3.training.console import count

    def say(line: str) -> None:
        print(shown(line), file=sys.stderr)

    joined = [cell for cell in corpus.cells if cell.combinations > 1]
    size = parameter_count(points[0].config.model)
    say(
        f"{counted(len(corpus.cells), 'cell')} by {', '.join(corpus.by)}; "
        f"{counted(len(points), 'mixture')} are tried, each by a model of {count(size)} parameters "
        f"on {count(corpus.proxy_tokens)} tokens"
    )
    for cell in joined:
        say(f"joined, too small alone: {cell.name}, {cell.combinations} combinations of labels")
    if kept:
        say(f"{counted(len(kept), 'cell')} of before keep their ratios: {', '.join(kept)}")
    if size < TRUSTED_PARAMETERS:
        say(
            f"models below about {count(TRUSTED_PARAMETERS)} parameters rank mixtures unlike "
            "large ones (arXiv 2602.12237): this shows the way"
        )


def _report(given: argparse.Namespace, study: "Study", content: dict[str, Any]) -> None:
    from megatron_qwen3.pages import mixture_rows
    from megatron_qwen3.studies.mixture.result import MIXTURE, RECIPE

    if given.json:
        print(as_json(content))
    else:
        console = tables.console()
        for table in mixture_rows.terminal(content):
            console.print(table)
        for line in mixture_rows.sentences(content):
            console.print(plain(line))
    from megatron_qwen3.pages.mixture import write  # matplotlib loads slowly

    folder = Path(study.dir)
    recipe = (folder / RECIPE).read_text(encoding="utf-8")
    write(content, recipe, folder / "mixture.html")
    print(
        shown(
            f"wrote {folder / RECIPE} for mq3 data mix {study.shards}, "
            f"{folder / MIXTURE} and {folder / 'mixture.html'}"
        ),
        file=sys.stderr,
    )
