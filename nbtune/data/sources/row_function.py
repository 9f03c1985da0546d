"""Python functions that make rows of rows: found by name, kept with a run, and loaded from nowhere else.

A function of the notebook is written into the run's folder with cloudpickle, one of a module by its name. Loading
either runs code, so the record is signed with a key that only this user's account has
(`nbtune.data.sources.snapshot`), and that of a folder which somebody else wrote counts only after this user has said
so.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nbtune.atomic_io import write_bytes
from nbtune.data.sources import consent
from nbtune.errors import DataError
from nbtune.folder_format import signature_of_pickle, version_of
from nbtune.untrusted import harmless, open_file, shortened

Change = Callable[[dict[str, Any]], "dict[str, Any] | None"]


class ChangedRows:
    """Rows as a function makes them; a row that it leaves out is None."""

    def __init__(self, rows: Any, change: Change, name: str) -> None:
        self._rows, self._change, self._name = rows, change, name

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:
        row = self._rows[index]
        try:
            changed = self._change(dict(row))
        except Exception as error:  # the user's code may raise anything; the row says where
            raise DataError(
                f"`{self._name}` failed: {type(error).__name__}: {error}",
                place=self._rows.place(index),
                fix="mend the function, or let it return None for rows to leave out",
            ) from error
        if changed is None:
            return None
        if isinstance(changed, str):
            return {"text": changed}
        if isinstance(changed, list):
            return {"messages": changed}
        if not isinstance(changed, Mapping):
            raise DataError(
                f"`{self._name}` made a {type(changed).__name__} of the row",
                place=self._rows.place(index),
                fix="return a dict of columns, a text, a list of messages, or None",
            )
        return dict(changed)

    def longest(self, count: int) -> list[int]:
        """Return the numbers of the rows of most bytes before they are changed; none where that is not known."""
        longest = getattr(self._rows, "longest", None)
        return [] if longest is None else longest(count)

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def place(self, index: int) -> str:
        place: str = self._rows.place(index)
        return place


def find(name: str, namespace: Mapping[str, Any]) -> Change:
    """Return the function of that name: of the notebook, or `module:function`.

    Raises:
        DataError: there is none.
    """
    module, colon, inner = name.partition(":")
    if not colon:
        function = namespace.get(name)
        if not callable(function):
            trouble = "is no function" if name in namespace else "is not defined in this notebook"
            raise DataError(f"`{name}` {trouble}", place="data", fix="define it in a cell, or write module:function")
        return function  # type: ignore[no-any-return]
    try:
        function = importlib.import_module(module)
        for part in inner.split("."):
            function = getattr(function, part)
    except Exception as error:  # a module may raise anything while it is imported
        shown = f"`{shortened(name)}` cannot be imported: {type(error).__name__}: {shortened(error)}"
        raise DataError(shown, place="data", fix="write module:function") from error
    if not callable(function):
        raise DataError(f"`{name}` is no function", place="data", fix="name a function")
    return function  # type: ignore[no-any-return]


def save(change: Change, name: str, stem: Path) -> dict[str, str]:
    """Write a function of the notebook beside its rows; return the record that `load` wants.

    Raises:
        DataError: it cannot be written down.
    """
    import cloudpickle

    if ":" in name:
        source = getattr(importlib.import_module(name.partition(":")[0]), "__file__", None)
        return {"import": name, "sha256": hashlib.sha256(Path(source).read_bytes() if source else b"").hexdigest()}
    try:
        body = cloudpickle.dumps(change)
    except Exception as error:
        raise DataError(
            f"`{name}` cannot be kept with the run: {error}",
            place="data",
            fix="put it into a module: `module:function`",
        ) from error
    path = stem.with_name(stem.name + ".function")
    write_bytes(path, body)
    return {"path": path.name, "sha256": hashlib.sha256(body).hexdigest()}


def load(record: Mapping[str, str], folder: Path, *, allowed: bool) -> Change:
    """Return the function of a record.

    Args:
        record: as `save` made it.
        folder: where it lies.
        allowed: this user wrote the record here, or has said that it may run.

    Raises:
        DataError: it is gone, has changed, or may not run.
    """
    if "import" in record:
        if not allowed:
            raise not_allowed(f"the function `{record['import']}`", folder)
        return find(record["import"], {})
    body = _body(record, folder)
    if not allowed or hashlib.sha256(body).hexdigest() != record.get("sha256"):
        raise not_allowed("a pickled function (any code)", folder)
    import pickle

    # this user wrote it here, or has said that it may run
    return pickle.loads(body)  # type: ignore[no-any-return]


def was_signed(record: Mapping[str, str], folder: Path) -> bool:
    """Return whether this user has signed the pickle of a record by itself, as older folders have it."""
    signature = signature_of_pickle(record, version_of(folder.parent))
    try:
        return signature is not None and consent.signed_body(_body(record, folder), signature)
    except DataError:
        return False


def _body(record: Mapping[str, str], folder: Path) -> bytes:
    try:
        with open_file(folder / record["path"]) as file:
            return file.read()
    except OSError as error:
        raise DataError("the function of the rows is gone", place=record["path"], fix="start the run anew") from error


def not_allowed(what: str, folder: Path) -> DataError:
    """Return the error that something of a folder's data was not written here by this user, and how to allow it."""
    run = harmless(folder.parent.name, line=True)
    return DataError(
        f"its rows want {what}, which was not written here by you: it would run, or read, what somebody chose",
        place=f"{run}/{folder.name}/sources.json",
        fix=f"if you trust it: `nbtune trust {run}` in a shell, or `nbtune.trust({run!r})` in Python",
    )
