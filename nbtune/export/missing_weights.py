"""What is said of weights that an adapter changes and a base's files do not hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def not_in_base(missing: Sequence[str], base: Any = None) -> str:
    """Return what is said of weights that an adapter changes and the base's files do not hold by these names.

    Args:
        missing: their names.
        base: the model, outlined; None where the files' names are the model's.
    """
    if base is not None and missing[0] in base.state_dict():
        return (
            f"the base's files hold {missing[0]!r} joined with others in one weight, which nbtune does not take apart "
            f"({len(missing)} such)"
        )
    return f"the adapter changes {missing[0]!r}, which the base model does not have ({len(missing)} such)"


def fix_of_missing(missing: Sequence[str], base: Any = None) -> str:
    """Return what helps there: another base, or the adapter as it is."""
    if base is not None and missing[0] in base.state_dict():
        return "export the adapter: peft puts it onto this base."
    return "give the base model that the adapter was trained on."
