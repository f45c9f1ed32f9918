"""The notebooks run from top to bottom on a small run, and were saved with what they really printed."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def test_there_is_one_for_each_use():
    assert [path.stem for path in NOTEBOOKS] == ["ask_the_predictor", "export_the_best", "run_a_search"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, finished_run, monkeypatch):
    monkeypatch.setenv("SECATEUR_NOTEBOOK_RUN", str(finished_run))
    monkeypatch.setenv("SECATEUR_NOTEBOOK_CONFIG", str(finished_run / "config.yaml"))
    monkeypatch.setenv("PYTHONPATH", str(path.parents[1]))  # also where secateur is not installed
    notebook = nbformat.read(path, 4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(path.parent)}}).execute()
    assert any(cell.outputs for cell in notebook.cells if cell.cell_type == "code")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_was_saved_with_its_output(path):
    code = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    outputs = [output for cell in code for output in cell.outputs]
    assert outputs
    assert not [output for output in outputs if output.output_type == "error"]
