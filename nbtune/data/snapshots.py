"""A run's data in its folder, so that it can be resumed or repeated without the notebook.

Rows of variables are written (`<name>.jsonl`, or `.parquet` for frames); files are recorded by path, relative to the
folder, with their content's hash, and a changed file is noticed; datasets of the Hub by id and revision.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nbtune.data import functions
from nbtune.data.files import read_files
from nbtune.data.lines import to_json
from nbtune.data.sources import ArrowRows, Rows, Source, is_rows, rows_of
from nbtune.errors import DataError
from nbtune.spec import SourceSpec

__all__ = ["changed_rows", "open_snapshot", "reopen", "snapshot"]

_INDEX = "sources.json"


def snapshot(sources: Iterable[Source], folder: Path | str) -> list[Source]:
    """Writes down what the sources hold; returns them as they will be opened again.

    Args:
        sources: from `resolve`.
        folder: the run's `data/` folder; made if it is missing.

    Raises:
        DataError: rows cannot be written down (a value that is not text, number, list or dict).
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    entries: list[dict[str, Any]] = []
    used: set[str] = set()
    for source in sources:
        entry: dict[str, Any] = {
            "name": source.name,
            "kind": source.kind,
            "role": source.role,
            "spec": source.spec.model_dump(mode="json", exclude_defaults=True),
        }
        if source.kind == "variable":
            stem = base = re.sub(r"[^\w.-]+", "-", source.name).strip("-.") or "rows"
            while stem in used:
                stem = f"{base}-{len(used)}"
            used.add(stem)
            entry["files"] = [_record(_write(source.raw, folder / stem, source.name), folder)]
        elif source.kind == "file" and source.files:
            entry["files"] = [_record(file, folder) for file in source.files]
        if source.change is not None:
            name = source.spec.function or "function"
            entry["function"] = functions.save(source.change, name, folder / f"function-{len(entries)}")
        entries.append(entry)
    temporary = folder / f"{_INDEX}.new"
    temporary.write_text(json.dumps({"version": 1, "sources": entries}, indent=1), encoding="utf-8")
    os.replace(temporary, folder / _INDEX)
    return open_snapshot(folder, verify=False)


def open_snapshot(folder: Path | str, *, verify: bool = True) -> list[Source]:
    """The sources of a snapshot.

    Args:
        verify: compare the files' hashes with those written down.

    Raises:
        DataError: there is no snapshot, or a file is missing or has changed since.
    """
    folder = Path(folder)
    try:
        entries = json.loads((folder / _INDEX).read_text(encoding="utf-8"))["sources"]
    except (OSError, ValueError, KeyError) as error:
        raise DataError("there is no snapshot of the data here", place=str(folder), fix="start the run anew") from error
    return [_open(entry, folder, verify) for entry in entries]


def changed_rows(folder: Path | str, variables: Mapping[str, Any]) -> list[str]:
    """The names of variables that hold other rows now than in a snapshot.

    What cannot be compared is left out: a name that is no more there, a stream, which can be read only once.
    """
    folder = Path(folder)
    try:
        entries = json.loads((folder / _INDEX).read_text(encoding="utf-8"))["sources"]
    except (OSError, ValueError, KeyError):
        return []
    return sorted({name for entry in entries if (name := _changed_name(entry, variables))})


def _changed_name(entry: Mapping[str, Any], variables: Mapping[str, Any]) -> str:
    name = str(entry["spec"].get("source", "")).removeprefix("var:")
    value = variables.get(name)
    if entry["kind"] != "variable" or not is_rows(value) or type(value).__name__ == "IterableDataset":
        return ""
    with tempfile.TemporaryDirectory() as made:
        written = _write(rows_of(value, name), Path(made) / "rows", name)
        return "" if _hash(written) == entry["files"][0]["sha256"] else name


def _open(entry: dict[str, Any], folder: Path, verify: bool) -> Source:
    from nbtune.data.resolving import resolve

    spec, role = SourceSpec.model_validate(entry["spec"]), entry.get("role", "train")
    if entry["kind"] in ("hub", "set") or not entry.get("files"):
        prefix = "hub:" if entry["kind"] == "hub" and not spec.source.startswith("hub:") else ""
        plain = spec.model_copy(update={"source": prefix + spec.source, "function": None})
        found = resolve([plain], base_dir=folder)[0]
        return _with_function(Source(entry["name"], entry["kind"], spec, found.load, role=role), entry, folder)
    files = [folder / record["path"] for record in entry["files"]]
    for file, record in zip(files, entry["files"], strict=True):
        if not file.exists():
            raise DataError("the file is gone", place=record["path"], fix="put it back, or start the run anew")
        if verify and not _untouched(file, record) and _hash(file) != record["sha256"]:
            raise DataError("the file has changed since the run began", place=record["path"], fix="start a new run")
    digests = tuple(record["sha256"] for record in entry["files"])
    return _with_function(reopen(entry["name"], entry["kind"], role, spec, files, digests), entry, folder)


def _with_function(source: Source, entry: Mapping[str, Any], folder: Path) -> Source:
    record = entry.get("function")
    if record is None:
        return source
    return replace(source, change=functions.load(record, folder), change_digest=record["sha256"])


def reopen(
    name: str, kind: str, role: str, spec: SourceSpec, files: Sequence[Path], digests: tuple[str, ...] = ()
) -> Source:
    """A source of files that were found before."""
    from nbtune.data.resolving import saved_dataset

    if any(file.suffix == ".arrow" for file in files):  # Dataset.save_to_disk
        root = Path(os.path.commonpath([file.parent for file in files]))
        return Source(name, "file", spec, lambda: saved_dataset(root, name, spec.split), tuple(files), role, digests)
    label = name if kind == "variable" or len(files) > 1 else files[0].name
    return Source(name, kind, spec, lambda: read_files(files, label), tuple(files), role, digests)


def _record(file: Path, folder: Path) -> dict[str, Any]:
    try:
        path = os.path.relpath(file, folder)
    except ValueError:  # another drive
        path = str(file.resolve())
    before = file.stat()
    record: dict[str, Any] = {"path": Path(path).as_posix(), "sha256": _hash(file)}
    return {**record, "size": before.st_size, "changed": before.st_mtime_ns}


def _untouched(file: Path, record: Mapping[str, Any]) -> bool:
    """Whether size and time of the last change are those of the snapshot: then its content is not read again."""
    now = file.stat()
    return bool((now.st_size, now.st_mtime_ns) == (record.get("size"), record.get("changed")))


def _hash(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _write(rows: Rows, stem: Path, name: str) -> Path:
    if isinstance(rows, ArrowRows):
        import pyarrow.parquet

        path = stem.with_name(stem.name + ".parquet")
        temporary = path.with_name(path.name + ".new")
        pyarrow.parquet.write_table(rows.table, temporary, row_group_size=4096)
    else:
        path = stem.with_name(stem.name + ".jsonl")
        temporary = path.with_name(path.name + ".new")
        with temporary.open("w", encoding="utf-8") as handle:
            for index, row in enumerate(rows):
                handle.write(to_json(row, f"{name}, row {index}") + "\n")
    os.replace(temporary, path)
    return path
