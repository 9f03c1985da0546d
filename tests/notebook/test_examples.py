"""The example notebooks: papermill and nbconvert run them to the very same losses, and to what they show already."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from nbtune import events
from nbtune.store.event_log import EventReader
from tests.support.every import every

pytestmark = pytest.mark.slow

REPO = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((REPO / "example_notebooks").glob("*.ipynb"))
MOST = 300_000  # bytes that a finished notebook may hold

PAPERMILL = ["papermill", "--no-progress-bar", "--cwd", "{folder}", "{notebook}", "{folder}/done.ipynb"]
NBCONVERT = ["jupyter", "nbconvert", "--to", "notebook", "--execute", "--output", "done", "{folder}/{name}"]


def execute(command: list[str], notebook: Path, folder: Path) -> dict[str, list[float]]:
    """Losses of each run, by name."""
    folder.mkdir()
    (folder / notebook.name).write_bytes(notebook.read_bytes())
    filled = [part.format(folder=folder, notebook=notebook, name=notebook.name) for part in command]
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("NBTUNE_", "MPL"))}
    done = subprocess.run(
        [sys.executable, "-m", *filled],
        cwd=folder,
        env={**kept, "HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = {
        log.parent.name.rpartition("-")[0]: [e.loss for e in EventReader(log).read() if isinstance(e, events.Step)]
        for log in sorted(folder.rglob("events.jsonl"))
    }
    assert found
    assert every(found.values())
    return found


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_twice_to_the_same_losses(notebook: Path, tmp_path: Path) -> None:
    first = execute(PAPERMILL, notebook, tmp_path / "papermill")
    second = execute(NBCONVERT, notebook, tmp_path / "nbconvert")
    assert first == second
    body = (tmp_path / "papermill" / "done.ipynb").read_text(encoding="utf-8")
    compare = runpy.run_path(str(REPO / "example_notebooks" / "run_all.py"))["differences"]
    kept = nbformat.read(notebook, as_version=4)
    assert compare(kept, nbformat.reads(body, as_version=4)) == [], "run `make notebooks`"
    assert len(body) <= MOST
    outputs = [o for cell in nbformat.reads(body, as_version=4).cells for o in cell.get("outputs", [])]
    assert str(tmp_path) not in str(outputs)  # papermill's own metadata names its files
    assert any("image/png" in str(output.get("data")) for output in outputs)  # also inside HTML
    assert not any(output.output_type == "error" for output in outputs)
