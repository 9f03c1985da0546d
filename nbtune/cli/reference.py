"""docs/reference/cli.md, made from the commands themselves: `python -m nbtune.cli.reference` prints it."""

from __future__ import annotations

from typing import Any

import typer

from nbtune.cli.app import app

__all__ = ["to_markdown"]

_HEAD = """\
# Command line

Made from the code by `python -m nbtune.cli.reference`; a test checks that it is current.

Results go to stdout, everything else to stderr; with `--json` each result is one JSON line.

| exit | meaning |
|---|---|
| 0 | done |
| 1 | the work failed, or was stopped before its end |
| 2 | the request was wrong: nothing was done |

`--traceback`, with any command, shows where an error came from.
"""


def to_markdown() -> str:
    """The page."""
    group: Any = typer.main.get_command(app)
    pages = [_page(name, command) for name, command in group.commands.items()]
    return "\n".join([_HEAD, *pages])


def _page(name: str, command: Any) -> str:
    positional = [_shown(p) for p in command.params if p.param_type_name == "argument"]
    lines = [f"## nbtune {name}", "", command.help.strip(), ""]
    lines += ["```", " ".join([f"nbtune {name}", *positional, "[OPTIONS]"]), "```", "", "| | |", "|---|---|"]
    lines += [f"| `{_cell(_shown(p))}` | {_cell(p.help or '')} |" for p in command.params]
    return "\n".join([*lines, ""])


def _shown(parameter: Any) -> str:
    """`RUN`, `--json` or `--out DIR`, from the declaration alone: it does not depend on typer's version."""
    if parameter.param_type_name == "argument":
        return str(parameter.metavar or parameter.name.upper())
    flag = ", ".join(parameter.opts)
    return flag if parameter.is_flag else f"{flag} {parameter.metavar or parameter.name.upper().rstrip('_')}"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    print(to_markdown(), end="")
