"""Reward models as transformers has them: equal scores, both ways, and from language models."""

import json
from dataclasses import replace

import pytest
import torch
from ranks import RankError, run_ranks
from safetensors.torch import load_file
from theirs import randomize

from megatron_qwen3.config import ConfigError, load
from megatron_qwen3.convert import hf_config, hf_files, stream
from megatron_qwen3.convert.dcp import Checkpoint
from megatron_qwen3.convert.load import fill, model_of
from megatron_qwen3.convert.mapping import SCALAR_HEAD
from megatron_qwen3.convert.verify import compare
from megatron_qwen3.parallel.runtime import start
from megatron_qwen3.posttrain.rewards import reward_model
from megatron_qwen3.posttrain.rewards.model_settings import check
from megatron_qwen3.posttrain.rewards.reward_model import RewardModel
from megatron_qwen3.posttrain.rewards.scoring import scores
from megatron_qwen3.posttrain.rollouts.rollout import Rollout
from megatron_qwen3.settings_rope import RopeConfig
from megatron_qwen3.training import checkpoint, saver, shards
from megatron_qwen3.training.engine import Engine
from megatron_qwen3.training.model import Model
from megatron_qwen3.training.origin import load_origin

transformers = pytest.importorskip("transformers")

PAD = 511
LENGTHS = (7, 40, 23, 1, 64)
MODELS = {
    "dense": ("model.preset=tiny-dense",),
    "moe": ("model.preset=tiny-moe",),
}
LAYOUTS = {
    "dense": (4, ("parallel.tensor=2", "parallel.pipeline=2")),
    "moe": (2, ("parallel.tensor=2", "parallel.expert=2")),
}


def settings(name, *more):
    base = ["train.steps=1", "train.precision=fp32", "run.device=cpu"]
    base += [] if "run.mode=rl" in more else ["train.global_batch=4"]
    return [*base, *MODELS[name], *more]


def reward_settings(name, *more):
    return settings(name, "run.mode=reward", *more)


def made_by_transformers(folder, name, head):
    """A folder that transformers wrote by itself, config.json too; the weights show in scores."""
    of = load([], settings(name)).model
    folder.mkdir(parents=True)
    hf_config.write_config(folder, of, RopeConfig(), 4096, "float32", {"pad": PAD})
    config = transformers.AutoConfig.from_pretrained(folder)
    if head == "scalar":
        config.num_labels = 1
        network = transformers.AutoModelForSequenceClassification.from_config(config)
    else:
        network = transformers.AutoModelForCausalLM.from_config(config)
    randomize(network)
    network.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=MODELS)
def theirs(request, tmp_path_factory):
    """(name of the model, transformers' reward model)"""
    folder = tmp_path_factory.mktemp("hf") / request.param
    return request.param, made_by_transformers(folder, request.param, "scalar")


def answers():
    random = torch.Generator().manual_seed(4)
    return [torch.randint(0, PAD, (n,), generator=random) for n in LENGTHS]


def scores_of_transformers(folder):
    """Of the answers in one batch, padded on the right, as a user of the folder gets them."""
    network = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32
    )
    assert network.config.num_labels == 1 and network.config.pad_token_id == PAD
    batch = torch.nn.utils.rnn.pad_sequence(answers(), batch_first=True, padding_value=PAD)
    with torch.no_grad():
        logits_B1 = network.eval()(batch, attention_mask=batch != PAD).logits
    assert logits_B1.shape == (len(LENGTHS), 1)
    return logits_B1.squeeze(1).tolist()


def scores_of_ours(source, *more):
    config = load([], [*more])
    model = Model(config, start(config))
    fill(model, source, verify="")
    return scores(model, [ids.int().numpy() for ids in answers()], row_tokens=64)


def test_a_folder_of_transformers_gives_its_scores_in_any_layout(theirs):
    name, folder = theirs
    expected = scores_of_transformers(folder)
    assert max(expected) - min(expected) > 0.1
    for ranks, layout in ((1, ()), LAYOUTS[name]):
        for rewards in run_ranks(scores_of_ours, ranks, folder, *reward_settings(name, *layout)):
            assert rewards == pytest.approx(expected, abs=2e-5)


def scores_of_rollouts(policy, asked):
    """By the reward model of a run of mode rl, whose policy has a layout of its own."""
    config = load([], [*policy])
    layout, signs = start(config), []
    reward_model._ROWS_AT_ONCE = 0  # parts of one answer each
    found = RewardModel(config, layout.world_size, lambda: signs.append(None)).score(asked)
    assert len(signs) == len(found) - 4  # of life, one for each part that is scored
    return found


@pytest.mark.parametrize("ranks", [1, 4])
def test_beside_a_policy_of_another_layout_rollouts_have_transformers_scores(theirs, ranks):
    """Prompt and answer are the ids that were sampled; who did not end has no score, and no 0."""
    name, folder = theirs
    expected = scores_of_transformers(folder)
    whole = [
        Rollout("t", ids[:1], ids[1:], (0.0,) * n, (True,) * n, "stop", (0, 0), True, 0)
        for ids in (tuple(a.tolist()) for a in answers())
        for n in [len(ids) - 1]
    ]
    cut = [replace(whole[0], finish=finish) for finish in ("length", "error", "abort")]
    strange = replace(whole[0], tokens=(512, *whole[0].tokens[1:]))
    policy = settings(name, "run.mode=rl", f"rl.judge.model={folder}")
    if ranks > 1:
        policy += ["parallel.tensor=2", *(["rl.judge.expert=2"] if name == "moe" else [])]
        policy += ["rl.judge.pipeline=2"] if name == "dense" else []
    asked = [whole[0], *cut, strange, *whole[1:]]
    for found in run_ranks(scores_of_rollouts, ranks, policy, asked):
        assert found[1:5] == [None] * 4
        assert [found[0], *found[5:]] == pytest.approx(expected, abs=2e-5)


def test_a_reward_model_with_another_tokenizer_or_that_writes_text_is_refused(theirs, tmp_path):
    name, folder = theirs
    config = load([], settings(name, "run.mode=rl", f"rl.judge.model={folder}"))
    with pytest.raises(ConfigError, match="none that is known"):
        check(config, 1)
    with pytest.raises(ConfigError, match=r"rl.judge.model: .*tensor"):
        check(load([], settings(name, "run.mode=rl", f"rl.judge.model={folder}",
                                "rl.judge.tensor=2")), 1)  # fmt: skip
    writer = made_by_transformers(tmp_path / "lm", name, "vocabulary")
    with pytest.raises(ConfigError, match="rl.judge.model: .*language model"):
        check(load([], settings(name, "run.mode=rl", f"rl.judge.model={writer}")), 1)


def test_hf_to_ours_to_hf_keeps_every_bit_and_the_scores(theirs, tmp_path):
    name, folder = theirs
    stream.from_hf(folder, tmp_path / "ours")
    config = Checkpoint(tmp_path / "ours").config
    assert (config.model.head, config.run.mode) == ("scalar", "reward")
    assert config.model.preset == f"tiny-{name}"
    stream.to_hf(tmp_path / "ours", tmp_path / "out")
    before, after = (load_file(f / "model.safetensors") for f in (folder, tmp_path / "out"))
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())
    assert scores_of_transformers(tmp_path / "out") == scores_of_transformers(folder)
    fields = json.loads((tmp_path / "out" / "config.json").read_text())
    kind = {"dense": "Qwen3", "moe": "Qwen3Moe"}[name]
    assert fields["architectures"] == [f"{kind}ForSequenceClassification"]
    assert (fields["num_labels"], fields["id2label"]) == (1, {"0": "LABEL_0"})
    assert not (tmp_path / "out" / hf_files.GENERATION_FILE).exists()
    if name == "dense":
        assert run_ranks(_agree, 1, folder, tmp_path / "ours") == [True]


def _agree(a, b):
    return compare(a, b).agree


def trained(name, run_dir, *more):
    """A reward model's run: its messages at the start, and a checkpoint of it."""
    config = load([], reward_settings(name, f"run.dir={run_dir}", *more))
    engine = Engine(config, start(config))
    _, told = load_origin(engine, config)
    fresh = [
        part.tensor.clone()
        for part in shards.owned(engine)
        if part.place.key.endswith(SCALAR_HEAD) and not part.place.key.startswith("optimizer")
    ]
    saver.save(engine, config, 1)
    return told, fresh, config.run_dir


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("dense", "bf16"),
        ("moe", "fp32"),
        pytest.param("dense", "fp32", marks=pytest.mark.slow),
        pytest.param("moe", "bf16", marks=pytest.mark.slow),
    ],
)
def test_a_language_model_gives_all_but_a_fresh_head_whichever_its_format(
    name, precision, tmp_path
):
    folder = made_by_transformers(tmp_path / "hf", name, "vocabulary")
    stream.from_hf(folder, tmp_path / "ours")
    before = load_file(folder / "model.safetensors")
    before.pop("lm_head.weight", None)
    heads = []
    for kind in ("hf", "ours"):
        more = f"checkpoint.init_from={tmp_path / kind}", f"train.precision={precision}"
        ((told, fresh, run_dir),) = run_ranks(trained, 1, name, tmp_path / f"of-{kind}", *more)
        assert told == [
            f"weights from {tmp_path / kind}, a language model's; "
            "the scalar head is fresh, from seed 1234"
        ]
        source = checkpoint.find(str(run_dir))
        assert model_of(source).head == "scalar"
        stream.to_hf(source, tmp_path / f"out-{kind}", _tokenizer(tmp_path))
        after = load_file(tmp_path / f"out-{kind}" / "model.safetensors")
        heads.append(after.pop("score.weight"))
        assert after.keys() == before.keys()
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        assert all(torch.equal(x.to(dtype), after[key]) for key, x in before.items())
        assert torch.equal(fresh[0], heads[-1])
        assert 0.01 < heads[-1].float().std() < 0.03  # of model.init_std = 0.02
    assert torch.equal(*heads)


def _tokenizer(tmp_path):
    """A folder that says which id pads."""
    folder = tmp_path / "tokenizer"
    folder.mkdir(exist_ok=True)
    added = [{"id": PAD, "content": "<|endoftext|>"}, {"id": 510, "content": "<|im_end|>"}]
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    return folder


def test_a_language_model_is_no_scorer_and_a_reward_model_no_start_of_one(theirs, tmp_path):
    name, folder = theirs
    language_model = made_by_transformers(tmp_path / "lm", name, "vocabulary")
    with pytest.raises(RankError, match='model.head = "scalar", but .* saved with "vocabulary"'):
        run_ranks(scores_of_ours, 1, language_model, *reward_settings(name))
    with pytest.raises(ValueError, match='model.head = "vocabulary", but .* saved with "scalar"'):
        checkpoint.check_same_model(load([], settings(name)), folder)
    with pytest.raises(ValueError, match="is a reward model, .* a language model"):
        compare(language_model, folder)


@pytest.mark.parametrize("labels", [{}, {"num_labels": 2}, {"id2label": {"0": "a", "1": "b"}}])
def test_a_classifier_of_two_labels_is_no_reward_model(theirs, tmp_path, labels):
    _, folder = theirs
    fields = json.loads((folder / "config.json").read_text())
    for field in ("num_labels", "id2label", "label2id"):
        fields.pop(field, None)
    (tmp_path / "config.json").write_text(json.dumps(fields | labels))
    with pytest.raises(ValueError, match="with 2 labels .*; a reward model has 1"):
        hf_config.read_config(tmp_path)


def test_an_export_without_a_padding_id_is_refused(tmp_path, theirs):
    _, folder = theirs
    path = folder / "config.json"
    fields = json.loads(path.read_text())
    copy = tmp_path / "hf"
    copy.mkdir()
    fields.pop("pad_token_id")
    (copy / "config.json").write_text(json.dumps(fields))
    (copy / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    stream.from_hf(copy, tmp_path / "ours")
    with pytest.raises(ValueError, match="the id of the padding token is not known"):
        stream.to_hf(tmp_path / "ours", tmp_path / "out")
    assert not (tmp_path / "out").exists()
