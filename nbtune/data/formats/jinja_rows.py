"""Rows as text by a Jinja2 template of one's own, in the sandbox: ``{{ question }}{% generation %}{{ reply }}{% … %}``.

What stands in a ``generation`` block is trained, without such blocks all of it. Control tokens that the template writes
are meant; what looks like one in a row stays text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jinja2
from jinja2 import meta

from nbtune.data.formats.reader import Format, Parts, missing, near
from nbtune.data.formats.values import Row, without_missing
from nbtune.data.template.environment import bounded, compiled, make_environment, tracked
from nbtune.data.template.tracked_str import MARK, OTHER, plain, spans_of
from nbtune.errors import DataError, SpecError


def template_format(template: str, columns: Sequence[str], place: str) -> Format:
    """Return a reading of rows by a template.

    Raises:
        SpecError: it is not Jinja2, or asks for columns that are not there.
    """
    environment = make_environment()
    environment.finalize = _nothing  # before the template is compiled
    try:
        jinja = compiled(environment, template)
        names = meta.find_undeclared_variables(environment.parse(template))
    except jinja2.TemplateSyntaxError as error:
        raise SpecError(f"`template` is not Jinja2: {error}", place=place, fix="mend it") from None
    used = [name for name in columns if name in names]
    lacking = sorted(names - set(columns) - {"row"})
    if lacking and not used:
        raise SpecError(missing("template", lacking[0], columns), place=place, fix=near(lacking[0], columns))

    def read(row: Row) -> Parts:
        filled = without_missing(row)
        values: dict[str, Any] = {key: tracked(value, OTHER) for key, value in filled.items() if isinstance(key, str)}
        try:
            text = bounded(jinja, {**values, "row": values})
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            raise DataError(f"the template fails on it: {error}", fix="mend the template, or the row") from error
        return _parts(text)

    return Format("template", {name: name for name in used}, read)


def _nothing(value: Any) -> Any:
    """Return what is written of a value: nothing where it is missing, never the word None."""
    return "" if value is None else value


def _parts(text: str) -> Parts:
    spans = spans_of(text)
    trained = sorted((s, e) for s, e, tag in spans if tag == MARK)
    whole, data = plain(text), tuple(sorted((s, e) for s, e, tag in spans if tag != MARK))
    if not trained:
        return Parts(((whole, True),), windows=True, data=data)
    pieces, at = [], 0
    for start, end in trained:
        if start > at:
            pieces.append((whole[at:start], False))
        if end > max(start, at):
            pieces.append((whole[max(start, at) : end], True))
        at = max(at, end)
    pieces.append((whole[at:], False))
    return Parts(tuple(p for p in pieces if p[0]), data=data)
