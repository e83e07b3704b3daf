"""The notebooks, executed as a user would, on finished runs; in git they have no outputs."""

from __future__ import annotations

import json
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.support.commands import Shell

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def executed(name: str, monkeypatch: pytest.MonkeyPatch, **places: Path) -> nbformat.NotebookNode:
    """The notebook with its outputs; a cell that raises raises here."""
    for variable, place in places.items():
        monkeypatch.setenv(variable, str(place))
    notebook = nbformat.read(FOLDER / name, as_version=4)
    return NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(FOLDER)}}).execute()


def pictures(notebook: nbformat.NotebookNode) -> int:
    return sum("image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", []))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_they_have_no_outputs_in_git(path: Path) -> None:
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert cells
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)


@pytest.fixture(scope="module")
def sweep(run_command: Shell, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of one trial over the embedded pool, trained for ten steps."""
    folder = tmp_path_factory.mktemp("notebooks")
    command = (
        "python -m orchestrator sweep +exp=demo_sweep sweep.space.keep_fraction.grid=[0.5] "
        "sweep.space.num_clusters.grid=[20] sweep.controls.full=false sweep.controls.random=false sweep.samples=1280 "
        "embedding.lite.image_size=32 finetune.enabled=false out=OUT store=STORE"
    )
    done = run_command(command, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "OUT"


@pytest.fixture(scope="module")
def trial(sweep: Path) -> Path:
    """The run of its trial."""
    (found,) = (sweep / "trials").iterdir()
    return found


@pytest.mark.slow
def test_words(tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = executed("1_words.ipynb", monkeypatch, RUN=tiny_run / "OUT")
    assert pictures(notebook) == 1
    # the lowest and the highest scores, which word-frequency pruning has
    assert len(notebook.cells[-1]["outputs"]) == 2


@pytest.mark.slow
def test_clusters(trial: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pictures(executed("2_clusters.ipynb", monkeypatch, RUN=trial)) == 5


@pytest.mark.slow
def test_a_sweep(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pictures(executed("3_sweep.ipynb", monkeypatch, SWEEP=sweep)) == 2
