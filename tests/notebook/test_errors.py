"""Errors in cells: one block with place, cause and fix, no traceback; `%tb` has it; a bug keeps its own."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.support.every import every


def run(shell: Any, capsys: Any, cell: str) -> str:
    """What a cell shows, without colours."""
    capsys.readouterr()
    result = shell.run_cell(cell)
    assert result.error_in_exec is not None
    captured = capsys.readouterr()
    return re.sub(r"\x1b\[[0-9;]*m", "", captured.out + captured.err)


@pytest.mark.parametrize(
    ("cell", "place", "cause", "fix"),
    [
        ("%%finetune\ndata: rows\nstpes: 3\n", "line 3 of the cell", "no key `stpes`", "`steps`"),
        ("%%finetune\ndata: rows\nsteps: many\n", "line 3 of the cell", "`steps`", "steps: 200"),
        (
            "%%finetune\ndata: rows\n\n# a comment\nadapter: {ranges: 3}\n",
            "line 5 of the cell",
            "`ranges` in `adapter`",
            "known keys",
        ),
        ("%%nbtune validate\ndata: rows\nstpes: 3\n", "line 3 of the cell", "no key `stpes`", "`steps`"),
        ("# mine\n\n%%finetune\ndata: rows\nstpes: 3\n", "line 5 of the cell", "no key `stpes`", "`steps`"),
        ("%%finetune\nsteps: 3\n", "the cell", "`data` is missing", "data: rows"),
        ("# mine\n%%finetune --stps 3\ndata: rows\n", "`%%finetune --stps 3`", "`--stps`", "`--steps`"),
        ("%%finetune\ndata: [rows\n", "of the cell", "not YAML", "close the bracket"),
        ("%%finetune\ndata: rows\nsamples: [Who: are: you, Hi]\n", "line 3 of the cell", "not YAML", "in quotes"),
        ("%%finetune\ndata: rows\nsteps 3\n", "of the cell", "not YAML", "key: value"),
        ("x = 1\n%nbtune stpo now", "`%nbtune stpo now`", "no command `stpo`", "its commands"),
        ("x = 1\n%nbtune stop --zzzz", "`%nbtune stop --zzzz`", "`--zzzz`", "its flags"),
        ("x = 1\n%%finetune --name a", "%%finetune --name a", "first line of its cell", "cell of its own"),
    ],
)
def test_wrong_requests(shell: Any, capsys: Any, cell: str, place: str, cause: str, fix: str) -> None:
    shown = run(shell, capsys, cell)
    assert "Traceback" not in shown
    assert 'File "' not in shown
    assert re.search(r"^SpecError: ", shown, re.MULTILINE)
    assert place in shown
    assert cause in shown
    assert f"→ {'did you mean ' if fix.startswith('`') else ''}" in shown
    assert fix in shown


@pytest.mark.parametrize(("colours", "some"), [("nocolor", False), ("linux", True)])
def test_colours_are_those_of_the_shell(shell: Any, capsys: Any, colours: str, some: bool) -> None:
    """However this IPython writes their name: ``NoColor`` or ``nocolor``."""
    shell.run_line_magic("colors", colours)
    capsys.readouterr()
    shell.run_cell("%%finetune\ndata: rows\nstpes: 3\n")
    captured = capsys.readouterr()
    shown = captured.out + captured.err
    assert "no key `stpes`" in shown
    assert ("\x1b[" in shown) == some


def test_tb_has_the_traceback(shell: Any, capsys: Any) -> None:
    run(shell, capsys, "%%finetune\ndata: rows\nstpes: 3\n")
    shell.run_cell("%tb")
    shown = capsys.readouterr().out
    assert "Traceback" in shown
    assert "SpecError" in shown


def test_errors_of_plain_python_calls_look_the_same(shell: Any, capsys: Any) -> None:
    shown = run(shell, capsys, "from nbtune.spec import from_yaml\nfrom_yaml('stpes: 3')")
    assert "Traceback" not in shown
    assert "there is no key `stpes`" in shown


def test_a_bug_keeps_its_traceback(shell: Any, capsys: Any) -> None:
    assert "Traceback" in run(shell, capsys, "1 / 0")


def test_help_shows_flags_and_keys(shell: Any) -> None:
    for name, words in {
        "%%finetune": ("--dry-run", "\n  learning_rate ", "\n  adapter.r "),
        "%nbtune": ("export", "--gguf"),
    }.items():
        text = shell.object_inspect_mime(name)["text/plain"]
        assert every(word in text for word in words)
