"""The lines of the magics: flags of the command table, and RunSpec's fields, which a line may say as a body does."""

from __future__ import annotations

import argparse
import difflib
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from nbtune.commands import COMMANDS, Argument
from nbtune.errors import SpecError
from nbtune.spec import RunSpec, parse_value


class Parser(argparse.ArgumentParser):
    """argparse that raises `SpecError` with the nearest flag instead of printing its usage and leaving."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("add_help", False)
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **kwargs)
        self._line = ""

    @property
    def place(self) -> str:
        """Where an error of its line is: the line itself, since a magic does not know where in its cell it stands."""
        return f"`{self.prog} {self._line}`" if self._line else f"`{self.prog}`"

    def flags(self) -> list[str]:
        """Return all its flags, such as ``--steps``."""
        return sorted(flag for flag in self._option_string_actions if flag.startswith("--") and "_" not in flag)

    def take(self, argument: Argument) -> None:
        """Add what the table says."""
        more: dict[str, Any] = {"metavar": argument.value, "choices": argument.choices or None}
        if argument.kind is bool:
            tri = argument.default is None
            more = {"action": argparse.BooleanOptionalAction if tri else "store_true"}
        elif argument.many:
            more |= {"action": "append"} if argument.many == "again" else {"nargs": "+"}
        if argument.kind is not bool:
            more["type"] = _reader(argument)
        if argument.spellings:
            default = [] if argument.many else argument.default
            self.add_argument(*argument.spellings, dest=argument.dest, default=default, **more)
        else:
            more |= {"nargs": "?"} if "cell" in argument.optional_in else {}
            self.add_argument(argument.dest, **more)

    def parse(self, line: str) -> argparse.Namespace:
        """Return the values of a magic's line.

        Raises:
            SpecError: an unknown flag, a missing value.
        """
        self._line = line.strip()
        values, unknown = self.parse_known_args(split(line, self.place))
        if unknown:
            word = unknown[0].split("=")[0].replace("_", "-")
            like = 0.5 if word.startswith("-") else 0.7  # a bare word is a name rather than a flag
            near = difflib.get_close_matches(word, self.flags(), n=1, cutoff=like)
            fix = f"did you mean `{near[0]}`?" if near else f"its flags: {', '.join(self.flags()) or 'none'}"
            kind = "flag" if unknown[0].startswith("-") else "argument"
            raise SpecError(f"`{self.prog}` has no {kind} `{unknown[0]}`", place=self.place, fix=fix)
        return values

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print."""
        raise SpecError(message, place=self.place, fix=f"see `{self.prog}?`")


def split(line: str, place: str = "") -> list[str]:
    """Return the words of a magic's line; quotes group, a backslash is itself (Windows paths).

    Args:
        line: what stands behind the magic's name.
        place: how an error calls it.

    >>> split("--set adapter='{type: lora, r: 8}' --runs C:/runs")
    ['--set', 'adapter={type: lora, r: 8}', '--runs', 'C:/runs']

    Raises:
        SpecError: a quote is not closed.
    """
    lexer = shlex.shlex(line, posix=True, punctuation_chars=False)
    lexer.whitespace_split, lexer.escape, lexer.commenters = True, "", ""
    try:
        return list(lexer)
    except ValueError:
        raise SpecError("a quote on this line is not closed", place=place, fix="close it, or take it away") from None


def parts(annotation: Any) -> type[BaseModel] | None:
    """Return the part of the spec that a field holds (`AdapterSpec` for `adapter`), or None for a plain value."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inner in get_args(annotation) if (found := parts(inner)) is not None), None)


def choices(annotation: Any) -> list[str]:
    """Return the words that a field takes: the members of its Literal, or true and false."""
    if annotation is bool:
        return ["true", "false"]
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation)]
    return [word for inner in get_args(annotation) for word in choices(inner)]


def spec_fields(kind: type[BaseModel] = RunSpec, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield each field with its dotted key, parts after the field that holds them."""
    for name, info in kind.model_fields.items():
        yield prefix + name, info
        inner = parts(info.annotation)
        if inner is not None:
            yield from spec_fields(inner, f"{prefix}{name}.")


def describe(info: FieldInfo) -> str:
    """Return a field's sentence with its choices, unit, default and an example."""
    extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
    words = choices(info.annotation)
    notes = [" | ".join(words)] if words and info.annotation is not bool else []
    if extra.get("unit"):
        notes.append(f"in {extra['unit']}")
    if isinstance(info.default, str | int | float) and info.default != "":
        notes.append(f"default {str(info.default).lower() if isinstance(info.default, bool) else info.default}")
    if info.examples and not words:
        notes.append(f"e.g. {_as_yaml(info.examples[0])}")
    return (info.description or "") + (f" ({'; '.join(notes)})" if notes else "")


def _as_yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=200).removesuffix("...\n").strip()


@dataclass(frozen=True)
class Request:
    """What the line of `%%finetune` asks for; `overrides` are dotted keys of the spec."""

    name: str = "run"
    wait: bool = False
    detach: bool = False
    dry_run: bool = False
    machine: str | None = None
    nodes: int = 1
    network: float | None = None
    table: bool = False
    on_busy: Literal["attach", "restart", "queue"] = "attach"
    runs_dir: Path | None = None
    help: bool = False
    slurm: tuple[str, ...] = ()
    print: bool = False
    unsent: bool = False
    overrides: dict[str, Any] = field(default_factory=dict)


def _reader(argument: Argument) -> Callable[[str], Any]:
    """Return what makes a value of a word; argparse says its name where it cannot."""

    def read(text: str) -> Any:
        value = argument.kind(text)
        if argument.minimum is not None and value < argument.minimum:
            raise argparse.ArgumentTypeError(f"{text} is less than {argument.minimum:g}")
        return value

    read.__name__ = argument.kind.__name__
    return read


@cache
def parser(name: str) -> Parser:
    """Return the parser of a command of `%nbtune`."""
    prog = f"%nbtune {name}"
    if COMMANDS[name].body:  # so that the line of a `%%finetune` is one of `%%nbtune plan`, too
        return finetune_parser(prog)
    parser_made = Parser(prog=prog)
    for argument in COMMANDS[name].arguments("cell"):
        parser_made.take(argument)
    return parser_made


@cache
def finetune_parser(prog: str = "%%finetune") -> Parser:
    """Return the parser of `%%finetune`: its own flags, then one for each of RunSpec's fields."""
    made = Parser(prog=prog, usage=prog.replace("%", "%%"))
    own = COMMANDS[prog.rpartition(" ")[2]].arguments("cell") if " " in prog else []
    for argument in {argument.dest: argument for argument in (*COMMANDS["train"].arguments("cell"), *own)}.values():
        made.take(argument)
    made.add_argument("--help", action="store_true")
    for name, info in RunSpec.model_fields.items():
        names = dict.fromkeys((f"--{name.replace('_', '-')}", f"--{name}"))
        alone = info.annotation is bool or bool in get_args(info.annotation)  # the flag by itself means yes
        more: dict[str, Any] = {"nargs": "?", "const": "true"} if alone else {}
        made.add_argument(*names, dest=f"key:{name}", metavar="VALUE", **more)
    return made


def parse_finetune(line: str, prog: str = "%%finetune") -> Request:
    """Return what a line of `%%finetune` asks for, or that of a command which takes a spec alike.

    >>> parse_finetune("--name demo --steps 20 --set adapter.r=4").overrides
    {'steps': 20, 'adapter.r': 4}

    Raises:
        SpecError: an unknown flag, or a value that cannot be read.
    """
    parser = finetune_parser(prog)
    parsed = parser.parse(line)
    if parsed.restart and parsed.queue:
        fix = "keep one"
        raise SpecError("`--restart` and `--queue` exclude each other", place=parser.place, fix=fix)
    of_a_plan = parsed.machine is not None or parsed.table or parsed.nodes != 1 or parsed.network is not None
    if of_a_plan and not parsed.dry_run and not prog.endswith(" plan"):
        what = "`--machine`, `--nodes`, `--network` and `--table` are for a plan alone"
        raise SpecError(what, place=parser.place, fix="`--dry-run`, or `%%nbtune plan`")
    values = vars(parsed)
    overrides = {
        key.removeprefix("key:"): parse_value(text)
        for key, text in values.items()
        if key.startswith("key:") and text is not None
    }
    for entry in parsed.set:
        key, equals, text = entry.partition("=")
        if not equals or not key.strip():
            raise SpecError(f"`--set {entry}` has no value", place=parser.place, fix="write `--set key=value`")
        overrides[key.strip()] = parse_value(text)
    return Request(
        name=parsed.name,
        wait=parsed.wait,
        detach=parsed.detach,
        dry_run=parsed.dry_run,
        machine=parsed.machine,
        nodes=parsed.nodes,
        network=parsed.network,
        table=parsed.table,
        on_busy="restart" if parsed.restart else "queue" if parsed.queue else "attach",
        runs_dir=parsed.runs,
        help=parsed.help,
        slurm=(parsed.job,) if getattr(parsed, "job", None) else tuple(getattr(parsed, "slurm", None) or ()),
        print=getattr(parsed, "print", False),
        unsent=getattr(parsed, "unsent", False),
        overrides=overrides,
    )
