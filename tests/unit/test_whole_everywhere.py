"""Every file is written whole, by `storage/whole.py`, or is known here to need no such."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(
    path.relative_to(ROOT)
    for folder in ("megatron_qwen3", "data_prep", "tools", "examples")
    for path in (ROOT / folder).rglob("*.py")
)
# Where files are opened to be written to otherwise, and why nobody takes a half for the whole.
_NAMELESS = "within a folder that gets its name when all is written"
OTHERWISE = {
    "megatron_qwen3/storage/whole.py": "writes whole files",
    "megatron_qwen3/storage/folder.py": "a checkpoint, of which no step may be without a whole one",
    "megatron_qwen3/storage/manifest.py": _NAMELESS,
    "megatron_qwen3/storage/torch_dist.py": _NAMELESS,
    "megatron_qwen3/storage/lock.py": "a lock is held, not read",
    "megatron_qwen3/posttrain/teachers/teacher_set.py": (
        "whole files in a folder that gets its name at last"
    ),
    "megatron_qwen3/convert/dcp_writer.py": _NAMELESS,
    "megatron_qwen3/convert/hf_writer.py": _NAMELESS,
    "megatron_qwen3/convert/hf_config.py": _NAMELESS,
    "megatron_qwen3/posttrain/rollouts/record.py": "what it renames is on its way out",
    "examples/reproduce/running.py": "a log grows, for people",
    "megatron_qwen3/training/metrics.py": "a log grows line by line, and its reader knows",
    "megatron_qwen3/training/row_file.py": "a log grows line by line, and its reader knows",
    "megatron_qwen3/training/hang.py": "the last words of a rank",
    "megatron_qwen3/training/origin.py": "a note beside the run, written again at each start",
    "megatron_qwen3/posttrain/building/answer_log.py": "a log grows line by line, and is mended",
    "megatron_qwen3/posttrain/rewards/kept_replies.py": "a log makes room for the next one",
    "megatron_qwen3/studies/local.py": "the log of a process that runs",
    "megatron_qwen3/posttrain/rollouts/vllm_server.py": "the log of a process that runs",
    "megatron_qwen3/posttrain/sandbox/process.py": "a descriptor of a file in memory, not a path",
    "megatron_qwen3/posttrain/sandbox/tries.py": "what is tried in the sandbox, to see it refused",
    "data_prep/clean/dedup/numbering.py": "moves whole folders, and may do so again",
    "data_prep/clean/files.py": "counts of progress, which a reader takes for 0 while they change",
    "data_prep/clean/stages.py": "nothing: os.devnull",
    "examples/quickstart/prepare.py": _NAMELESS,
}


def writes(source):
    """Lines on which a file is opened to be written to, or gets the name of another."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(func=ast.Attribute(attr="write_text" | "write_bytes" | "rename")):
                yield node.lineno
            case ast.Call(func=ast.Attribute(attr="replace", value=ast.Name(id="os"))):
                yield node.lineno
            case ast.Call(func=ast.Attribute(attr="replace"), args=[_], keywords=[]):
                yield node.lineno  # a path's: a text's takes two
            case ast.Call(func=ast.Attribute(attr="open") | ast.Name(id="open")):
                words = [ast.unparse(word).strip("'") for word in [*node.args, *node.keywords]]
                modes = {word.removeprefix("mode='") for word in words}
                if any(m[:1] in "wxa" and len(m) <= 3 and set(m) <= set("wxab+t") for m in modes):
                    yield node.lineno


@pytest.mark.parametrize("path", FILES, ids=str)
def test_files_are_written_whole(path):
    lines = list(writes((ROOT / path).read_text(encoding="utf-8")))
    assert not lines or str(path) in OTHERWISE, f"{path}: lines {lines}; use storage/whole.py"


@pytest.mark.parametrize(
    "line",
    [
        *("p.write_text('a')", "p.write_bytes(b)", "p.open('w')", "open(p, 'ab')"),
        *("open(p, mode='x')", "os.replace(a, b)", "a.rename(b)", "a.replace(b)"),
    ],
)
def test_the_rule_finds_a_file_that_is_written_piece_by_piece(line):
    assert list(writes(line))
    assert not list(writes("p.open('rb'); text.replace('a', 'b'); replace(row, size=1)"))
