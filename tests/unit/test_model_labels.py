"""The label of a model of ours, under which its answers are kept: another model has another."""

import os

from megatron_qwen3.posttrain.generators.own_generator import label_of


def test_a_folder_whose_model_was_written_anew_has_another_label(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"abc")
    (tmp_path / "answers.jsonl").write_text("")
    first = label_of(tmp_path)
    (tmp_path / "answers.jsonl").write_text("is no part of the model")
    assert label_of(tmp_path) == first and str(tmp_path) in first
    labels = {first}
    for change in (
        lambda: weights.write_bytes(b"abcd"),
        lambda: os.utime(weights, ns=(1, 1)),
        lambda: (tmp_path / "config.json").write_text("[]"),
        lambda: (tmp_path / "model-2.safetensors").write_bytes(b""),
        lambda: (tmp_path / "weights.distcp").write_bytes(b""),
        lambda: (tmp_path / "generation_config.json").write_text("{}"),
    ):
        change()
        assert label_of(tmp_path) not in labels
        labels.add(label_of(tmp_path))
