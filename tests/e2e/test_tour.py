"""The tour, examples/tour.ipynb: a file without outputs, whose cells run and show what they say.

The whole of it, two minutes of a core, is `slow`.
"""

import ast
import importlib
import json
import math
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOUR = ROOT / "examples/tour.ipynb"
# Printed by a cell that the test appends.
RESULTS = "losses thinking_losses thoughts accuracy rewards group_of"


@pytest.fixture(scope="module")
def notebook():
    nbformat = pytest.importorskip("nbformat")
    return nbformat.read(TOUR, as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_the_tour_is_a_valid_notebook_without_outputs_of_a_machine(notebook):
    import nbformat

    nbformat.validate(notebook)
    for cell in code(notebook):
        assert cell.outputs == [] and cell.execution_count is None
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec.name == "python3"
    assert notebook.metadata.language_info == {"name": "python"}


def test_all_that_the_tour_imports_is_there(notebook):
    for cell in code(notebook):
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                for name in node.names:
                    if not hasattr(module, name.name):
                        importlib.import_module(f"{node.module}.{name.name}")
            elif isinstance(node, ast.Import):
                for name in node.names:
                    importlib.import_module(name.name)


@pytest.fixture(scope="module")
def results(notebook, tmp_path_factory):
    """The values of RESULTS after all cells ran, in a folder of their own."""
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    from nbformat.v4 import new_code_cell

    home = tmp_path_factory.mktemp("tour")
    names = ", ".join(f"{name!r}: {name}" for name in RESULTS.split())
    notebook.cells.append(new_code_cell(f"print(json.dumps({{{names}}}))"))
    manager = nbclient.NotebookClient(
        notebook, timeout=1500, resources={"metadata": {"path": str(home)}}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
        manager.create_kernel_manager()
        manager.km.kernel_spec.argv[0] = sys.executable  # whatever kernels a person installed
        manager.execute()  # raises where a cell fails
    return json.loads(notebook.cells[-1].outputs[0].text)


@pytest.mark.slow
@pytest.mark.timeout(1800)
class TestRun:
    def test_the_loss_falls_in_the_steps_of_the_engine(self, results):
        losses = results["losses"]
        assert math.isclose(losses[0], math.log(640), rel_tol=0.1)
        assert losses[-1] < 0.8 * losses[0]

    def test_the_model_that_thinks_learns(self, results):
        losses = results["thinking_losses"]
        assert losses[-1] < 0.2 * losses[0]

    def test_no_answer_thinks_more_than_its_budget(self, results):
        thoughts = {int(budget): counts for budget, counts in results["thoughts"].items()}
        assert all(max(counts) <= budget for budget, counts in thoughts.items())
        assert max(thoughts[4]) == 4  # some are cut
        assert max(thoughts[32]) > 8  # and some not

    def test_thinking_that_is_not_cut_is_right_more_often(self, results):
        assert results["accuracy"]["32"] > results["accuracy"]["0"]

    def test_each_rollout_has_a_reward_between_0_and_1(self, results):
        rewards = results["rewards"]
        assert len(rewards) == len(results["group_of"]) == 5 * 8
        assert all(0 <= reward <= 1 for reward in rewards)
        assert sum(rewards) > 0
