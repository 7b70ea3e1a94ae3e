"""model.kind: the kind of a run's layers is logged once; a missing one is an error."""

import os

import pytest
import torch

from megatron_qwen3 import train
from megatron_qwen3.config import ConfigError, load
from megatron_qwen3.model import specs
from megatron_qwen3.parallel import installed
from megatron_qwen3.parallel.runtime import start
from megatron_qwen3.training.batch import TokenBatch
from megatron_qwen3.training.engine import Engine
from megatron_qwen3.training.objectives import cross_entropy
from tests.ranks import RankError, run_ranks
from tests.te.te_ranks import run_te_ranks


def config(*settings):
    base = ["model.preset=tiny-moe", "train.steps=1", "run.device=cpu"]
    return load([], [*base, *settings])


def _chosen(*settings_of_runs):
    return [specs.kind(config(*settings)) for settings in settings_of_runs]


RUNS = {
    ("model.kind=auto", "train.precision=bf16"): "te",
    ("model.kind=auto", "train.precision=fp32"): "torch",  # for which it has no attention
    ("model.kind=auto", "train.precision=bf16", "parallel.context=2"): "te",
    ("model.kind=te", "train.precision=fp32"): "te",
    ("model.kind=torch", "train.precision=bf16"): "torch",
}


def test_auto_takes_transformer_engine_where_it_can_be_had_and_does_what_is_asked():
    assert run_te_ranks(_chosen, 1, *RUNS) == [list(RUNS.values())]
    assert {specs.kind(config(*run)) for run in RUNS if run[0] == "model.kind=auto"} == {"torch"}


def test_without_a_gpu_transformer_engine_cannot_be_asked_for():
    with pytest.raises(ConfigError, match='model.kind = "te", but torch sees no GPU'):
        specs.kind(config("model.kind=te"))


def test_without_a_gpu_that_is_told_before_anything_is_read(capsys, tmp_path):
    lost = f'data.sources=[{{name="a",path="{tmp_path}/a"}}]'
    asked = ["model.preset=tiny-moe", "train.steps=1", "run.device=cpu", "model.kind=te", lost]
    assert train.main([*asked, f"run.dir={tmp_path}"]) == 2
    assert 'model.kind = "te", but torch sees no GPU' in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


def _without_it(kind="te"):
    specs.HAVE_TE = False
    settings = config(f"model.kind={kind}", "train.precision=bf16")
    return specs.kind(settings), specs.described(settings)


def test_where_it_is_not_installed_the_error_has_the_command():
    with pytest.raises(RankError, match=r"ConfigError.*is not installed \(pip install .*pytorch"):
        run_te_ranks(_without_it, 1)


def _with_an_old_one(kind):
    installed.metadata.version = {"transformer_engine": "2.1.0"}.get
    settings = config(f"model.kind={kind}", "train.precision=bf16")
    return specs.kind(settings), specs.described(settings)


def test_an_old_one_is_not_taken_and_the_error_has_the_command():
    with pytest.raises(RankError, match=r"2\.1\.0 is older than 2\.2 \(pip install --upgrade"):
        run_te_ranks(_with_an_old_one, 1, "te")


@pytest.mark.parametrize(
    ("run", "why"),
    [
        ((_without_it, 1, "auto"), "torch's, as Transformer Engine is not installed (pip install"),
        ((_with_an_old_one, 1, "auto"), "torch's, as Transformer Engine 2.1.0 is older than 2.2"),
    ],
)
def test_a_run_on_a_gpu_says_why_its_layers_are_torchs(run, why):
    ((kind, told),) = run_te_ranks(*run)
    assert kind == "torch" and told.startswith(why)


def _exchanges(version, *settings):
    installed.metadata.version = {"transformer_engine": version}.get
    base = "model.kind=te", "train.precision=bf16", "parallel.context=2"
    return specs.kind(config(*base, "data.sequence_length=64", *settings))


GATHERED = "parallel.context_exchange=all_gather"
OF_DOCUMENTS = GATHERED, "data.reset_at_documents=true"


def test_context_ranks_do_not_begin_to_gather_documents_with_a_release_that_cannot():
    with pytest.raises(RankError, match=r'Engine 2.16.0 gathers keys of whole rows.*"own", "p2p"'):
        run_te_ranks(_exchanges, 1, "2.16.0", *OF_DOCUMENTS)
    assert run_te_ranks(_exchanges, 1, "2.18.0", *OF_DOCUMENTS) == ["te"]
    assert run_te_ranks(_exchanges, 1, "2.16.0", GATHERED) == ["te"]
    assert run_te_ranks(_exchanges, 1, "2.16.0", "parallel.context_exchange=a2a") == ["te"]


EP2 = ("model.kind=te", "parallel.expert=2")


@pytest.mark.parametrize("dispatch", ["deepep", "hybridep"])
def test_a_dispatcher_that_is_not_installed_is_an_error_with_its_command(dispatch):
    asked = (*EP2, f"parallel.dispatch={dispatch}")
    with pytest.raises(RankError, match=r"dispatch = .*not installed \(pip .*-isolation .*DeepEP"):
        run_te_ranks(_chosen, 1, asked)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (("model.kind=torch", "parallel.expert=2"), 'needs model.kind = "te"'),
        (("model.kind=te",), "no token is sent"),
        (("model.kind=te", "model.preset=tiny-dense"), "the model is dense"),
    ],
)
def test_a_dispatcher_that_has_nothing_to_do_is_refused(settings, says):
    with pytest.raises(ConfigError, match=says):
        config(*settings, "parallel.dispatch=deepep")


def _repeatable():
    """The loss of the second of two equal steps of two equal engines; the settings of the first."""
    settings = config("model.kind=te", "train.precision=fp32", "run.deterministic=true")
    layout, losses = start(settings), []
    ids = torch.arange(8 * 33).view(8, 33) % 512
    for _ in range(2):
        engine = Engine(settings, layout)
        batch = TokenBatch.of(ids[:, :-1], ids[:, 1:])
        losses.append([engine.train_step(batch, cross_entropy, 1e-3)["loss"] for _ in range(2)][1])
    return losses, os.environ["NVTE_ALLOW_NONDETERMINISTIC_ALGO"]


def test_a_repeatable_run_tells_transformer_engine_so():
    (((first, second), told),) = run_te_ranks(_repeatable, 1)
    assert first == second and told == "0"


def _told(kind, *settings):
    return specs.described(config(f"model.kind={kind}", *settings))


def test_what_was_chosen_is_told_with_versions():
    (told,) = run_te_ranks(_told, 1, "te")
    assert told.startswith("Transformer Engine 2.20.2, cuDNN ") and "flash-attn none" in told
    assert run_ranks(_told, 1, "auto") == ["torch's"]
    (wide,) = run_te_ranks(_told, 1, "auto", "train.precision=fp32")
    assert wide.startswith('torch\'s, as for train.precision = "fp32" Transformer Engine')
