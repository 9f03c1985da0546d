"""Whether the rows are what the spec says, from the first of them: said at once, before a run is made.

Only the heads of files and streams are read. What the first rows cannot tell (a dataset of the Hub, an address) is
left to the run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from nbtune.data.formats.detect import detect
from nbtune.data.formats.reader import Format
from nbtune.data.prepare.labels import judge, labels_at_hand
from nbtune.data.sources.row_function import ChangedRows
from nbtune.data.sources.rows import Row, Rows, Source
from nbtune.errors import DataError, NbtuneError, SpecError
from nbtune.methods import METHODS
from nbtune.spec import RunSpec

_ROWS = 32
_CHANGED = 8  # of rows that go through a function, which may take its time


def look(sources: Iterable[Source], spec: RunSpec) -> None:
    """Look at the first rows of each source.

    >>> spec = nbtune.spec.from_mapping({"data": "rows"})
    >>> nbtune.data.look(nbtune.data.resolve(spec.data, {"rows": [{"prompt": "Hi", "completion": "Ahoy!"}]}), spec)

    Raises:
        SpecError: `columns`, `format` or `template` name what is not there.
        DataError: there are no rows, one of the first cannot be read, or they are not what `spec.method` learns from.
    """
    sources = list(sources)
    for number, source in enumerate(sources):
        with NbtuneError.about("data", number) if source.role == "train" else NbtuneError.about("eval", "data"):
            _look_at(source, spec)
    with NbtuneError.about("data"):
        labelled = labels_at_hand(spec, sources)
    for source in sources if labelled is not spec else ():
        if source.role == "eval":  # whose labels are to be among those
            with NbtuneError.about("eval", "data"):
                _look_at(source, labelled)


def _look_at(source: Source, spec: RunSpec) -> None:
    rows = source.head(min(_ROWS, source.spec.max_rows or _ROWS))
    if rows is None:
        return
    if len(rows) == 0:
        if len(source.files) <= 1:
            raise DataError("there are no rows in it", place=source.name, fix="give at least one row")
        return
    if source.change is not None:
        rows = ChangedRows(rows, source.change, source.spec.function or "function")
    count = min(len(rows), _ROWS if source.change is None else _CHANGED)
    numbered = _first(rows, count, spec)
    columns = list(dict.fromkeys(str(key) for _, row in numbered for key in row))
    kind = METHODS[spec.method].rows
    try:
        form = detect(columns, [row for _, row in numbered], source.spec, source.name, kind)
        form.check(kind, source.name)
    except (DataError, SpecError):
        if _is_text_table(source):
            raise
        form = _by_all(source, spec)  # later rows may hold what these do not
    if spec.on_error == "raise":
        _read(form, rows, numbered, spec)


def _first(rows: Rows, count: int, spec: RunSpec) -> list[tuple[int, Row]]:
    numbered = []
    for index in range(count):
        try:
            numbered.append((index, rows[index]))
        except DataError:
            if spec.on_error == "raise":
                raise
    return [(index, row) for index, row in numbered if row is not None]


def _is_text_table(source: Source) -> bool:
    """Return whether the head shows every column, and that each holds text."""
    ends = "".join(source.files[0].suffixes).lower() if source.files else ""
    return source.change is None and (".csv" in ends or ".tsv" in ends)


def _by_all(source: Source, spec: RunSpec) -> Format:
    from nbtune.data.prepare.row_pipeline import format_of

    kind = METHODS[spec.method].rows
    form = format_of(source, source.rows, spec.on_error, kind)
    form.check(kind, source.name)
    return form


def _read(form: Format, rows: Rows, numbered: Sequence[tuple[int, Row]], spec: RunSpec) -> None:
    for index, row in numbered:
        try:
            judge(form.read(row), spec)
        except DataError as error:
            raise DataError(error.cause, place=error.place or rows.place(index), fix=error.fix) from None
