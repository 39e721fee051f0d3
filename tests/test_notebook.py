"""docs/quickstart.ipynb runs from top to bottom, shows what it says, is kept without outputs."""

import base64
import re
from pathlib import Path

import numpy as np
import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs" / "quickstart.ipynb"
nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")


@pytest.fixture(scope="module")
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_no_output_and_no_run_is_kept(notebook):
    """They would change with every run, and may hold images of a patient."""
    nbformat.validate(notebook)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None)
            assert cell.metadata == {}


def test_the_file_is_as_nbformat_writes_it(notebook):
    """So that saving it again changes the lines that were edited alone."""
    assert nbformat.writes(notebook) + "\n" == NOTEBOOK.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def run(notebook, tmp_path_factory):
    """The notebook after a run in an empty folder."""
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    folder = tmp_path_factory.mktemp("notebook")
    client = nbclient.NotebookClient(
        nbformat.from_dict(notebook),
        timeout=240,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    )
    return client.execute(), folder


def printed(cell) -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def cell_with(notebook, text: str):
    (found,) = (cell for cell in notebook.cells if text in cell.source)
    return found


@pytest.mark.slow
def test_every_cell_runs_and_warns_of_nothing(run):
    notebook, _ = run
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            assert output.output_type != "error"
            assert output.get("name") != "stderr", output.text


@pytest.mark.slow
def test_the_table_has_every_plan_and_its_differences(run):
    notebook, _ = run
    lines = printed(cell_with(notebook, "further sample")).splitlines()
    rows = [line.split() for line in lines[1:5]]
    assert [tuple(row[:2]) for row in rows] == [
        ("114", "TMZ"), ("114", "none"), ("174", "TMZ"), ("174", "none"),
    ]  # fmt: skip
    volumes = np.array([float(row[2]) for row in rows])
    assert (volumes > 0.1).all(), "the slices hold tumour"
    apart = [float(re.search(r": ([+-][\d.]+) ml", line)[1]) for line in lines[5:]]
    np.testing.assert_allclose(apart, volumes[::2] - volumes[1::2], atol=0.011)


@pytest.mark.slow
def test_pictures_show_the_slices_that_were_forecast(run):
    """The outline of the tumour is drawn, so the slice shown is one that was forecast."""
    notebook, _ = run
    for text in (", acquired", "standard deviation"):
        cell = cell_with(notebook, text)
        (png,) = (o.data["image/png"] for o in cell.outputs if "data" in o)
        assert len(base64.b64decode(png)) > 30_000


@pytest.mark.slow
def test_the_page_is_written(run):
    notebook, folder = run
    page = (folder / "forecast.html").read_text(encoding="utf-8")
    assert "research use" in page
    assert "forecast.html" in printed(cell_with(notebook, "report_html"))
