"""The notebooks in examples/: they run with the code as it is, and show what they showed when saved."""

from __future__ import annotations

import itertools
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("nbclient", reason="needs nbclient: pip install parbake[test]")
pytest.importorskip("ipykernel", reason="needs ipykernel: pip install parbake[test]")
pytest.importorskip("matplotlib", reason="needs matplotlib: pip install parbake[plot]")

import nbformat
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient

REPOSITORY = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((REPOSITORY / "examples").glob("*.ipynb"))
NBYTES_MAX = 700_000

each_notebook = pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)


def kernels(folder: Path) -> KernelSpecManager:
    """This interpreter as the kernel "python3", whatever is installed of that name, with its own home."""
    spec = {
        "argv": [
            *(sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"),
            "--HistoryManager.enabled=False",
        ],
        "display_name": "Python 3",
        "language": "python",
        "env": {
            "IPYTHONDIR": str(folder / "ipython"),
            "PARBAKE_CACHE": str(folder / "cache"),
            "PYTHONPATH": str(REPOSITORY),
        },
    }
    (folder / "kernels" / "python3").mkdir(parents=True)
    (folder / "kernels" / "python3" / "kernel.json").write_text(json.dumps(spec))
    return KernelSpecManager(kernel_dirs=[str(folder / "kernels")], ensure_native_kernel=False)


def executed(notebook: Any, folder: Path) -> Any:
    """The notebook run from top to bottom in an empty folder; raises at the first cell that does."""
    work = folder / "work"
    work.mkdir()
    manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=kernels(folder))
    resources = {"metadata": {"path": str(work)}}
    return NotebookClient(notebook, km=manager, resources=resources, timeout=120).execute(cleanup_kc=True)


def shown(cell: Any) -> list[tuple[str, ...]]:
    """What a cell shows, without what differs from run to run: streams, and the kinds of its results.

    A stream comes in as many pieces as it is read in.
    """
    kinds = [
        (output.output_type, *(sorted(output.data) if "data" in output else [output.get("name", "")]))
        for output in cell.outputs
    ]
    return [kind for kind, _ in itertools.groupby(kinds)]


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@each_notebook
def test_notebook_runs_and_shows_what_is_saved(file: Path, tmp_path: Path) -> None:
    saved = nbformat.read(file, as_version=4)
    run = executed(nbformat.read(file, as_version=4), tmp_path)
    for before, now in zip(code_cells(saved), code_cells(run), strict=True):
        assert shown(now) == shown(before), now.source
        assert "error" not in {output.output_type for output in now.outputs}
        assert "stderr" not in {output.get("name") for output in now.outputs}, now.outputs


@each_notebook
def test_saved_notebook_is_clean(file: Path) -> None:
    text = file.read_text()
    assert len(text) < NBYTES_MAX
    notebook = nbformat.read(file, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert all(not cell.metadata for cell in notebook.cells)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    # where it was run is nobody's business; addresses of objects differ from run to run
    assert re.findall(r"/tmp/|/root|/work|\.venv|site-packages| at 0x[0-9a-f]{6,}", text) == []


def test_there_are_two_notebooks() -> None:
    assert [file.stem for file in NOTEBOOKS] == ["look_at_a_store", "mesh_pairs"]
