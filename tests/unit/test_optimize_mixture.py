"""The command that finds mixtures, with runs that are written by a law instead of being trained."""

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest

from data_prep import curriculum
from data_prep.inventory import read_inventory
from megatron_qwen3.cli import mix_curriculum, optimize_mixture
from megatron_qwen3.config import to_toml
from megatron_qwen3.pages import mixture as mixture_page
from megatron_qwen3.studies import local
from megatron_qwen3.studies.mixture import regression
from tests.mixtures import SIZES, corpus, study

# What a token of each cell is worth to the high held-out text, of either domain.
WORTH = {"web/high": 3.0, "web/low": 0.2, "code/high": 4.0, "code/low": 1.0}


@pytest.fixture
def here(tmp_path):
    return corpus(tmp_path, SIZES)


def shares_of(config):
    """Of the cells that a run reads, as its curriculum says."""
    stage = curriculum.read(config.data.curriculum).stages[0]
    read = dict.fromkeys(WORTH, 0.0)
    for share in stage.shares:
        labels = share.source.labels
        read[f"{labels['domain']}/{labels['quality']}"] += share.tokens / stage.tokens
    return read


def losses(config):
    """By target: a law of shares, and a little noise of the seed."""
    read = shares_of(config)
    noise = 1e-3 * random.Random(f"{config.run.seed} {config.run.name}").gauss(0, 1)
    worth = {d: sum(WORTH[n] * read[n] for n in WORTH if n.startswith(d)) for d in ("web", "code")}
    return {
        name: 2.0 + math.exp(-worth[name.partition("/")[0]]) + noise + 0.5 * name.endswith("low")
        for name in WORTH
    }


def written(points, title, at_once=1):
    """In place of training."""
    for point in points:
        if point.is_done:
            continue
        config = point.config
        config.run_dir.mkdir(parents=True)
        (config.run_dir / "config.toml").write_text(to_toml(config))
        steps = range(1, config.steps + 1)
        rows = [{"kind": "train", "step": n, "tokens": n, "loss": 3.0} for n in steps]
        every = config.eval.every_steps or config.steps
        for step in sorted({*range(every, config.steps, every), config.steps}):
            for name, loss in losses(config).items():
                loss += 2.0 * (config.steps - step) / config.steps
                rows.append(
                    {"kind": "eval", "step": step, "source": name, "loss": loss, "tokens": 9}
                )
            rows.append({"kind": "eval", "step": step, "source": "all", "loss": 3.0, "tokens": 36})
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (config.run_dir / "metrics.jsonl").write_text(text)
    return []


def optimize(capfd, *arguments):
    status = optimize_mixture.main([*arguments, "--json"])
    out, err = capfd.readouterr()
    assert status == 0, err
    return json.loads(out), err


@pytest.fixture
def no_page(monkeypatch):
    """Pictures are drawn slowly, and in one test enough."""
    monkeypatch.setattr(mixture_page, "write", lambda *_: None)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(local, "run_all", written)
    monkeypatch.setattr(regression, "TREES", 4)  # the law is what is true here


def test_the_mixture_of_cells_is_found_run_compared_and_written_for_mix(here, quick, capfd):
    content, err = optimize(capfd, study(here))
    assert "4 cells by domain, quality; 20 mixtures are tried, each by a model of" in err
    assert "parameters rank mixtures unlike large ones" in err
    assert content["fits"][0]["form"] == "log-linear law"
    assert content["fits"][0]["r2"] > 0.9
    cells = {cell["name"]: cell for cell in content["cells"]}
    # All that may be read of the high text is read, the rest is of what helps most beside it.
    for name in ("web/high", "code/high"):
        assert cells[name]["share"] > 1.3 * cells[name]["shares"]["natural"]
        assert cells[name]["share"] <= cells[name]["most"] + 1e-9
    assert cells["web/low"]["share"] < cells["web/low"]["shares"]["natural"]
    by_cells, by_domain, natural = (
        next(check for check in content["checks"] if check["name"] == name)
        for name in ("by cells", "by domain", "natural")
    )
    assert np.mean(by_cells["losses"]) < np.mean(by_domain["losses"]) < np.mean(natural["losses"])
    assert natural["ahead"] > by_domain["ahead"] > 0
    assert len(natural["losses"]) == 2
    targets = {target["name"]: target["weight"] for target in content["targets"]}
    assert targets == {"web/high": 0.5, "code/high": 0.5, "web/low": 0.0, "code/low": 0.0}
    page = (here / "study" / "mixture.html").read_text()
    assert "has a held-out loss lower than natural" in page
    # mix takes the recipe, and reads of each cell what it says.
    out = here / "curriculum.json"
    recipe = str(here / "study" / "recipe.toml")
    command = ["mix", str(here / "tokens"), "--recipe", recipe, "--out", str(out), "--no-page"]
    assert mix_curriculum.main(command) == 0
    stage = curriculum.read(out).stages[0]
    for name, cell in cells.items():
        own = [s for s in stage.shares if "/".join(list(s.source.labels.values())[2:]) == name]
        assert sum(s.tokens for s in own) / stage.tokens == pytest.approx(cell["share"], abs=3e-3)


def test_a_study_goes_on_where_it_stood_and_refuses_what_differs(here, no_page, monkeypatch, capfd):
    tried = []
    monkeypatch.setattr(regression, "TREES", 4)

    def some(points, title, at_once=1):
        tried.append([point.name for point in points if not point.is_done])
        return (
            written(points[:4], title)
            if title == "proxies" and len(tried) == 1
            else written(points, title)
        )

    monkeypatch.setattr(local, "run_all", some)
    file = study(here)
    assert optimize_mixture.main([file]) == 0
    assert "4 of 20 proxies are done; call this again later" in capfd.readouterr().err
    first, _ = optimize(capfd, file)
    assert len(tried[1]) == 16
    again, _ = optimize(capfd, file)
    assert again == first
    assert len(tried) == 3  # proxies twice, checks once
    more, _ = optimize(capfd, study(here, ("proxies = 20", "proxies = 22")))
    assert tried[3] == ["mix-020", "mix-021"]
    assert more["proxies"]["count"] == 22
    for change, what in (
        (("min_share = 0.02", "seed = 7"), "of_all"),
        (("max_epochs = 2", "max_epochs = 3"), "of_all"),
    ):
        assert optimize_mixture.main([study(here, change)]) == 2
        assert f"other mixtures were begun here, {what} differ" in capfd.readouterr().err
    shown, _ = optimize(capfd, study(here), "--report")
    assert shown["proxies"]["count"] == 20


def test_stages_have_a_mixture_each_from_the_losses_at_their_ends(here, quick, capfd):
    content, _ = optimize(capfd, study(here, ("max_epochs", 'stages = ["a", "b"]\nmax_epochs')))
    assert content["stages"] == ["a", "b"]
    for cell in content["cells"]:
        assert cell["stages"][0] == pytest.approx(cell["stages"][1], abs=0.02)  # as the law has it
        assert cell["stages"][1] == cell["share"]
    recipe = (here / "study" / "recipe.toml").read_text()
    assert '[stages."a"]' in recipe and '[stages."b"]' in recipe
    assert "was not run" in (here / "study" / "mixture.html").read_text()


def test_only_cells_that_changed_are_proposed_again(here, quick, no_page, capfd, tmp_path):
    old, _ = optimize(capfd, study(here))
    second = corpus(tmp_path / "second", SIZES | {("code", "high"): 60})
    reuse = ("max_epochs", f'reuse = "{here}/study/mixture.json"\nmax_epochs')
    content, err = optimize(capfd, study(second, reuse, ("proxies = 20", "proxies = 0")))
    assert "3 cells of before keep their ratios: code/low, web/high, web/low" in err
    assert content["proxies"]["count"] == 9  # three for each of two, and three more
    before, after = ({c["name"]: c["share"] for c in row["cells"]} for row in (old, content))
    kept = ["code/low", "web/high", "web/low"]
    ratios = [np.array([row[name] for name in kept]) for row in (before, after)]
    assert ratios[0] / ratios[0].sum() == pytest.approx(ratios[1] / ratios[1].sum(), abs=1e-6)
    assert {check["name"] for check in content["checks"]} == {"natural", "by domain", "by cells"}
    assert optimize_mixture.main([study(here, reuse, ('/study"\nshards', '/third"\nshards'))]) == 2
    assert "no cell is other than in" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (('by = ["domain", "quality"]', 'by = ["domian"]'), "is no label of shards; did"),
        (('by = ["domain", "quality"]', 'by = ["domain"]'), "objective: quality is not one of"),
        (("min_share = 0.02", "min_share = 0.9"), "leave one cell"),
        (("high = 1", "hgh = 1"), "hgh: no text has this quality; did you mean high"),
        (("[objective.quality]", "[objective.length]"), "objective: length is not one of"),
        (("max_epochs = 2", "max_epochs = 0.1"), "max_epochs allows"),
        (("tokens = 6_400", "tokens = 0"), "tokens = 0 must be above 0"),
        (("held_out = 0.1", "held_out = 0"), "without held-out text no mixture"),
        (("high = 1", "high = 0"), "all targets have the weight 0"),
        (("max_epochs = 2", 'reuse = "{dir}/none.json"'), "none.json does not exist"),
        (("proxies = 20", "proxys = 20"), "proxys is not known; did you mean proxies"),
    ],
)  # fmt: skip
def test_a_wrong_study_is_one_line(here, quick, capfd, change, complaint):
    assert optimize_mixture.main([study(here, change)]) == 2
    err = capfd.readouterr().err
    assert complaint in err
    assert err.splitlines()[-1].startswith("error: ")
    assert not (Path(here) / "study" / "recipe.toml").exists()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("high = 1", "hgh = 1"), "objective.quality.hgh: no text has this quality"),
        (("high = 1", "high = 0"), "all targets have the weight 0, by objective.quality"),
        (
            ("max_epochs", f"stages = {json.dumps([f's{n}' for n in range(21)])}\nmax_epochs"),
            "20 steps of a proxy are fewer than the 21 stages",
        ),
        (("proxies = 20", "proxies = 5"), "proxies = 5 are fewer than the 6 that a law of 4 cells"),
    ],
)
def test_no_proxy_is_trained_for_a_study_that_could_not_be_evaluated(
    here, monkeypatch, capfd, change, complaint
):
    monkeypatch.setattr(local, "run_all", lambda *_, **__: pytest.fail("a proxy was trained"))
    assert optimize_mixture.main([study(here, change)]) == 2
    assert complaint in capfd.readouterr().err


def test_a_weight_of_a_label_with_one_value_changes_nothing(here, no_page, quick, capfd):
    by = ('"quality"]', '"quality", "length"]')
    (length,) = {
        value for c in read_inventory(here / "tokens").columns() for value in c.words["length"][0]
    }
    weights = ("low = 0", f'low = 0\n[objective.length]\n"{length}" = 2')
    content, _ = optimize(capfd, study(here, by, weights))
    assert {row["weight"] for row in content["targets"]} == {0.0, 0.5}


def test_labels_that_tell_nothing_apart_are_refused(here, quick, capfd):
    whole = ("[objective.quality]\nhigh = 1\nlow = 0", "")
    assert optimize_mixture.main([study(here, whole), "--by", "language,length"]) == 2
    assert "by = language, length: the shards have one value of each" in capfd.readouterr().err
