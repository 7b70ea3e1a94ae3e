"""The tokenizer by which `mq3 evaluate` counts tokens."""

from megatron_qwen3.cli import evaluate_model


def test_a_folder_without_a_tokenizer_is_no_name_on_the_hub(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "tasks.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "1 + 1"}], '
        '"verifier": {"kind": "math", "gold": "2"}}\n'
    )
    words = ["http://localhost:1/v1", "--tasks", "tasks.jsonl", "--out", "out"]
    assert evaluate_model.main([*words, "--tokenizer", "empty"]) == 2
    told = capsys.readouterr().err
    assert "--tokenizer = empty: empty/tokenizer.json does not exist" in told
    assert "hf download" not in told
