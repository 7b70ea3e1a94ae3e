"""Loss by position and pass keys beyond the trained length, against transformers."""

import json
import random

import numpy as np
import pytest
import tiny
import torch
from ranks import run_ranks

from data_prep import tokenizer as tokenizers
from megatron_qwen3.cli.read_long import main

transformers = tiny.transformers
TRAINED, LONGEST, TEXTS = 48, 96, 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model, and documents of which all but one are long enough."""
    folder = tmp_path_factory.mktemp("model")
    tiny.save(folder, max_position_embeddings=TRAINED)
    letters = random.Random(1)
    texts = ["".join(letters.choices("abc ", k=400)) for _ in range(TEXTS)]
    lines = [json.dumps({"text": text}) for text in ("too short", *texts)]
    (folder / "texts.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def arguments(folder, out, *more):
    words = [
        folder,
        *more,
        "--lengths",
        TRAINED,
        LONGEST,
        "--texts",
        folder / "texts.jsonl",
        "--out",
        out,
        "--count",
        TEXTS,
        "--keys",
        5,
    ]
    words += ["--key-said", "a{key}b", "--key-asked", "c{key}"]
    return [str(word) for word in [*words, "--key-digits", 1]]


def rows_of(out):
    content = json.loads((out / "results.json").read_text())
    return {(row["way"], row["length"]): row for row in content["rows"]}


def nats_of_transformers(folder, length, **rope):
    """Mean nats of each predicted token over the texts."""
    config = transformers.AutoConfig.from_pretrained(folder)
    config.rope_parameters = {"rope_type": "default", "rope_theta": 1e6, **rope}
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, config=config).eval().float()
    encode = tokenizers.load(folder / "tokenizer.json").encode
    lines = (folder / "texts.jsonl").read_text().splitlines()[1:]
    ids = torch.tensor([encode(json.loads(x)["text"]).ids[: length + 1] for x in lines])
    with torch.no_grad():
        log_probs = model(ids[:, :-1]).logits.log_softmax(-1)
    return -log_probs.gather(-1, ids[:, 1:, None])[..., 0].mean(0).numpy()


def test_losses_are_those_of_transformers_plain_and_with_yarn(folder, tmp_path):
    assert main(arguments(folder, tmp_path / "out")) == 0
    found = rows_of(tmp_path / "out")
    yarn = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": TRAINED}
    for way, rope in (("plain", {}), ("yarn", yarn)):
        for length in (TRAINED, LONGEST):
            nats = nats_of_transformers(folder, length, **rope)
            expected = [part.mean() for part in np.array_split(nats, 32)]
            np.testing.assert_allclose(found[way, length]["nats"], expected, rtol=0, atol=2e-5)
            quarter = np.mean(expected[-8:])
            assert found[way, length]["last_quarter"] == pytest.approx(quarter, abs=2e-5)
    assert found["dca", LONGEST]["nats"] != found["plain", LONGEST]["nats"]
    depths = [depth for depth, _ in found["both", LONGEST]["found"]]
    assert depths == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9])
    assert (tmp_path / "out" / "report" / "loss.png").is_file()


def test_ranks_that_share_rows_read_the_same(folder, tmp_path):
    assert run_ranks(main, 1, arguments(folder, tmp_path / "one", "--ways", "both")) == [0]
    shared = arguments(folder, tmp_path / "two", "--ways", "both", "parallel.context=2")
    assert run_ranks(main, 2, shared) == [0, 0]
    one, two = rows_of(tmp_path / "one"), rows_of(tmp_path / "two")
    for key, row in one.items():
        np.testing.assert_allclose(two[key]["nats"], row["nats"], rtol=0, atol=1e-5)
        assert two[key]["found"] == row["found"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("--lengths", "999"), "no document has 1,000 tokens, the longest"),
        (("--key-asked", "{key}?"), "does not end with {key}"),
        (("--texts", "/nowhere.jsonl"), "/nowhere.jsonl: No such file"),
        (("--trained", "16"), "16 positions is too short"),
        (("rope.dca_chunk_size=96",), "rope.dca_chunk_size=96: plain, yarn, dca, both set the"),
        (("--ways", "own", "dca", "rope.dca_chunk_size=96"), "valid: --ways own, which"),
        (("parallel.context=2", "--lengths", "50"), "50 is no multiple of 4"),
    ],
)
def test_what_cannot_be_measured_is_said_in_one_line(folder, tmp_path, capsys, change, says):
    assert main([*arguments(folder, tmp_path), *change]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1 and "Traceback" not in error


def test_what_is_told_of_a_way_is_what_it_read_with(folder, tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.jsonl").write_bytes((folder / "texts.jsonl").read_bytes())
    (texts / "notes.txt").write_text("no documents")
    chunks = {"dca_chunk_size": 48, "dca_local_size": 16}
    settings = [f"rope.{name}={value}" for name, value in chunks.items()]
    words = arguments(folder, tmp_path / "own", "--ways", "own", *settings)
    words[words.index("--texts") + 1] = str(texts)
    assert main(words) == 0
    content = json.loads((tmp_path / "own" / "results.json").read_text())
    assert chunks.items() <= content["ways"]["own"].items()
    ways = arguments(folder, tmp_path / "all", "--ways", "plain", "dca")
    assert main(ways) == 0
    plain = rows_of(tmp_path / "all")["plain", LONGEST]["nats"]
    assert rows_of(tmp_path / "own")["own", LONGEST]["nats"] != plain
