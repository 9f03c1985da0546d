"""`%load_ext nbtune` is light, may be done twice, and can be undone."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from nbtune.errors import NbtuneError

HEAVY = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "datasets",
    "plotly",
    "pandas",
    "matplotlib",
    "anywidget",
    "accelerate",
)


def test_import_and_load_ext_bring_in_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from IPython.core.interactiveshell import InteractiveShell\n"
        "shell = InteractiveShell.instance()\n"
        "shell.run_cell('%load_ext nbtune', store_history=False).raise_error()\n"
        "shell.run_cell('%nbtune help').raise_error()\n"
        f"heavy = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "assert not heavy, heavy\n"
        "assert 'nbtune.notebook.magics' in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage: %nbtune" in done.stdout


def test_loading_twice_registers_once(shell: Any) -> None:
    import nbtune.notebook

    matchers = len(shell.Completer.custom_matchers)
    nbtune.notebook.load(shell)
    assert len(shell.Completer.custom_matchers) == matchers
    assert shell.custom_exceptions.count(NbtuneError) == 1


def test_one_setting_says_how_often_signs_of_life_are_given(shell: Any) -> None:
    from nbtune.keepalive import heart

    assert heart.seconds == shell.magics_manager.registry["NbtuneMagics"].heartbeat
    shell.run_cell("%config NbtuneMagics.heartbeat = 0").raise_error()
    assert heart.seconds == 0  # the hub's signs and the panels' ask it before each
    shell.run_cell("%config NbtuneMagics.heartbeat = 10").raise_error()
    assert heart.seconds == 10


def test_unloading_takes_everything_away_and_keeps_the_handler_of_others(shell: Any) -> None:
    import nbtune.notebook

    nbtune.notebook.unload(shell)
    shell.set_custom_exc((ZeroDivisionError,), lambda self, kind, error, tb, tb_offset=None: print("divided"))
    before = shell.CustomTB
    nbtune.notebook.load(shell)
    nbtune.notebook.unload(shell)
    assert shell.custom_exceptions == (ZeroDivisionError,)
    assert shell.CustomTB == before
    assert shell.find_line_magic("finetune") is None
    assert shell.find_cell_magic("nbtune") is None
    nbtune.notebook.load(shell)


def test_the_handler_of_another_library_still_works(shell: Any, capsys: Any) -> None:
    import nbtune.notebook

    nbtune.notebook.unload(shell)
    shell.set_custom_exc((ZeroDivisionError,), lambda self, kind, error, tb, tb_offset=None: print("divided"))
    nbtune.notebook.load(shell)
    shell.run_cell("1 / 0")
    assert "divided" in capsys.readouterr().out


def test_nbtune_alone_says_which_runs_there_are_where_there_is_no_page(shell: Any, capsys: Any) -> None:
    shell.run_cell("%nbtune").raise_error()
    said = capsys.readouterr().out
    assert "No runs yet" in said
    assert "`%finetune` shows how to start a run" in said
