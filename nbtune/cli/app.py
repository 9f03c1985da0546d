"""The command table as a typer application: what a shell may say, its help, and what Tab offers."""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Annotated, Any, Literal

import typer

import nbtune
from nbtune.commands import Argument, Command, commands_of
from nbtune.commands.values import offered
from nbtune.errors import NbtuneError

app = typer.Typer(
    name="nbtune",
    help="Fine-tune language models: the same runs as in a notebook, from a shell.",
    epilog="To begin: write `data: nbtune/json-answers` and `steps: 50` as two lines of spec.yaml, then "
    "`nbtune train spec.yaml`. Exit 0: done; 1: the work failed, or was stopped; 2: the request was wrong.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(nbtune.__version__)
        raise typer.Exit


@app.callback()
def top(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
    traceback: Annotated[bool, typer.Option("--traceback", help="On an error, show where (with any command).")] = False,
) -> None:
    """Fine-tune language models: the same runs as in a notebook, from a shell."""


def _function(command: Command) -> Callable[..., None]:
    """Return what typer calls: it reads its parameters from the signature, which is made of the table."""

    def perform(**given: Any) -> None:
        from nbtune.cli.actions import perform as act  # when something is done: help and Tab need none of it

        act(command, SimpleNamespace(**given))

    parameters = [_parameter(argument) for argument in command.arguments("shell")]
    perform.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    perform.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return perform


def _parameter(argument: Argument) -> inspect.Parameter:
    kind: Any = Literal[argument.choices] if argument.choices else argument.kind
    if argument.many:
        kind = list[kind]
    needed = not argument.spellings and "shell" not in argument.optional_in
    if argument.default is None and not needed:
        kind = kind | None
    several = "..." if argument.many == "words" and argument.spellings else ""  # the parser puts them behind others
    facts: dict[str, Any] = {"help": argument.help, "metavar": (argument.metavar + several) or None}
    if argument.minimum is not None:
        facts["min"] = argument.minimum
    if argument.offers:
        facts["autocompletion"] = _completer(argument)
    if argument.spellings:
        *short, last = argument.spellings
        third = f"/--no-{last.removeprefix('--')}" if argument.kind is bool and argument.default is None else ""
        declared: Any = typer.Option(*short, last + third, **facts)
    else:
        declared = typer.Argument(**facts)
    return inspect.Parameter(
        argument.dest,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if needed else argument.default,
        annotation=Annotated[kind, declared],
    )


def _completer(argument: Argument) -> Callable[..., list[str]]:
    def complete(ctx: typer.Context, incomplete: str) -> list[str]:
        with contextlib.suppress(NbtuneError, OSError):  # the command will say it
            words = offered(argument, {}, ctx.params.get("runs"))
            return [word for word in words if word.startswith(incomplete)]
        return []

    return complete


def _first_sentence(text: str) -> str:
    """Return what a list of commands says of one: given so, it is not cut short."""
    return re.split(r"(?<=\.)\s", text, maxsplit=1)[0]


for _command in commands_of("shell").values():
    _help = _command.help("shell")
    app.command(name=_command.name, help=_help, short_help=_first_sentence(_help))(_function(_command))
