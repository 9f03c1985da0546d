"""What `%%finetune?` and `%nbtune?` show: the command table and the fields of RunSpec, as lines of text."""

from __future__ import annotations

import textwrap

from nbtune.commands import COMMANDS, Argument, commands_of
from nbtune.notebook.flags import describe, spec_fields

_WIDTH, _KEYS, _FLAGS, _SENTENCES = 96, 30, 26, 23  # of a line, and of the first column of each table
_EVERYWHERE = ("runs",)


def spelled(argument: Argument) -> str:
    """Return how it is written in a cell: `--out DIR`, `[RUN]`, `SOURCE …`."""
    value = f"{argument.value} …" if argument.many == "words" else argument.value
    if argument.spellings:
        return f"{argument.spellings[-1]} {value}".strip()
    return f"[{value}]" if "cell" in argument.optional_in else value


def finetune_help(prog: str = "%%finetune") -> str:
    """Return what `%%finetune?` shows: the flags, and the keys of the body with what each does."""
    own = [*COMMANDS["train"].arguments("cell"), Argument(dest="help", spellings=("--help",), help="This.", kind=bool)]
    lines = [
        "Fine-tune a model: the body of the cell says what, in YAML.",
        "",
        f"    {prog} --name demo",
        "    model: nbtune/tiny",
        "    data: rows",
        "    steps: 200",
        "",
        "It returns at once and trains in the background; `run` is the handle, as in run.stop(),",
        "run.chat(), run.export.gguf('q8_0'). Running the cell again while its run lives attaches to it.",
        "Tab completes keys and values in the body, names of rows, and models of the cache.",
        "",
        "Flags",
        *(line for argument in own for line in _row(f"  {spelled(argument)}", argument.described, _FLAGS)),
        "",
        "Keys of the body (those without a dot are flags, too: `--steps 200` wins over the body)",
    ]
    for key, info in spec_fields():
        if not key.startswith("eval.data."):  # the same as data.*
            lines += _row(f"  {key}", describe(info), _KEYS)
    return "\n".join(lines)


def nbtune_help() -> str:
    """Return what `%nbtune?` shows."""
    lines = ["`%nbtune` alone shows all runs, to click on. From the keyboard:", ""]
    lines += ["Usage: %nbtune COMMAND … [flags]", ""]
    for name, command in commands_of("cell").items():
        taken = [argument for argument in command.arguments("cell") if argument.dest not in _EVERYWHERE]
        words = [spelled(argument) for argument in taken if not argument.spellings]
        sentence = command.help("cell")
        if command.body:
            taken, sentence = [], f"{sentence} Flags and body as of %%finetune."
        lines += _row(f"  {' '.join([name, *words])}", sentence, _SENTENCES)
        for argument in taken:
            if argument.spellings:
                lines += _row(f"      {spelled(argument)}", argument.described, _KEYS)
    lines += ["", "With `--runs DIR`, any of them looks for runs there instead of in NBTUNE_RUNS or ./runs."]
    lines += ["[RUN] left out means the living run, or else the latest. In Python: run = nbtune.attach(RUN)."]
    return "\n".join(lines)


def _row(first: str, text: str, column: int) -> list[str]:
    """Return a word and what it means, beside each other, or below where the word is long."""
    wrapped = textwrap.wrap(text, _WIDTH - column, break_on_hyphens=False) or [""]
    rows = [first] if len(first) >= column else [f"{first:<{column}}{wrapped.pop(0)}"]
    return [*rows, *(" " * column + line for line in wrapped)]
