"""What a row holds: the text of a column, what is missing, a yes or no. Whatever is none of these is refused."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from datetime import date, time
from decimal import Decimal
from typing import Any
from uuid import UUID

from nbtune.errors import DataError

Row = Mapping[str, Any]
CHOICES = ("train", "training", "weight", "loss_weight")  # the keys of what says of itself whether it is trained
_YES, _NO = {"true", "yes", "1"}, {"false", "no", "0"}
_SCALARS = (bool, numbers.Number, Decimal, date, time, UUID)


def is_missing(value: Any) -> bool:
    """Tell whether a value stands for none: None, and the NaN, NA and NaT that frames and their JSON write for it."""
    if value is None or type(value) is str:
        return value is None
    if isinstance(value, float):
        return value != value
    return type(value).__name__ in ("NAType", "NaTType") or (_is_scalar_of_numpy(value) and bool(value != value))


def without_missing(row: Row) -> Row:
    """Make None of every value of a row that is missing."""
    if any(type(value) is not str and value is not None and is_missing(value) for value in row.values()):
        return {key: None if is_missing(value) else value for key, value in row.items()}
    return row


def text_of(value: Any, what: str, fix: str = "write text, or say which column it is") -> str:
    """Write a value as text: numbers, truths and dates as Python does.

    Raises:
        DataError: it is missing, or a list, a mapping, bytes or the like.
    """
    if isinstance(value, str):
        return value
    if is_missing(value):
        raise DataError(f"{what} is missing", fix="write its text")
    if _is_scalar_of_numpy(value):
        return text_of(value.item(), what, fix)
    if isinstance(value, _SCALARS):
        return str(value)
    raise DataError(f"{what} is a {type(value).__name__}, not text", fix=fix)


def string(row: Row, column: str, role: str) -> str:
    """Return the text of a column.

    Raises:
        DataError: it is missing, or no text.
    """
    value = row.get(column)
    if type(value) is str:
        return value
    if is_missing(value):
        raise DataError(f"`{column}` is missing", fix=f"give every row its {role}")
    return text_of(value, f"`{column}`")


def optional(row: Row, column: str | None) -> str:
    """Return the text of a column, "" if there is none.

    Raises:
        DataError: something stands in it that is no text.
    """
    value = row.get(column) if column else None
    if type(value) is str:
        return value
    if is_missing(value) or (isinstance(value, list | tuple | Mapping) and not value):
        return ""
    return text_of(value, f"`{column}`", "write it as text, or say with `template` how a row reads")


def flag(value: Any, what: str) -> bool:
    """Read a yes or no: true, 1, "true", "yes", "1", and their opposites.

    Raises:
        DataError: it is neither.
    """
    if isinstance(value, bool):
        return value
    plain = plainly(value)
    if isinstance(plain, int | float) and plain in (0, 1):
        return bool(plain)
    word = plain.strip().lower() if isinstance(plain, str) else ""
    if word in _YES or word in _NO:
        return word in _YES
    raise DataError(f"{what} is {value!r:.40}, not a yes or no", fix="write true or false")


def own_choice(holder: Mapping[str, Any], what: str) -> bool | None:
    """Return what a message or a part of one says of its own training by one of `CHOICES`; None: nothing.

    A weight of 1 is what a message has anyway: it says nothing.

    Raises:
        DataError: a value is no yes or no, or a weight neither 0 nor 1.
    """
    for key in ("train", "training"):
        if not is_missing(holder.get(key)):
            return flag(holder[key], f"`{key}` of {what}")
    name = next((key for key in ("weight", "loss_weight") if not is_missing(holder.get(key))), None)
    if name is None:
        return None
    weight = holder[name]
    try:
        number = float(weight)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = -1.0
    if number not in (0, 1):
        raise DataError(
            f"`{name}` of {what} is {weight!r:.40}: a message is trained (1) or not (0)",
            fix="write 0 or 1; how often the losses of a whole row count is said by `row_weights`",
        )
    return None if number else False


def plainly(value: Any) -> Any:
    """Return a number, truth or text of numpy's as Python's own, anything else as it is."""
    return value.item() if _is_scalar_of_numpy(value) else value


def _is_scalar_of_numpy(value: Any) -> bool:
    return type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0 and hasattr(value, "item")
