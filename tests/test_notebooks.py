"""The notebooks: their cells run in order, with fakes of compiled programs; with `pytest -m install`, in a real kernel,
where what they learn is worth showing."""

import json
import os
import re
from pathlib import Path

import pytest
from fakes import use_fakes
from PIL import Image
from tiny import TinyNet

from dslth_jax.networks import zoo
from dslth_jax.study.config import spellings
from dslth_jax.study.results import pictures

ROOT = Path(__file__).parents[1]
NOTEBOOKS = {path.stem: json.loads(path.read_text()) for path in (ROOT / "experiments" / "notebooks").glob("*.ipynb")}
NAMES = ["first_population", "own_data_and_network", "sweep_and_report"]


def code_of(name: str) -> list[str]:
    return ["".join(cell["source"]) for cell in NOTEBOOKS[name]["cells"] if cell["cell_type"] == "code"]


def test_notebooks_are_kept_without_outputs():
    """So that a change shows what changed; whoever runs them makes the outputs."""
    assert sorted(NOTEBOOKS) == NAMES
    for notebook in NOTEBOOKS.values():
        assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook["cells"])


@pytest.mark.parametrize("name", NAMES)
def test_cells_run_in_order(name, tmp_path, monkeypatch, capsys):
    """Every cell ends, pictures can be shown, and what the last cells show is there; of two rounds, a tiny net."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(zoo.MODULES, "mlp", TinyNet)
    monkeypatch.setitem(zoo.MODULES, "wide", None)  # which one of them adds, as a partition: both are gone afterwards
    monkeypatch.setitem(spellings.PARTITIONS, "one-large", None)
    use_fakes(monkeypatch)
    monkeypatch.setattr(pictures, "save", lambda path, *_: Image.new("RGB", (1, 1)).save(path))
    names: dict = {}
    for code in code_of(name):
        exec(re.sub(r"eval_every=\d+", "eval_every=1", re.sub(r"\brounds=\d+", "rounds=2", code)), names)
    if name == "first_population":
        assert names["labels"].shape == (names["held"].sum(),)
        assert names["megabytes"]["weights"] == 32 * names["megabytes"]["bitmaps"] > 0
    elif name == "own_data_and_network":
        assert [row["samples"] for row in names["result"].agents] == [280, 105, 105, 105, 105]
        assert [row["neighbours"] for row in names["result"].agents] == [4, 1, 1, 1, 1]
    else:
        assert len(names["results"]) == 6
        assert (tmp_path / "sweep.html").stat().st_size > 10_000
        assert names["again"].metrics[-1]["round"] == 2


@pytest.mark.install
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", NAMES)
def test_a_kernel_runs_it(name, tmp_path, monkeypatch):
    """From an empty folder, to accuracies well above a guess."""
    nbclient = pytest.importorskip("nbclient", reason="nbclient and ipykernel are not installed")
    pytest.importorskip("ipykernel", reason="nbclient and ipykernel are not installed")
    import nbformat

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.delenv("JAX_DISABLE_MOST_OPTIMIZATIONS", raising=False)
    notebook = nbformat.reads(json.dumps(NOTEBOOKS[name]), as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    shown = "\n".join(one.get("text", "") + one.get("data", {}).get("text/plain", "") for one in outputs)
    assert "warning" not in shown.lower()
    print(shown)
    accuracies = [float(number) for number in re.findall(r"mean (\d+\.\d)%", shown)]
    assert accuracies[-1] > {"first_population": 60, "own_data_and_network": 80, "sweep_and_report": 60}[name]
    assert any("image/png" in output.get("data", {}) for output in outputs) or name == "own_data_and_network"
