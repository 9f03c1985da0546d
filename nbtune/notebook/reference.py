"""docs/reference/magics.md, made from RunSpec's fields and the commands of `%nbtune`.

`python -m nbtune.notebook.reference` prints it.
"""

from __future__ import annotations

import sys

from nbtune.notebook import commands, flags
from nbtune.notebook.magics import NbtuneMagics

__all__ = ["to_markdown"]

_HEAD = """\
# Magics

Made from the code by `python -m nbtune.notebook.reference`; a test checks that it is current.

```
%load_ext nbtune
```

| | |
|---|---|
| `%%finetune [flags]` + YAML body | start a run; it trains in the background |
| `%finetune` | a cell to start from; with flags of the keys (`%finetune --data rows`) it starts a run |
| `%nbtune COMMAND [RUN]` | runs from the keyboard |
| `%%finetune?`, `%nbtune?` | this text |
| `%config NbtuneMagics` | settings |

Names in the body are variables of the notebook. Python is interpolated on the line (`--name run-{i}`), never in the
body. A cell returns at once, and stays until its run has ended where no notebook page looks on (nbconvert, papermill,
a terminal, Colab), or with `--wait`. The first interrupt then releases the cell and the run goes on; a second one stops
the run and saves it.
"""


def to_markdown() -> str:
    """The page."""
    return "\n".join([_HEAD, _finetune(), _commands(), _settings()])


def _finetune() -> str:
    lines = ["## %%finetune", "", "| flag | |", "|---|---|"]
    for action in flags.finetune_parser().actions():
        if action.help:
            lines.append(f"| `{_shown(action)}` | {_cell(action.help)} |")
    lines += ["", "Every key of the first level is a flag, too (`--steps 200`), and wins over the body.", ""]
    lines += ["| key | |", "|---|---|"]
    for key, info in flags.spec_fields():
        if not key.startswith("eval.data."):
            lines.append(f"| `{key}` | {_cell(flags.describe(info))} |")
    return "\n".join([*lines, ""])


def _commands() -> str:
    lines = ["## %nbtune", "", "`RUN` left out means the living run, or else the latest.", ""]
    for name, command in commands.COMMANDS.items():
        lines += [f"### %nbtune {name}", "", f"{command.help}. In Python: `{command.call}`", ""]
        actions = [] if name == "plan" else commands.parser(name).actions()
        if actions:
            lines += ["| | |", "|---|---|", *(f"| `{_shown(a)}` | {_cell(a.help or '')} |" for a in actions), ""]
    return "\n".join(lines)


def _settings() -> str:
    lines = ["## %config NbtuneMagics", "", "| setting | default | |", "|---|---|---|"]
    for name, trait in sorted(NbtuneMagics.class_own_traits(config=True).items()):
        lines.append(f"| `{name}` | `{trait.default_value!r}` | {_cell(trait.help)} |")
    return "\n".join([*lines, ""])


def _shown(action: object) -> str:
    words = list(getattr(action, "option_strings", []))[:1]
    if getattr(action, "nargs", None) != 0:
        words.append(str(getattr(action, "metavar", "")))
    return _cell(" ".join(words))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(to_markdown())
