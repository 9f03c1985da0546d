"""What can go wrong, said for people.

NbtuneError
├── SpecError      the request is wrong: an unknown key, a wrong type, two fields that exclude each other
├── DataError      the rows are wrong, or nothing in them would be trained
├── PlanError      it cannot fit, or the machine cannot do it
├── TrainError     the run failed while it trained, or a run cannot be found or used
├── ExportError    a file could not be made
└── HubError       the Hub said no, or could not be reached

Each carries a *cause* (what was wrong), a *place* (where: the line of the cell, the row, the file) and a *fix*
(what to write instead). In a notebook they show without a traceback; ``%tb`` has it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

_FIX = "\n  → "  # between what was wrong and what helps


class NbtuneError(Exception):
    """The base of every error that nbtune raises on purpose.

    Args:
        cause: what was wrong, one sentence.
        place: where it was, such as ``"line 3 of the cell"`` or ``"rows.jsonl, row 17"``.
        fix: what to write or do instead, one sentence.

    `keys` is the place in the spec that it is about, if it is about one (``("data", 0, "columns", "prompt")``): those
    who know the text that the spec was read from can say its line (`nbtune.spec.placing`).
    """

    keys: tuple[str | int, ...] = ()

    def __init__(self, cause: str, *, place: str = "", fix: str = "") -> None:
        self.cause, self.place, self.fix = cause, place, fix
        super().__init__(cause)

    def __str__(self) -> str:
        text = f"{self.place}: {self.cause}" if self.place else self.cause
        return f"{text}{_FIX}{self.fix}" if self.fix else text

    @staticmethod
    @contextmanager
    def about(*keys: str | int) -> Iterator[None]:
        """Place errors of in here at this place of the spec, or about one below it that they say themselves."""
        try:
            yield
        except NbtuneError as error:
            error.keys = (*keys, *error.keys)
            raise

    @classmethod
    def said(cls, text: str) -> Self:
        """Return the error whose text this is, as a run's last event holds it; what was the place is a part of the
        cause."""
        cause, _, fix = text.partition(_FIX)
        return cls(cause, fix=fix)

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.cause, self.place, self.fix))


def _rebuild(kind: type[NbtuneError], cause: str, place: str, fix: str) -> NbtuneError:
    return kind(cause, place=place, fix=fix)


class SpecError(NbtuneError):
    """The request is wrong; nothing was done."""


class DataError(NbtuneError):
    """The rows are wrong, or nothing in them would be trained."""


class PlanError(NbtuneError):
    """It cannot fit, or this machine cannot do it."""


class TrainError(NbtuneError):
    """The run failed, or there is no such run."""


class ExportError(NbtuneError):
    """A file could not be made; nothing half done was left."""


class HubError(NbtuneError):
    """The Hub said no, or could not be reached; nothing half done was left."""
