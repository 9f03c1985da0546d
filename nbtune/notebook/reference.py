"""docs/reference/magics.md, made from RunSpec's fields and the command table.

`python -m nbtune.notebook.reference` prints it.
"""

from __future__ import annotations

import sys

from nbtune.commands import COMMANDS, Command, commands_of
from nbtune.notebook import flags, usage
from nbtune.notebook.magics import NbtuneMagics

_HEAD = """\
# Magics

Made from the code by `python -m nbtune.notebook.reference`; a test checks that it is current.

```
%load_ext nbtune
```

| | |
|---|---|
| `%%finetune [flags]` + YAML body | start a run; it trains in the background |
| `%finetune` | the form (without a page: a cell to start from); with flags (`%finetune --data rows`) a run |
| `%nbtune` | all runs, to click on, and the form for a new one (without a page: their table) |
| `%nbtune COMMAND [RUN]` | runs from the keyboard |
| `%%finetune?`, `%nbtune?` | this text |
| `%config NbtuneMagics` | settings |

Names in the body are variables of the notebook. Python is interpolated on the line (`--name run-{i}`), never in the
body. A cell returns at once, and stays until its run has ended where no notebook page looks on (nbconvert, papermill,
a terminal, Colab), or with `--wait`. The first interrupt then releases the cell and the run goes on; a second one stops
the run and saves it.
"""


def to_markdown() -> str:
    """Return the page."""
    return "\n".join([_HEAD, _finetune(), _commands(), _settings()])


def _finetune() -> str:
    lines = ["## %%finetune", "", *_table(COMMANDS["train"])]
    lines += ["Every key of the first level is a flag, too (`--steps 200`), and wins over the body.", ""]
    lines += ["| key | |", "|---|---|"]
    for key, info in flags.spec_fields():
        if not key.startswith("eval.data."):
            lines.append(f"| `{key}` | {_cell(flags.describe(info))} |")
    return "\n".join([*lines, ""])


def _commands() -> str:
    lines = ["## %nbtune", "", "`RUN` left out means the living run, or else the latest.", ""]
    for name, command in commands_of("cell").items():
        body = " With the flags and the body of `%%finetune`." if command.body else ""
        lines += [f"### %nbtune {name}", "", f"{command.help('cell')}{body}", ""]
        shell = f"; in a shell `nbtune {name}`" if "shell" in command.doors else ""
        lines += [f"In Python `{command.python}`{shell}.", "", *([] if command.body else _table(command))]
    return "\n".join(lines)


def _table(command: Command) -> list[str]:
    arguments = command.arguments("cell")
    rows = [f"| `{_cell(usage.spelled(argument))}` | {_cell(argument.described)} |" for argument in arguments]
    return ["| | |", "|---|---|", *rows, ""] if rows else []


def _settings() -> str:
    lines = ["## %config NbtuneMagics", "", "| setting | default | |", "|---|---|---|"]
    for name, trait in sorted(NbtuneMagics.class_own_traits(config=True).items()):
        lines.append(f"| `{name}` | `{trait.default_value!r}` | {_cell(trait.help)} |")
    return "\n".join([*lines, ""])


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(to_markdown())
