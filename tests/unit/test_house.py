"""Rules of the house: the places where things may be asked for and imported."""

import ast
import functools
from collections import defaultdict
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "megatron_qwen3"


def modules(*leaving_out):
    """Each module's path within the package, and what `read` finds there."""
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if not name.startswith(leaving_out or ("\0",)):
            yield name, *read(path)


@functools.cache
def read(path):
    """What a module names, the names that its imports give, the modules that it imports, and its
    classes."""
    names, given, imported = set(), set(), set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name):
                names.add(name)
            case ast.ImportFrom(module=module, names=these):
                imported.add(module or "")
                given |= {one.name.rpartition(".")[2] for one in these}
            case ast.Import(names=these):
                imported |= {one.name for one in these}
                given |= {one.name.rpartition(".")[2] for one in these}
    return names, given, imported, [x.name for x in tree.body if isinstance(x, ast.ClassDef)]


def test_no_module_above_the_model_asks_for_process_groups_of_the_whole_process():
    """A process may have models of several layouts: each knows its own groups."""
    asking = {
        name
        for name, names, given, *_ in modules("parallel/", "model/")
        if {"parallel_state", "use_mpu_process_groups", "mpu"} & (names | given)
    }
    assert not asking


def test_whether_there_is_a_gpu_is_asked_in_one_package_and_in_the_choice_of_modules():
    asking = {
        name
        for name, names, *_ in modules("cpu/", "model/specs.py")
        if {"REDIRECTED", "is_cuda"} & names
    }
    assert not asking


def test_nobody_makes_fake_tensors():
    """Where torch is built for CUDA and sees no GPU they give it a pretended one, for good: the
    next backward pass of the process dies."""
    making = {name for name, names, given, *_ in modules() if "FakeTensorMode" in names | given}
    assert not making


def test_megatron_core_is_imported_in_one_module_which_prepares_it():
    importing = {
        name
        for name, _, _, imported, _ in modules("cpu/")
        if any(module.startswith("megatron.") for module in imported)
    }
    assert importing == {"parallel/mcore.py"}


def test_no_two_test_files_have_one_name():
    """pytest imports them by their names alone, and refuses the second where it collects both."""
    names = [path.name for path in (PACKAGE.parent / "tests").rglob("test_*.py")]
    assert sorted(set(names)) == sorted(names)


def test_a_class_has_a_name_of_its_own():
    """Readers, searches and errors know a class by its name alone."""
    places = defaultdict(list)
    for package in (PACKAGE, PACKAGE.parent / "data_prep"):
        for path in sorted(package.rglob("*.py")):
            for name in read(path)[-1]:
                if not name.startswith("_"):
                    places[name].append(path.relative_to(PACKAGE.parent).as_posix())
    assert not {name: paths for name, paths in places.items() if len(paths) > 1}
