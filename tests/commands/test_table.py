"""The command table: what it says is true at both doors, and one more entry is one more command at both."""

from __future__ import annotations

import inspect
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nbtune.cli.actions import ACTIONS
from nbtune.commands import COMMANDS, Argument, Command, Door, commands_of
from nbtune.notebook import flags
from nbtune.notebook.magics import NbtuneMagics

REPO = Path(__file__).parents[2]
DOORS: tuple[Door, ...] = ("shell", "cell")
each_command = pytest.mark.parametrize("command", COMMANDS.values(), ids=lambda command: command.name)


def has_its_own(command: Command, door: Door) -> bool:
    return command.name in ACTIONS if door == "shell" else hasattr(NbtuneMagics, f"_{command.name}")


@each_command
@pytest.mark.parametrize("door", DOORS)
def test_each_command_can_be_done_at_each_of_its_doors(command: Command, door: Door) -> None:
    """By a function of its own, or by its public function, which takes what the command takes by name."""
    assert callable(command.public_function())
    if door not in command.doors or command.magic or has_its_own(command, door):
        return
    given = {argument.dest for argument in command.arguments(door)} - {"run", "runs", "json"}
    given -= {"set"} if command.body else set()  # either door puts it into the spec
    assert given <= set(inspect.signature(command.public_function()).parameters)


@each_command
def test_what_is_at_one_door_only_says_why(command: Command) -> None:
    for entry in (command, *command.takes):
        assert (len(entry.doors) == len(DOORS)) == (not entry.why), entry
    for door in DOORS:
        names = [argument.dest for argument in command.arguments(door)]
        assert len(names) == len(set(names))


@each_command
def test_sentences_are_sentences(command: Command) -> None:
    for text in (command.sentence, command.help("shell"), command.help("cell")):
        assert text.endswith(".")
        assert text[0].isupper()
    for argument in command.takes:
        assert argument.help.endswith((".", "…"))


def test_no_door_does_what_is_not_in_the_table() -> None:
    assert set(ACTIONS) <= set(commands_of("shell"))
    steps = {name[1:] for name in vars(NbtuneMagics) if name[0] == "_" and name[1] != "_"}
    assert {"attach", "plan", "cache"} <= steps & set(commands_of("cell"))


@pytest.mark.parametrize("command", commands_of("cell").values(), ids=lambda command: command.name)
def test_a_cell_takes_what_the_table_says(command: Command) -> None:
    parser = flags.parser(command.name)
    for argument in command.arguments("cell"):
        if argument.spellings:
            assert argument.spellings[-1] in parser.flags()
    words = [f"{argument.dest}0" for argument in command.arguments("cell") if not argument.spellings]
    given = vars(parser.parse(" ".join(words)))
    for argument in command.arguments("cell"):
        if argument.spellings:
            assert given[argument.dest] == ([] if argument.many else argument.default), argument


def test_a_number_below_its_least_is_refused() -> None:
    from nbtune.errors import SpecError

    for line, cause in (("--prune -1", "-1 is less than 0"), ("--prune all", "invalid float value: 'all'")):
        with pytest.raises(SpecError, match=cause):
            flags.parser("cache").parse(line)


# -- Tab in a shell -----------------------------------------------------------------------------------------------


def tab(line: str, where: Path, **environment: str) -> list[str]:
    """What bash is offered at the end of a line."""
    words = line.split(" ")
    asked = {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1), "_NBTUNE_COMPLETE": "complete_bash"}
    done = subprocess.run(
        [sys.executable, "-m", "nbtune"],
        cwd=where,
        env={**os.environ, **asked, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_a_shell_completes_commands_flags_and_values(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "mine.jsonl").write_text("{}\n")
    assert tab("nbtune unp", tmp_path) == ["unpause"]
    assert tab("nbtune export demo --adap", tmp_path) == ["--adapter", "--adapter-gguf"]
    assert tab("nbtune export demo --gguf q8", tmp_path) == ["q8_0"]
    assert tab("nbtune losses demo --by to", tmp_path) == ["tokens"]
    assert tab("nbtune data nbtune/js", tmp_path) == ["nbtune/json-answers"]
    assert tab("nbtune data mi", tmp_path) == ["mine.jsonl"]
    assert tab("nbtune data mine.jsonl --model nbtune/t", tmp_path) == ["nbtune/tiny"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_is_told_whom_to_ask(tmp_path: Path, shell: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "nbtune", "--show-completion", shell],
        cwd=tmp_path,
        env={**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "_NBTUNE_COMPLETE=" in done.stdout


# -- the recipe: a new command is one entry in one file -----------------------------------------------------------

_ENTRY = """
COMMANDS["pile"] = Command(
    name="pile",
    sentence="Count what lies in the caches.",
    function="nbtune.system_report.piled",
    takes=(flag("--least MIB", "Of so many MiB at least.", kind=int, default=0), JSON),
)
"""
_FUNCTION = '''

def piled(least: int = 0) -> list[Cached]:
    """A pile."""
    return [Cached("model", "acme/small", least + 1)]
'''
_CELL = """
from IPython.core.interactiveshell import InteractiveShell
from nbtune.notebook.completion import line_matches
shell = InteractiveShell.instance()
shell.run_cell("%load_ext nbtune").raise_error()
shell.run_cell("%nbtune help").raise_error()
shell.run_cell("%nbtune pile --least 3").raise_error()
print(line_matches("%nbtune pi", {}), line_matches("%nbtune pile --l", {}))
"""


def test_a_new_command_is_one_entry_in_the_table(tmp_path: Path) -> None:
    shutil.copytree(REPO / "nbtune", tmp_path / "nbtune", ignore=shutil.ignore_patterns("__pycache__"))
    table = tmp_path / "nbtune/commands/table.py"
    table.write_text(table.read_text() + _ENTRY)
    public = tmp_path / "nbtune/system_report.py"  # the function that it stands for, wherever that is
    public.write_text(public.read_text() + _FUNCTION)
    path = os.pathsep.join([str(tmp_path), str(REPO / "kernels")])

    def python(*args: str) -> str:
        env = {**os.environ, "PYTHONPATH": path, "IPYTHONDIR": str(tmp_path / "ipython")}
        command = [sys.executable, *args]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "pile      Count what lies in the caches." in python("-m", "nbtune", "--help")
    assert "Of so many MiB at least." in python("-m", "nbtune", "pile", "--help")
    said = python("-m", "nbtune", "pile", "--least", "2", "--json")
    assert said == '{"kind": "model", "name": "acme/small", "bytes": 3}\n'
    shown = python("-c", _CELL)
    assert "pile                 Count what lies in the caches." in shown
    assert "--least MIB" in shown
    assert "[Cached(kind='model', name='acme/small', bytes=4)]" in shown
    assert "('pi', ['pile']) ('--l', ['--least'])" in shown
    assert tab("nbtune pil", tmp_path, PYTHONPATH=path) == ["pile"]
    assert "## nbtune pile\n\nCount what" in python("-m", "nbtune.cli.reference")
    assert "### %nbtune pile\n\nCount what" in python("-m", "nbtune.notebook.reference")


def test_an_argument_says_its_choices_and_default() -> None:
    assert isinstance(COMMANDS["export"].takes[0], Argument)
    dtype: Any = next(argument for argument in COMMANDS["export"].takes if argument.dest == "dtype")
    assert dtype.described.endswith("(auto | bfloat16 | float16 | float32; default auto)")
