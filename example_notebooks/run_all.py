"""Executes notebooks as a newcomer's machine would: own home, own runs, no Hub. `make notebooks` runs them all.

    python example_notebooks/run_all.py [NAME…]            # and keeps what came out in the notebooks themselves
    python example_notebooks/run_all.py --check [NAME…]    # changes nothing; ends with an error where something differs

What is kept are the outputs, without when and how long, and a digest of the code that made them.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent
REPO = HERE.parent
NOISE = 1e-5  # what only rounding makes is another number wherever sums are in another order
NEAR = 0.2  # of a number: what other processors’ roundings make of a loss in the end (0.1178 and 0.1352 were seen)
_CACHE = str(Path.home() / ".cache" / "huggingface")
_RUN_ID = re.compile(r"(?<=-)[0-9a-f]{6}\b")
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")
_OF_THE_MACHINE = re.compile(r"(?im)^.*\b(time|memory|RAM|device|batch|disk|threads?|seconds?|a second)\b.*\n?")


def empty_environment(folder: Path, *, offline: bool = True) -> dict[str, str]:
    """What a kernel is given: a home with nothing in it, no login, no cache, no Hub (if offline)."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "NBTUNE_", "JUPYTER"))}
    home = str(folder / "home")
    return {
        **kept,
        "HOME": home,
        "XDG_CACHE_HOME": f"{home}/.cache",
        "IPYTHONDIR": f"{home}/.ipython",
        "JUPYTER_CONFIG_DIR": f"{home}/.jupyter",
        "JUPYTER_PLATFORM_DIRS": "1",
        **({"HF_HUB_OFFLINE": "1"} if offline else {"HF_HOME": os.environ.get("HF_HOME", _CACHE)}),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2"),
        "TOKENIZERS_PARALLELISM": "false",
    }


def execute(notebook: Path, folder: Path, *, timeout: float = 600.0, change: Any = None, offline: bool = True) -> Any:
    """Run a notebook from its first cell to its last in `folder`, and leave the executed copy there.

    Args:
        notebook: the `.ipynb`; it is not changed.
        folder: becomes the kernel's working directory; emptied first.
        timeout: seconds for one cell.
        change: is called with the notebook before it runs.
        offline: whether the kernel is kept from the Hub.
    Returns:
        The executed notebook, with its outputs.
    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "home").mkdir(parents=True)
    node = nbformat.read(notebook, as_version=4)
    if change is not None:
        change(node)
    client = NotebookClient(node, timeout=timeout, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    try:
        with (folder / "kernel.log").open("wb") as log:
            client.execute(env=empty_environment(folder, offline=offline), stderr=log)
    finally:
        nbformat.write(node, folder / notebook.name)
    return node


def digest(node: Any) -> str:
    """Return a digest of a notebook's code: outputs of another one are not those of this."""
    code = "\0".join(cell.source for cell in node.cells if cell.cell_type == "code")
    return hashlib.sha256(code.encode()).hexdigest()[:16]


def keep(node: Any, notebook: Path) -> None:
    """Write an executed notebook in the place of the one that was executed, without when and how long."""
    for cell in node.cells:
        cell.metadata = {}
    node.metadata["nbtune"] = {"code": digest(node)}
    nbformat.write(node, notebook)


def differences(kept: Any, fresh: Any) -> list[str]:
    """Return in what two executed notebooks differ: code, kinds of outputs, words, numbers by more than a fifth.

    Names of runs, times, memory and what else a machine says of itself are not compared; of pictures only that there
    are some.
    """
    found = [] if kept.metadata.get("nbtune", {}).get("code") == digest(fresh) else ["its code is another"]
    cells = [[cell for cell in node.cells if cell.cell_type == "code"] for node in (kept, fresh)]
    for number, (was, now) in enumerate(zip(*cells, strict=False), 1):
        said = [[_told(output) for output in cell.outputs] for cell in (was, now)]
        if [kinds for kinds, _ in said[0]] != [kinds for kinds, _ in said[1]]:
            found.append(f"cell {number} shows {[k for k, _ in said[1]]}, {[k for k, _ in said[0]]} is kept")
            continue
        found += [
            f"cell {number}: {one!r} was {other!r}"
            for (_, before), (_, after) in zip(*said, strict=True)
            for other, one in _unlike(before, after)
        ]
    return found


def _told(output: Any) -> tuple[str, str]:
    """Return the kinds of an output, and its text without what the machine says of itself."""
    data = output.get("data", {})
    text = _RUN_ID.sub("******", output.get("text") or data.get("text/plain", ""))
    return " ".join([output.output_type, *sorted(data)]), _OF_THE_MACHINE.sub("", text)


def _unlike(before: str, after: str) -> list[tuple[str, str]]:
    """Return pairs of lines with other words, or with a number that is not near."""
    lines = before.splitlines(), after.splitlines()
    if len(lines[0]) != len(lines[1]):
        return [(before, after)]
    return [
        (was, now)
        for was, now in zip(*lines, strict=True)
        if _words(was) != _words(now)
        or any(
            abs(a - b) > max(NOISE, NEAR * max(abs(a), abs(b)))
            for a, b in zip(_numbers(was), _numbers(now), strict=True)
        )
    ]


def _words(line: str) -> list[str]:
    return _NUMBER.sub("#", line).split()


def _numbers(line: str) -> list[float]:
    return [float(number.replace(",", "")) for number in _NUMBER.findall(line)]


def main(arguments: list[str]) -> None:
    """Execute the named notebooks, or all; keep their outputs, or compare with what is kept."""
    check, names = "--check" in arguments, [name for name in arguments if name != "--check"]
    wrong: list[str] = []
    for notebook in [HERE / name for name in names] or sorted(HERE.glob("*.ipynb")):
        start = time.perf_counter()
        node = execute(notebook, REPO / "artifacts" / "notebooks" / notebook.stem)
        if check:
            found = differences(nbformat.read(notebook, as_version=4), node)
            wrong += [f"{notebook.name}, {each}" for each in found]
        else:
            keep(node, notebook)
        print(f"{notebook.name}: {time.perf_counter() - start:.0f} s", flush=True)
    if wrong:
        sys.exit("\n".join([*wrong, "`make notebooks` keeps what comes out now"]))


if __name__ == "__main__":
    main(sys.argv[1:])
