"""Cells with wrong requests or rows, in a real shell: one block with cause and fix, before or instead of training."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import nbtune
from nbtune.notebook import display_run
from nbtune.widgets import run_status

GOOD = [{"prompt": f"How much is {i} plus 1?", "completion": f"{i} plus 1 is {i + 1}."} for i in range(16)]


def run(shell: Any, capfd: Any, cell: str) -> tuple[Any, str]:
    """(what the cell raised, what it showed without colours)."""
    capfd.readouterr()
    result = shell.run_cell(cell)
    captured = capfd.readouterr()
    return result.error_in_exec, re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", captured.out + captured.err)


@pytest.mark.parametrize(
    ("body", "rows", "cause"),
    [
        ("data: nowhere.jsonl", GOOD, "nowhere.jsonl"),
        ("data: nothing_called_so", GOOD, "nothing_called_so"),
        ("data: rows", [], "rows"),
        ("data: rows", [{"prompt": "Hi", "completion": ""}] * 8, "no token would be trained (0 %)"),
        ("data: rows", [{"colour": "red", "size": 3}] * 8, "colour"),
        ("data: {source: rows, columns: {prompt: question}}", GOOD, "question"),
        ("data: rows\nmodel: ./nowhere", GOOD, "nowhere"),
        ("data: rows\nmodel: nowhere/no-model", GOOD, "nowhere/no-model"),
    ],
    ids=["missing file", "missing name", "empty", "all masked", "columns", "a column", "model folder", "model"],
)
def test_what_cannot_be_trained_is_said(shell: Any, capfd: Any, body: str, rows: Any, cause: str) -> None:
    shell.user_ns["rows"] = rows
    error, shown = run(shell, capfd, f"%%finetune --name bad\n{body}\nsteps: 1\n")
    assert error is not None
    assert re.search(r"^(SpecError|DataError|HubError)", shown, re.MULTILINE), shown
    assert cause in shown
    assert "→ " in shown
    assert "Traceback" not in shown


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            "{source: mine.csv, columns: {prompt: question, completion: repply}}",
            "SpecError: line 3 of the cell (mine.csv)\n  there is no column `repply` (for completion); its columns "
            "are `question`, `reply`\n  → did you mean `reply`?",
        ),
        ("odd.csv", "DataError: line 3 of the cell (odd.csv)\n  its columns (`colour`, `size`) are none"),
        (
            "mine.cvs",
            "DataError: line 3 of the cell\n  there is no variable, file or set called `mine.cvs`\n"
            "  → did you mean `mine.csv`?",
        ),
    ],
    ids=["a column", "no format", "a file"],
)
@pytest.mark.parametrize("flag", ["", "--dry-run"])
def test_what_the_rows_lack_is_said_at_once_with_its_line(
    shell: Any, capfd: Any, tmp_path: Path, data: str, said: str, flag: str
) -> None:
    (tmp_path / "mine.csv").write_text("question,reply\nHow much is 1 plus 1?,2\n")
    (tmp_path / "odd.csv").write_text("colour,size\nred,3\n")
    error, shown = run(shell, capfd, f"%%finetune {flag}\nsteps: 1\ndata: {data}\n")
    assert error is not None
    assert said in shown, shown
    assert "Traceback" not in shown
    assert not list(tmp_path.glob("runs/*"))  # nothing was begun


def test_a_name_that_is_a_file_too_is_asked_about(shell: Any, capfd: Any, tmp_path: Path) -> None:
    shell.user_ns["rows"] = GOOD
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows/a.jsonl").write_text('{"prompt": "Hi", "completion": "Ho"}\n')
    _, shown = run(shell, capfd, "%%finetune\ndata: rows\nsteps: 1\n")
    assert "var:rows" in shown
    assert "file:rows" in shown


def test_no_disk_space(shell: Any, capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shell.user_ns["rows"] = GOOD
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type(usage)(usage.total, usage.total - 1000, 1000))
    error, shown = run(shell, capfd, "%%finetune --name full\ndata: rows\nsteps: 1\n")
    assert error is not None
    assert "of disk" in shown
    assert "Traceback" not in shown


def test_a_good_cell_in_a_terminal_waits_and_ends_with_the_snippet(shell: Any, capfd: Any) -> None:
    shell.user_ns["rows"] = GOOD
    error, shown = run(shell, capfd, "%%finetune --name good\ndata: rows\nsteps: 2\nbatch_size: 2\n")
    assert error is None, shown
    assert "Run good: finished, step 2 of 2" in shown
    assert "from_pretrained" in shown
    assert shell.user_ns["run"].state == "finished"


def test_commands_over_an_ended_run(shell: Any, capfd: Any) -> None:
    shell.user_ns["rows"] = GOOD
    run(shell, capfd, "%%finetune --name good\ndata: rows\nsteps: 1\nbatch_size: 2\n")
    for line, expected in {
        "%nbtune runs": "finished",
        "%nbtune export good --gguf q8_0 --adapter": "good-q8_0.gguf",
        "%nbtune chat --prompt 'How much is 2 plus 1?' --beside good": "good",
        "%nbtune compare good good": "first loss",
        "%nbtune losses": "highest loss first",
        "%nbtune plan --data rows --steps 3": "memory",
        "%nbtune plan --data rows --steps 3 --machine t4": "NVIDIA T4, fp16",
        "%finetune --data rows --steps 3 --dry-run": "memory",
        "%nbtune data rows": "examples to learn from",
        "%nbtune attach": "Run good: finished",
        "%nbtune doctor": "trains in",
        "%nbtune export nbtune/tiny --gguf q4_0": "tiny-q4_0.gguf",
        "%%nbtune validate\ndata: rows\nsteps: 3\n": "steps: 3\n# the cell is fine",
        "%nbtune cache --prune 1": "0.0 MiB of prepared data thrown away.",
        "%nbtune pause good": "good is finished.",
    }.items():
        error, shown = run(shell, capfd, line)
        assert error is None, shown
        assert expected in shown, line
    error, shown = run(shell, capfd, "%nbtune resume good")
    assert "is finished" in shown
    error, shown = run(shell, capfd, "%nbtune stop nobody")
    assert "there is no run 'nobody'" in shown


@pytest.mark.parametrize("line", ["%nbtune plan", "%finetune --dry-run"])
def test_a_plan_looks_for_the_run_that_it_starts_from_where_runs_are(
    shell: Any, capfd: Any, tmp_path: Path, line: str
) -> None:
    shell.user_ns["rows"] = GOOD
    nbtune.finetune(data=GOOD, steps=1, device="cpu", runs_dir=tmp_path / "there", name="first").wait().free()
    asked = f"{line} --data rows --steps 3 --set start_from=first"
    error, shown = run(shell, capfd, asked)
    assert error is not None
    assert "there is no run 'first' in runs/" in shown
    error, shown = run(shell, capfd, f"{asked} --runs there")
    assert error is None, shown
    assert "memory" in shown
    run(shell, capfd, "%config NbtuneMagics.runs_dir = 'there'")
    error, shown = run(shell, capfd, asked)
    assert error is None, shown
    error, shown = run(shell, capfd, f"{asked} --runs runs")  # the line says more than the setting
    assert error is not None


def test_the_form_and_the_script_come_as_the_next_cell(shell: Any, capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cells: list[str] = []
    monkeypatch.setattr(shell, "set_next_input", lambda text, replace=False: cells.append(text))
    shell.user_ns["my_rows"] = GOOD
    error, shown = run(shell, capfd, "%finetune")
    assert error is None, shown
    assert "data: my_rows" in cells[0]
    shell.user_ns["rows"] = GOOD
    error, shown = run(shell, capfd, cells[0].replace("steps: 200", "steps: 1"))  # the cell that it proposes works
    assert error is None, shown
    run(shell, capfd, "%nbtune script demo --yaml")
    assert cells.pop().startswith("%%finetune --name demo\nmodel: nbtune/tiny\n")
    run(shell, capfd, "%nbtune script demo")
    assert "import nbtune" in cells[1]
    assert "/data/my_rows.jsonl" in cells[1]
    error, shown = run(shell, capfd, cells[1])  # and so does the script's
    assert error is None, shown
    assert len(list(Path("runs").glob("demo-*"))) == 2


def test_the_variable_of_the_user_is_not_taken(shell: Any, capfd: Any) -> None:
    shell.user_ns.update(rows=GOOD, run="mine")
    error, shown = run(shell, capfd, "%%finetune --name mine\ndata: rows\nsteps: 1\nbatch_size: 2\n")
    assert error is None, shown
    assert shell.user_ns["run"] == "mine"
    assert "nbtune.attach('mine')" in shown
    run(shell, capfd, "%config NbtuneMagics.variable = 'last'")
    run(shell, capfd, "%nbtune attach mine")
    assert shell.user_ns["last"].name == "mine"


def test_the_token_is_in_no_output_of_a_cell(
    shell: Any, capfd: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    token = "hf_" + "T0pS3cret" * 4
    monkeypatch.setenv("HF_TOKEN", token)
    shell.user_ns["rows"] = GOOD
    said = ""
    for cell in (
        "%%finetune --name secret\ndata: rows\nsteps: 1\nbatch_size: 2\n",
        "%nbtune push secret me/it",  # there is no Hub here
        "%tb",
        "%nbtune doctor",
        "run.spec, run.plan, run.events()",
    ):
        said += run(shell, capfd, cell)[1]
    assert "HubError" in said
    assert "Run secret: finished" in said
    assert token not in said
    files = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert files
    assert [path for path in files if token.encode() in path.read_bytes()] == []


@pytest.mark.parametrize(
    "line", ["%nbtune resume {}", "%nbtune chat demo --prompt {}", "%%nbtune plan --machine {}\ndata: rows"]
)
def test_braces_in_a_line_are_no_code(shell: Any, capfd: Any, line: str) -> None:
    """The line that goes on with a run names its folder, whose name may be a stranger's."""
    ran: list[int] = []
    shell.user_ns.update(ran=ran, x=7, rows=GOOD)
    error, shown = run(shell, capfd, line.replace("{}", "'a {ran.append(1)} $x {x}'"))
    assert error is not None
    assert ran == []
    assert "Traceback" not in shown
    if line.endswith("resume {}"):
        assert "there is no run 'a {ran.append(1)} $x {x}'" in shown


def test_a_folder_of_any_name_is_resumed_by_the_line_that_a_panel_inserts(
    shell: Any, capfd: Any, tmp_path: Path
) -> None:
    ran: list[int] = []
    shell.user_ns.update(rows=GOOD, ran=ran)
    place = tmp_path / "it's {ran.append(1)} $x"
    made = nbtune.finetune(data=GOOD, steps=1, device="cpu", runs_dir=place).wait()
    made.free()
    run(shell, capfd, "%load_ext nbtune")
    _, shown = run(shell, capfd, f"%nbtune attach {run_status._from_a_new_kernel(made.folder)}")
    assert "there is no run" not in shown
    assert shell.user_ns["run"].folder.resolve() == made.folder.resolve()
    assert ran == []


def test_in_a_terminal_the_first_interrupt_releases_and_the_second_stops(shell: Any) -> None:
    """There is no kernel, which would put a handler of signals back."""
    stopped: list[int] = []
    run = SimpleNamespace(id="abc", name="demo", stop=lambda: stopped.append(1))
    assert "demo goes on in the background" in display_run._on_interrupt(run, shell)
    assert stopped == []
    assert "demo stops at its next step" in display_run._on_interrupt(run, shell)
    assert stopped == [1]
