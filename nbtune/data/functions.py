"""Python functions that make rows of rows: found by name, kept with a run, and loaded from nowhere else.

A function of the notebook is written into the run's folder with cloudpickle. Loading such a file runs code, so it is
signed with a key that only this user's account has, and a folder that somebody else wrote is refused.
"""

from __future__ import annotations

import hashlib
import hmac
import importlib
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nbtune.data.cache_folder import cache_folder
from nbtune.errors import DataError

__all__ = ["Change", "ChangedRows", "find", "load", "save"]

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
            made = self._change(dict(row))
        except Exception as error:  # the user's code may raise anything; the row says where
            raise DataError(
                f"`{self._name}` failed: {type(error).__name__}: {error}",
                place=self._rows.place(index),
                fix="mend the function, or let it return None for rows to leave out",
            ) from error
        if made is None:
            return None
        if isinstance(made, str):
            return {"text": made}
        if isinstance(made, list):
            return {"messages": made}
        if not isinstance(made, Mapping):
            raise DataError(
                f"`{self._name}` made a {type(made).__name__} of the row",
                place=self._rows.place(index),
                fix="return a dict of columns, a text, a list of messages, or None",
            )
        return dict(made)

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def place(self, index: int) -> str:
        place: str = self._rows.place(index)
        return place


def find(name: str, namespace: Mapping[str, Any]) -> Change:
    """The function of that name: of the notebook, or `module:function`.

    Raises:
        DataError: there is none.
    """
    module, colon, inner = name.partition(":")
    if not colon:
        found = namespace.get(name)
        if not callable(found):
            what = "is no function" if name in namespace else "is not defined in this notebook"
            raise DataError(f"`{name}` {what}", place="data", fix="define it in a cell, or write module:function")
        return found  # type: ignore[no-any-return]
    try:
        found = importlib.import_module(module)
        for part in inner.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise DataError(f"`{name}` cannot be imported: {error}", place="data", fix="check its name") from error
    if not callable(found):
        raise DataError(f"`{name}` is no function", place="data", fix="name a function")
    return found  # type: ignore[no-any-return]


def save(change: Change, name: str, stem: Path) -> dict[str, str]:
    """Writes a function of the notebook beside its rows; returns the record that `load` wants.

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
    temporary = path.with_name(path.name + ".new")
    temporary.write_bytes(body)
    os.replace(temporary, path)
    return {"path": path.name, "sha256": hashlib.sha256(body).hexdigest(), "signature": _signature(body)}


def load(record: Mapping[str, str], folder: Path) -> Change:
    """The function of a record.

    Raises:
        DataError: it is gone, has changed, or was not written by this user here.
    """
    if "import" in record:
        return find(record["import"], {})
    place = record["path"]
    try:
        body = (folder / place).read_bytes()
    except OSError as error:
        raise DataError("the function of the rows is gone", place=place, fix="start the run anew") from error
    if not hmac.compare_digest(_signature(body), record.get("signature", "")):
        raise DataError(
            "the function of the rows was not written here by you, and loading it would run somebody's code",
            place=place,
            fix="start the run anew with a function of your own, or use `module:function`",
        )
    import pickle

    # it is signed: this user wrote it, here
    return pickle.loads(body)  # type: ignore[no-any-return]


def _signature(body: bytes) -> str:
    return hmac.new(_key(), body, hashlib.sha256).hexdigest()


def _key() -> bytes:
    """This user's key, made when it is first needed."""
    path = cache_folder() / "functions.key"
    try:
        return path.read_bytes()
    except OSError:
        pass
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"there is no place for a key to sign functions with: {error}",
            place=str(path.parent.name),
            fix="set NBTUNE_CACHE to a folder that can be written, or use `module:function`",
        ) from error
    with os.fdopen(fd, "wb") as handle:
        key = secrets.token_bytes(32)
        handle.write(key)
    return key
