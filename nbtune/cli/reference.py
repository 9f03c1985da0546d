"""docs/reference/cli.md, made from the command table: `python -m nbtune.cli.reference` prints it."""

from __future__ import annotations

from nbtune.commands import Argument, Command, commands_of

_HEAD = """\
# Command line

Made from the code by `python -m nbtune.cli.reference`; a test checks that it is current.

Results go to stdout, everything else to stderr; with `--json` each result is one JSON line.

| exit | meaning |
|---|---|
| 0 | done |
| 1 | the work failed, or was stopped before its end |
| 2 | the request was wrong: nothing was done |

`--traceback`, with any command, shows where an error came from. `nbtune --install-completion` lets Tab complete
commands, flags, runs, models, sets and types in this shell (bash, zsh, fish, PowerShell); `--show-completion` prints
what it installs.
"""


def to_markdown() -> str:
    """Return the page."""
    return "\n".join([_HEAD, *(_page(command) for command in commands_of("shell").values())])


def _page(command: Command) -> str:
    arguments = command.arguments("shell")
    words = [_shown(argument) for argument in arguments if not argument.spellings]
    lines = [f"## nbtune {command.name}", "", command.help("shell"), ""]
    lines += ["```", " ".join([f"nbtune {command.name}", *words, "[OPTIONS]"]), "```", ""]
    in_a_cell = f"; in a cell `{command.magic or f'%nbtune {command.name}'}`" if "cell" in command.doors else ""
    lines += [f"In Python `{command.python}`{in_a_cell}.", "", "| | |", "|---|---|"]
    lines += [f"| `{_cell(_shown(argument))}` | {_cell(argument.described)} |" for argument in arguments]
    return "\n".join([*lines, ""])


def _shown(argument: Argument) -> str:
    """Return `RUN`, `--json`, `--verify / --no-verify` or `--out DIR`."""
    spelled = ", ".join(argument.spellings)
    if argument.kind is bool and argument.default is None:
        spelled += f" / --no-{argument.spellings[-1].removeprefix('--')}"
    return f"{spelled} {argument.value}{'...' if argument.many == 'words' else ''}".strip()


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    print(to_markdown(), end="")
