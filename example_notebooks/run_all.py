"""Executes notebooks as a newcomer's machine would: own home, own runs, no Hub. `make notebooks` runs them all.

python example_notebooks/run_all.py [NAME…]      # executed copies go to artifacts/notebooks/
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent
REPO = HERE.parent


def empty_environment(folder: Path) -> dict[str, str]:
    """What a kernel is given: a home with nothing in it, no login, no cache, no Hub."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "NBTUNE_", "JUPYTER"))}
    home = str(folder / "home")
    return {
        **kept,
        "HOME": home,
        "XDG_CACHE_HOME": f"{home}/.cache",
        "IPYTHONDIR": f"{home}/.ipython",
        "JUPYTER_CONFIG_DIR": f"{home}/.jupyter",
        "JUPYTER_PLATFORM_DIRS": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2"),
        "TOKENIZERS_PARALLELISM": "false",
    }


def execute(notebook: Path, folder: Path, *, timeout: float = 600.0) -> Any:
    """Run a notebook from its first cell to its last in `folder`, and leave the executed copy there.

    Args:
        notebook: the `.ipynb`; it is not changed.
        folder: becomes the kernel's working directory; emptied first.
        timeout: seconds for one cell.
    Returns:
        The executed notebook, with its outputs.
    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "home").mkdir(parents=True)
    node = nbformat.read(notebook, as_version=4)
    client = NotebookClient(node, timeout=timeout, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    try:
        with (folder / "kernel.log").open("wb") as log:
            client.execute(env=empty_environment(folder), stderr=log)
    finally:
        nbformat.write(node, folder / notebook.name)
    return node


def main(names: list[str]) -> None:
    """Execute the named notebooks, or all."""
    notebooks = [HERE / name for name in names] or sorted(HERE.glob("*.ipynb"))
    for notebook in notebooks:
        start = time.perf_counter()
        execute(notebook, REPO / "artifacts" / "notebooks" / notebook.stem)
        print(f"{notebook.name}: {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
