"""A base as transformers would load it: what its config.json leaves to its class, and whether its weights are there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nbtune.errors import ExportError, SpecError
from nbtune.export.merge import outline_of
from nbtune.models.headers_check import weights_by_headers
from nbtune.models.weight_checks import read_headers

_ODD = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def left_to_its_class(base: Path) -> dict[str, Any]:
    """Return what a model's class says where its config.json is silent, the text model's part; {}: it is not known."""
    model = outline_of(base)
    if model is None:
        return {}
    return {**model.config.to_dict(), **model.config.get_text_config().to_dict()}


def must_be_whole(base: Path) -> None:
    """Refuse a base whose files lack a weight, hold one in another shape, or one more.

    Raises:
        ExportError: see above, with the weight's name.
    """
    model = outline_of(base)
    if model is None:
        return
    try:
        weights_by_headers(model, read_headers(base), base, "the base model")
    except SpecError as error:
        raise ExportError(error.cause, place=str(base), fix=error.fix) from error


@contextlib.contextmanager
def by_its_config(place: str) -> Iterator[None]:
    """Say that a config.json cannot be followed, where what follows it falls over what is written there.

    Raises:
        ExportError: see above.
    """
    try:
        yield
    except _ODD as error:  # a config may be anybody's, and any of its values a text, a list or nothing
        said = " ".join(str(error).split())[:120]
        raise ExportError(
            f"the model's config.json says what cannot be followed ({type(error).__name__}: {said})",
            place=place,
            fix="see that config.json belongs to these weights, and is as it was published.",
        ) from error
