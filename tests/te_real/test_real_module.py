"""The stand-in for Transformer Engine's compiled module in tests/te has its names and numbers."""

import transformer_engine
import transformer_engine_torch as compiled

from tests.te.stand_in import API

PUBLIC = {name: value for name, value in vars(compiled).items() if not name.startswith("__")}


def test_version_and_enums_are_those_of_the_compiled_module():
    enums = {
        name: {member: int(value) for member, value in kind.__members__.items()}
        for name, kind in PUBLIC.items()
        if hasattr(kind, "__members__")
    }
    assert transformer_engine.__version__.partition("+")[0] == API["version"]
    assert API["enums"] == enums


def test_classes_and_all_other_names_are_those_of_the_compiled_module():
    kinds = {name for name, value in PUBLIC.items() if isinstance(value, type)}
    assert sorted(API["classes"]) == sorted(kinds - API["enums"].keys())
    assert sorted(API["functions"]) == sorted(PUBLIC.keys() - kinds)
