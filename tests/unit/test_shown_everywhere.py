"""Text from outside is shown to people through `shown.py`, everywhere in the tree.

`print`, Rich's tables, bars and consoles take constants, numbers with a format, and results
of `shown.py`'s functions; nothing else, so that no new line of output can forget it. Tables
are made by `tables.py` alone, which escapes every cell.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(
    path.relative_to(ROOT)
    for folder in ("megatron_qwen3", "data_prep", "tools", "examples")
    for path in (ROOT / folder).rglob("*.py")
    if path.name not in ("shown.py", "tables.py")
)
SHOWN = {"shown", "shown_lines", "shown_text", "plain", "as_json"}
NUMBERS = {"len", "sum", "count", "duration", "clock", "round"}  # give numbers, or them as text


def is_safe(node):
    """Whether an expression can hold no text from outside that was not escaped."""
    match node:
        case ast.Constant():
            return True
        case ast.JoinedStr(values=values):
            return all(map(is_safe, values))
        case ast.FormattedValue(format_spec=ast.JoinedStr(values=[ast.Constant(value=spec)])):
            return spec[-1] in ",defg%" or is_safe(node.value)
        case ast.FormattedValue(value=value) | ast.Starred(value=value):
            return is_safe(value)
        case ast.IfExp(test=ast.Call(func=ast.Name(id="isinstance"), args=[what, kind])):
            is_text = ast.unparse(kind) == "str" and ast.unparse(what) == ast.unparse(node.orelse)
            return is_text and is_safe(node.body)  # anything but text was made elsewhere here
        case ast.IfExp(body=body, orelse=orelse):
            return is_safe(body) and is_safe(orelse)
        case ast.BinOp(left=left, right=right):
            return is_safe(left) and is_safe(right)
        case ast.Call(func=ast.Name(id="map"), args=[ast.Name(id=name), *_]):
            return name in SHOWN
        case ast.Call(func=ast.Name(id=name)):
            return name in SHOWN | NUMBERS
        case ast.Call(func=ast.Attribute(attr="dumps", value=ast.Name(id="json"))):
            return not any(keyword.arg == "ensure_ascii" for keyword in node.keywords)
    return False


def is_table(node):
    """A table by its variable, or by a function of the module that makes one."""
    match node:
        case ast.Name(id="table"):
            return True
        case ast.Call(func=ast.Name(id=name)):
            return name == "table" or name.startswith("_")
        case ast.Call(func=ast.Attribute(attr="table", value=ast.Name(id="tables"))):
            return True  # its cells are escaped there
    return False


def faults_of(source):
    """(line, source) of every place where text could be shown as it stands."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        named = {keyword.arg: keyword.value for keyword in node.keywords}
        match node.func:
            case ast.Name(id="print"):
                unsafe = [arg for arg in node.args if not is_safe(arg)]
            case ast.Attribute(attr="print"):
                unsafe = [arg for arg in node.args if not (is_safe(arg) or is_table(arg))]
            case ast.Attribute(attr="add_row" | "add_task"):
                unsafe = [arg for arg in node.args if not is_safe(arg)]
            case ast.Attribute(attr="update") if "description" in named:
                unsafe = [named["description"]] * (not is_safe(named["description"]))
            case ast.Name(id="TextColumn"):
                unsafe = [node] * ("{" in ast.unparse(node.args[0]) and "markup" not in named)
            case ast.Name(id="Table"):
                unsafe = [node] * ("from rich.table import" in source)  # tables.py makes them
            case ast.Name(id="Text" | "track"):
                unsafe = [node]
            case _:
                continue
        yield from ((one.lineno, ast.unparse(one)) for one in unsafe)


@pytest.mark.parametrize("path", FILES, ids=str)
def test_everything_that_is_shown_is_escaped(path):
    found = [f"{path}:{line}: {what}" for line, what in faults_of((ROOT / path).read_text("utf-8"))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "line",
    [
        "print(name)",
        "print(f'wrote {out}')",
        "print(f'{error}', file=sys.stderr)",
        "print(json.dumps(row, ensure_ascii=False))",
        "print(shown(a) + b)",
        "table.add_row(label)",
        "table.add_row(*cells)",
        "table.add_row(f'{label:8}')",
        "console.print(f'{out}')",
        "self._console.print(line, markup=False)",
        "from rich.table import Table; Table(title='constant')",
        "TextColumn('{task.description}')",
        "bar.add_task(path.name)",
        "bar.update(task, description=name)",
        "Text(label)",
        "track(files, path.name)",
    ],
)
def test_the_rule_finds_text_that_is_not_escaped(line):
    assert list(faults_of(line))
