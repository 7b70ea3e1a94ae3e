"""Mixtures by real proxies: a few are trained, one is found, and it is trained, too."""

import json

import pytest

from data_prep import curriculum
from megatron_qwen3.cli import optimize_mixture
from tests.mixtures import SIZES, corpus, study


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_few_small_models_find_that_text_with_an_order_is_worth_more(tmp_path, capfd):
    corpus(tmp_path, SIZES)
    settings = ["model.preset=tiny-dense", "model.num_layers=1", "train.precision=fp32"]
    settings += ["run.device=cpu", "data.sequence_length=16", "optim.lr=1e-2"]
    settings += ["train.steps=20", "train.global_batch=8", "log.tensorboard=false"]
    file = study(
        tmp_path,
        ('by = ["domain", "quality"]', 'by = ["quality"]'),
        ("proxies = 20", "proxies = 8"),
        ("seeds = 2", "seeds = 1"),
        settings=settings,
    )
    assert optimize_mixture.main([file, "--json"]) == 0
    content = json.loads(capfd.readouterr().out)
    shares = {cell["name"]: cell for cell in content["cells"]}
    assert shares["high"]["share"] > shares["high"]["shares"]["natural"] + 0.1
    by_cells, natural = (
        next(check for check in content["checks"] if check["name"] == name)
        for name in ("by cells", "natural")
    )
    assert by_cells["losses"][0] < natural["losses"][0]
    runs = sorted(path.name for path in (tmp_path / "study" / "runs").iterdir())
    assert runs[1:] == [f"mix-{n:03}" for n in range(8)]  # natural is the first of them
    (check,) = (tmp_path / "study" / "curricula").glob("check-*.json")
    read = [(s.source.labels["quality"], s.tokens) for s in curriculum.read(check).stages[0].shares]
    high = sum(tokens for quality, tokens in read if quality == "high")
    assert high / sum(tokens for _, tokens in read) == pytest.approx(
        shares["high"]["share"], abs=0.01
    )
    # Again: nothing is run, the same is said.
    assert optimize_mixture.main([file, "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == content
