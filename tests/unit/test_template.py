"""A folder's own chat template: transformers' rendering, told apart from Qwen3's, and contained."""

import argparse
import json

import pytest
import tokenizers

from data_prep import tokenizer as qwen
from megatron_qwen3.chat import ChatError
from megatron_qwen3.chat_template import FILE
from megatron_qwen3.config import ConfigError
from megatron_qwen3.generate import __main__ as command
from megatron_qwen3.generate import template as templates
from megatron_qwen3.generate.requests import SAMPLING_OPTIONS, Encoder
from megatron_qwen3.generate.template import FolderTemplate, template_of

pytest.importorskip("transformers")

ASKED = [{"role": "user", "content": "a b"}]
OTHER = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if messages | length > 3 %}{{ raise_exception('too many') }}{% endif %}"
    "{% if add_generation_prompt %}{{ 'thinks' if enable_thinking else 'answers' }}:{% endif %}"
)


def options(**more):
    return argparse.Namespace(
        no_think=False, seed=0, **dict.fromkeys(SAMPLING_OPTIONS, None) | more
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tokenizer's folder with a chat template that is not Qwen3's."""
    folder = tmp_path_factory.mktemp("tokenizer")
    qwen.train(["a b c abc ab"] * 9, 300, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"chat_template": OTHER, "bos_token": "<s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_a_folders_template_is_rendered_as_transformers_does_and_is_told_apart(folder):
    import transformers

    template = template_of(folder / "tokenizer.json")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    lines = [{"messages": ASKED}, {"messages": ASKED * 4}]
    for enable_thinking in (True, False):
        text, error = template.render(lines, enable_thinking)
        assert text == theirs.apply_chat_template(
            ASKED, tokenize=False, add_generation_prompt=True, enable_thinking=enable_thinking
        )
        assert isinstance(error, ChatError) and "too many" in str(error)
    assert template.differs()


def test_our_template_in_other_words_is_not_told_apart():
    words = FILE.read_text(encoding="utf-8")
    assert not FolderTemplate(FILE.parent, {"default": words}).differs()
    assert not FolderTemplate(FILE.parent, {"default": words + "{# more #}"}).differs()


def test_conversations_get_the_ids_of_the_folders_template_and_errors_name_their_line(folder):
    encoder = Encoder(qwen.load(folder), options(), template_of(folder))
    (prompt, talk) = encoder.encode_all([("1", {"prompt": "a"}), ("2", {"messages": ASKED})])
    decoded = [
        qwen.load(folder).decode(r.prompt, skip_special_tokens=False) for r in (prompt, talk)
    ]
    assert decoded == ["a", "<s>user: a b\nthinks:"]
    with pytest.raises(ConfigError, match="line 7: .*too many"):
        encoder.encode_all([("line 7", {"messages": ASKED * 4})])


@pytest.mark.parametrize(
    "bomb",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 'a' * 9999999999 }}",
        pytest.param(
            "{% set ns = namespace(x='a') %}{% for a in range(99) %}{% set ns.x = ns.x + ns.x %}"
            "{% endfor %}",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_template_without_an_end_is_ended(tmp_path, monkeypatch, bomb):
    monkeypatch.setattr(templates, "SECONDS", 1)
    with pytest.raises(ConfigError, match="did not end within 1 s and 1024 MiB"):
        FolderTemplate(tmp_path, {"default": bomb}).render([{"messages": ASKED}], True)


def test_a_template_reaches_neither_files_nor_python(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", ".")
    (tmp_path / "transformers.py").write_text("raise SystemExit(9)")  # nor runs what lies about
    texts = {
        "default": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "tool_use": "{{ messages.append('x') }}",
    }
    lines = [{"messages": ASKED}, {"messages": ASKED, "tools": [{"name": "f"}]}]
    for result in FolderTemplate(tmp_path, texts).render(lines, True):
        assert isinstance(result, ChatError) and "SecurityError" in str(result)


def test_a_template_that_differs_is_told_once_and_not_used(folder, capsys):
    assert command.template_used("qwen3", folder) is None
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert f"the chat template in {folder} renders otherwise than Qwen3's format" in told
    assert command.template_used("folder", folder) is not None
    assert capsys.readouterr().err == ""


def test_a_folder_without_a_template_has_none_to_use(tmp_path):
    qwen.train(["a b c abc ab"] * 9, 300, tmp_path)
    assert command.template_used("qwen3", tmp_path) is None
    with pytest.raises(ConfigError, match="has no chat template"):
        command.template_used("folder", tmp_path)


@pytest.mark.parametrize("content", ["[", "[" * 9999, "\udcff"])
def test_a_template_that_cannot_be_read_is_told(tmp_path, content):
    (tmp_path / "tokenizer_config.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match="its chat template cannot be read"):
        template_of(tmp_path)


def test_a_tokenizer_without_think_tokens_continues_a_prompt_and_refuses_a_conversation():
    bare = qwen.untrained()
    bare.add_tokens(["a"])
    encoder = Encoder(bare, options())
    assert encoder.encode({"prompt": "aa"}).prompt == [0, 0]
    with pytest.raises(ChatError, match="not a tokenizer for chat"):
        encoder.encode({"messages": ASKED})
    assert isinstance(bare, tokenizers.Tokenizer)
