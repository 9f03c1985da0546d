"""The example notebooks as they lie there: with outputs that their own code made, and nothing of this machine."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import nbformat
import pytest

REPO = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((REPO / "example_notebooks").glob("*.ipynb"))
MOST = 300_000  # bytes
WIDEST = 120  # characters of a line: what is longer is cut where a notebook is shown
RUN_ALL = runpy.run_path(str(REPO / "example_notebooks" / "run_all.py"))
SILENT = ("%load_ext", "import importlib")
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def _read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


@each
def test_outputs_are_those_of_this_code(path: Path) -> None:
    node = _read(path)
    code = [cell for cell in node.cells if cell.cell_type == "code"]
    assert node.metadata["nbtune"]["code"] == RUN_ALL["digest"](node), "run `make notebooks`"
    shown = [cell for cell in code if not cell.source.startswith(SILENT) and "\n).to_csv(" not in cell.source]
    assert [cell.source for cell in shown if not cell.outputs] == []
    outputs = [output for cell in code for output in cell.outputs]
    assert [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"] == []
    assert any("image/png" in str(output.get("data")) for output in outputs)
    assert path.stat().st_size <= MOST
    assert [line for cell in code for line in cell.source.splitlines() if len(line) > WIDEST] == []
    assert not [output for output in outputs if "<pre>" in str(output)]  # in no code's type on GitHub
    for place in ("/home/", "/root/", "/tmp/", "site-packages", str(REPO), "C:\\\\"):
        assert place not in path.read_text(encoding="utf-8")


@each
def test_badges_open_this_very_notebook(path: Path) -> None:
    node = _read(path)
    file = f"github.com/nbtune/nbtune/blob/main/example_notebooks/{path.name})"
    assert f"https://colab.research.google.com/github/{file.removeprefix('github.com/')}" in node.cells[0].source
    assert f"https://kaggle.com/kernels/welcome?src=https://{file}" in node.cells[0].source
    first = next(cell.source for cell in node.cells if cell.cell_type == "code")
    assert 'find_spec("nbtune") is None' in first  # where it is installed nothing is


def _node(text: str, code: str = "print()") -> Any:
    output = nbformat.v4.new_output("execute_result", {"text/plain": text})
    node = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code, outputs=[output])])
    node.metadata["nbtune"] = {"code": RUN_ALL["digest"](node)}
    return node


@pytest.mark.parametrize(
    ("kept", "fresh", "same"),
    [
        ("runs/a-b980b5/x", "runs/a-0123ab/x", True),
        ("Time: 4 min 59 s", "Time: 3 s", True),
        ("Tokens: 73,314, 310 a second", "Tokens: 73,314, 7 a second", True),
        ("loss 3.441 → 0.0341", "loss 3.442 → 0.0342", True),
        ("loss 3.441 → 0.0341", "loss 3.441 → 0.5", False),
        ("change by 2e-07", "change by 5e-07", True),
        ("change by 2e-07", "change by 2e-04", False),
        ("Ahoy!", "Hello!", False),
        ("one\ntwo", "one", False),
    ],
)
def test_what_is_compared(kept: str, fresh: str, same: bool) -> None:
    assert (RUN_ALL["differences"](_node(kept), _node(fresh)) == []) == same


def test_other_code_and_other_kinds_of_output_differ() -> None:
    assert RUN_ALL["differences"](_node("1"), _node("1", code="print(2)"))
    other = _node("1")
    other.cells[0].outputs[0].data["image/png"] = "…"
    assert RUN_ALL["differences"](_node("1"), other)
