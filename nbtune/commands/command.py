"""What a command is: words of the table, and nothing that is looked up, so that `%load_ext` costs nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from importlib import import_module
from typing import Any, Literal

Door = Literal["shell", "cell"]
BOTH: tuple[Door, ...] = ("shell", "cell")
SHELL: tuple[Door, ...] = ("shell",)
CELL: tuple[Door, ...] = ("cell",)


@dataclass(frozen=True, kw_only=True)
class Argument:
    """What a command takes: a flag (`--out DIR`), or a word in its place (`RUN`).

    Attributes:
        dest: the name of its value.
        help: its sentence.
        spellings: with their dashes, the short one first; none for a word in its place.
        metavar: how its value is called; unset: a shell shows its type.
        kind: str, int, float, Path, or bool for a flag without a value.
        default: its value where it is not given; of a bool None is a third state, and `--no-…` is a flag too.
        choices: the words that it may be.
        minimum: the least that it may be.
        many: several values: `words` behind each other, or by giving the flag `again`.
        offers: what Tab looks up for it, see `nbtune.commands.values`.
        optional_in: the doors where a word in its place may be left out.
        doors: where it can be given.
        why: why not at both.
    """

    dest: str
    help: str
    spellings: tuple[str, ...] = ()
    metavar: str = ""
    kind: type[Any] = str
    default: Any = None
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    many: Literal["", "words", "again"] = ""
    offers: Literal["", "runs", "models", "sources", "gguf", "machines"] = ""
    optional_in: tuple[Door, ...] = ()
    doors: tuple[Door, ...] = BOTH
    why: str = ""

    @property
    def value(self) -> str:
        """How its value is called, in capitals; a switch has none."""
        return "" if self.kind is bool else self.metavar or self.dest.upper()

    @property
    def described(self) -> str:
        """Its sentence with its choices and its default.

        >>> flag("--by", "What rows are sorted by.", choices=("loss", "tokens"), default="loss").described
        'What rows are sorted by. (loss | tokens; default loss)'
        """
        notes = [" | ".join(self.choices)] if self.choices else []
        if self.default not in (None, False):
            notes.append(f"default {self.default}")
        return f"{self.help} ({'; '.join(notes)})" if notes else self.help


def word(metavar: str, help: str, **more: Any) -> Argument:
    """Return a word in its place.

    >>> word("RUN", "Name, id, or folder.").dest
    'run'
    """
    return Argument(**{"dest": metavar.lower(), "metavar": metavar, "help": help, **more})


def flag(spelling: str, help: str, **more: Any) -> Argument:
    """Return a flag with a value.

    >>> flag("--out DIR", "Where files go.").value, flag("-p, --prompt", "Ask this.").spellings
    ('DIR', ('-p', '--prompt'))
    """
    *spellings, last = spelling.split(", ")
    last, _, metavar = last.partition(" ")
    dest = last.removeprefix("--").replace("-", "_")
    return Argument(**{"dest": dest, "metavar": metavar, "spellings": (*spellings, last), "help": help, **more})


def switch(spelling: str, help: str, **more: Any) -> Argument:
    """Return a flag without a value, which is off until it is given."""
    return flag(spelling, help, **{"kind": bool, "default": False, **more})


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command.

    Attributes:
        name: what is typed.
        sentence: what it does.
        function: the public function that does it, as `nbtune.plan`, or of a run `nbtune.Run.stop`. What else the
            command takes is passed to it by name.
        takes: its arguments, in the order in which they are shown.
        code: the same in Python; unset: a call of the function.
        said: what becomes of a run that was asked for something, with {run}, and {nbtune} for how the door is called.
        in_shell: what else there is to say in a shell: more sentences, or with a comma the end of this one.
        in_cell: alike in a cell.
        magic: the magic that it is in a cell; unset: `%nbtune` with its name.
        body: it takes a spec: in a shell a file, in a cell the body, of which every key is a flag too.
        doors: where it can be given.
        why: why not at both.
    """

    name: str
    sentence: str
    function: str
    takes: tuple[Argument, ...] = ()
    code: str = ""
    said: str = ""
    in_shell: str = ""
    in_cell: str = ""
    magic: str = ""
    body: bool = False
    doors: tuple[Door, ...] = BOTH
    why: str = ""

    @property
    def takes_run(self) -> bool:
        """Whether it is about one run."""
        return any(argument.dest == "run" and not argument.many for argument in self.takes)

    @property
    def python(self) -> str:
        """The line of Python that does the same.

        >>> Command(name="stop", sentence="…", function="nbtune.Run.stop").python
        'nbtune.attach(RUN).stop()'
        """
        return self.code or f"{self.function.replace('nbtune.Run.', 'nbtune.attach(RUN).')}()"

    def help(self, door: Door) -> str:
        """Return all that is said of it at a door."""
        more = self.in_shell if door == "shell" else self.in_cell
        return self.sentence.removesuffix(".") + more if more.startswith(",") else f"{self.sentence} {more}".strip()

    def arguments(self, door: Door) -> list[Argument]:
        """Return what it takes at a door."""
        return [argument for argument in self.takes if door in argument.doors]

    def public_function(self) -> Callable[..., Any]:
        """Return the function itself, imported now."""
        root, *names = self.function.split(".")
        start: Any = import_module(root)
        function: Callable[..., Any] = reduce(getattr, names, start)
        return function

    def call(self, given: Any, find_run: Callable[[], Any]) -> Any:
        """Call the function with what was given, by name; a run that it is about comes first.

        Args:
            given: a value for each argument's `dest`.
            find_run: finds the run that was named.
        """
        ours = ("run", "runs", "json") if self.takes_run else ("json",)
        values = {name: value for name, value in vars(given).items() if name not in ours}
        if "runs" in values:
            values["runs_dir"] = values.pop("runs")
        return self.public_function()(*([find_run()] if self.takes_run else []), **values)
