"""A run's data in its folder, so that it can be resumed or repeated without the notebook.

Rows of variables are written (`<name>.jsonl`, or `.parquet` for frames); files are recorded by path, relative to the
folder, with their content's hash, and a changed file is noticed; datasets of the Hub by id and revision.

An entry that runs a function, or reads what lies outside of the folder, is signed as a whole: what is run, on which
rows, in which role. One that this user has not signed here counts after a consent (`nbtune.data.sources.consent`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nbtune import untrusted
from nbtune.atomic_io import replace_file, write_json, write_text
from nbtune.data.sources import consent, row_function
from nbtune.data.sources.files import read_files
from nbtune.data.sources.json_line import to_json
from nbtune.data.sources.rows import ArrowRows, Rows, Source, at_most
from nbtune.data.sources.variables import is_rows, is_stream, rows_of, split_of
from nbtune.errors import DataError
from nbtune.folder_format import rows_version, stamp
from nbtune.spec import SourceSpec

_INDEX = "sources.json"
_ABSENT = "absent.json"  # why there is no snapshot


def snapshot(sources: Iterable[Source], folder: Path | str, *, travels: bool = False) -> list[Source]:
    """Write down what the sources hold; return them as they will be opened again.

    >>> spec = nbtune.spec.from_mapping({"data": "rows"})
    >>> sources = nbtune.data.resolve(spec.data, {"rows": [{"prompt": "Hi", "completion": "Ahoy!"}]})
    >>> [file.name for source in nbtune.data.snapshot(sources, "kept") for file in source.files]
    ['rows.jsonl']

    Args:
        sources: from `resolve`.
        folder: the run's `data/` folder; made if it is missing.
        travels: it goes where the files are not: their rows are written down, too.

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
        if source.kind == "variable" or (travels and source.kind == "file"):
            stem = base = re.sub(r"[^\w.-]+", "-", source.name).strip("-.") or "rows"
            while stem in used:
                stem = f"{base}-{len(used)}"
            used.add(stem)
            entry["files"] = [_record(_write(source.raw, folder / stem, source.name), folder)]
        elif source.kind == "file" and source.files:
            entry["files"] = [_record(file, folder) for file in source.files]
        if source.change is not None:
            name = source.spec.function or "function"
            entry["function"] = row_function.save(source.change, name, folder / f"function-{len(entries)}")
        if source.rewards:
            begin = f"reward-{len(entries)}"
            entry["rewards"] = [
                {"name": name, **row_function.save(judge, name, folder / f"{begin}-{k}")}
                for k, (name, judge) in enumerate(source.rewards)
            ]
        if _reaches(entry, folder):
            entry["signature"] = consent.signature_of(_meaning(entry))
        entries.append(entry)
    write_text(folder / _INDEX, json.dumps({**stamp(), "sources": entries}, indent=1))
    return open_snapshot(folder, verify=False)


def open_snapshot(folder: Path | str, *, verify: bool = True) -> list[Source]:
    """Return the sources of a snapshot.

    >>> [source.name for source in nbtune.data.open_snapshot(nbtune.attach("demo").folder / "data")]
    ['rows']

    Args:
        verify: compare the files' hashes with those written down.

    Raises:
        DataError: there is no snapshot, or a file is missing or has changed since.
    """
    folder = Path(folder)
    entries, version = _entries(folder), rows_version(folder)
    return [replace(_checked(entry, folder, verify), version=version) for entry in entries]


def questions(folder: Path) -> list[str]:
    """Return what the data of a run's folder would run or read beyond it, and this user has not
    allowed yet, in words."""
    return [_said(entry, folder) for entry in _entries(folder) if not _allowed(entry, folder)]


def allow(folder: Path) -> None:
    """Allow, for this user, what `questions` says, in this folder.

    Raises:
        DataError: there is no data, or the cache cannot be written.
    """
    for entry in _entries(folder):
        if not _allowed(entry, folder):
            consent.remember(folder, _meaning(entry), _said(entry, folder))


def copy_snapshot(old: Path, new: Path) -> None:
    """Copy a run's data into another run's folder, with what this user has allowed of it.

    Raises:
        DataError: something of it is not allowed, or a link in it leads out of the run's folder.
    """
    entries = _entries(old)
    for entry in entries:
        if not _allowed(entry, old):
            raise row_function.not_allowed(_said(entry, old), old)
    untrusted.refuse_links(old.parent, old.name, error=DataError)
    shutil.copytree(old, new, dirs_exist_ok=True)
    for entry in entries:
        if not _allowed(entry, new):
            consent.remember(new, _meaning(entry), _said(entry, new))


def leave_out(folder: Path, why: str) -> None:
    """Write down, in place of a snapshot, why there is none."""
    folder.mkdir(exist_ok=True)
    write_json(folder / _ABSENT, {"why": why})


def _absent(folder: Path) -> DataError:
    try:
        why = untrusted.load(folder / _ABSENT, links=False).get("why")
    except (OSError, untrusted.BadFile):
        why = None
    place = untrusted.harmless(folder.parent.name, line=True)
    if isinstance(why, str) and why:
        return DataError(untrusted.shortened(why, 200), place=place, fix="it is for runs that nbtune trains")
    return DataError("there is no snapshot of the data here", place=str(folder), fix="start the run anew")


def _entries(folder: Path) -> list[dict[str, Any]]:
    try:
        entries = untrusted.load(folder / _INDEX, links=False).get("sources")
    except FileNotFoundError as error:
        raise _absent(folder) from error
    except untrusted.BadFile as error:
        raise _damaged(folder, str(error)) from error
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise _damaged(folder, "it names no sources")
    return entries


def _damaged(folder: Path, why: str) -> DataError:
    place = untrusted.harmless(f"{folder.parent.name}/{folder.name}/{_INDEX}", line=True)
    return DataError(f"the record of the data is damaged: {why}", place=place, fix="start the run anew")


def _checked(entry: dict[str, Any], folder: Path, verify: bool) -> Source:
    try:
        return _open(entry, folder, verify)
    except (KeyError, TypeError, AttributeError, ValueError) as error:  # what is not as nbtune writes it
        raise _damaged(folder, f"{type(error).__name__} in an entry") from error


def _meaning(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a signature is of: everything that says what is run or read, on which rows, and as what."""
    return {key: value for key, value in entry.items() if key != "signature"}


def _allowed(entry: Mapping[str, Any], folder: Path) -> bool:
    """Return whether it stays in the folder and runs nothing, or this user has signed it here, or allowed it."""
    if not _reaches(entry, folder):
        return True
    meaning = _meaning(entry)
    if consent.is_signed(meaning, entry.get("signature")) or consent.is_remembered(folder, meaning):
        return True
    record = entry.get("function") or {}
    return len(_reaches(entry, folder)) == 1 and "path" in record and row_function.was_signed(record, folder)


def _reaches(entry: Mapping[str, Any], folder: Path) -> list[str]:
    """Return what an entry runs, and what it reads outside of the folder, in words; nothing of nbtune's sets and the
    Hub's."""
    reached, record = [], entry.get("function")
    if record is not None:
        reached.append(f"the function `{record['import']}`" if "import" in record else "a pickled function (any code)")
    for judge in entry.get("rewards") or ():
        reached.append(f"the judging function `{judge['name']}` (any code)")
    files = [file["path"] for file in entry.get("files") or ()]
    reached += [f"the file {path}" for path in files if _is_outside(path, folder) or path.endswith(".arrow")]
    if not files and entry.get("kind") not in ("hub", "set"):
        reached.append(f"what lies at {entry['spec']['source']}")
    if entry.get("kind") == "set" and not str(entry["spec"]["source"]).startswith("nbtune/"):
        reached.append(f"what lies at {entry['spec']['source']}")
    return [untrusted.harmless(words, line=True) for words in reached]


def _is_outside(path: str, folder: Path) -> bool:
    """Return whether a file lies, or a link leads, out of the folder."""
    return not (folder / path).resolve().is_relative_to(folder.resolve())


def _said(entry: Mapping[str, Any], folder: Path) -> str:
    return " and ".join(_reaches(entry, folder))


def changed_rows(folder: Path | str, variables: Mapping[str, Any]) -> list[str]:
    """Return the names of variables that hold other rows now than in a snapshot.

    What cannot be compared is left out: a name that is no more there, a stream, which can be read only once.
    """
    folder = Path(folder)
    try:
        entries = _entries(folder)
    except DataError:
        return []
    return sorted({name for entry in entries if (name := _changed_name(entry, variables))})


def _changed_name(entry: Mapping[str, Any], variables: Mapping[str, Any]) -> str:
    name = str(entry["spec"].get("source", "")).removeprefix("var:")
    value = variables.get(name)
    if entry["kind"] != "variable" or not is_rows(value) or is_stream(value):
        return ""
    with tempfile.TemporaryDirectory() as folder:
        rows = rows_of(split_of(value, entry["spec"].get("split", "train"), name), name)
        written = _write(at_most(entry["spec"].get("max_rows"), rows), Path(folder) / "rows", name)
        return "" if _hash(written) == entry["files"][0]["sha256"] else name


def _open(entry: dict[str, Any], folder: Path, verify: bool) -> Source:
    from nbtune.data.sources.resolve import resolve

    spec, role = SourceSpec.model_validate(entry["spec"]), entry.get("role", "train")
    allowed, record = _allowed(entry, folder), entry.get("function")
    change = None if record is None else row_function.load(record, folder, allowed=allowed)
    if not allowed:
        raise row_function.not_allowed(_said(entry, folder), folder)
    more: dict[str, Any] = {} if record is None else {"change": change, "change_digest": record["sha256"]}
    judges = entry.get("rewards") or ()
    more["rewards"] = tuple((one["name"], row_function.load(one, folder, allowed=allowed)) for one in judges)
    if entry["kind"] in ("hub", "set") or not entry.get("files"):
        prefix = "hub:" if entry["kind"] == "hub" and not spec.source.startswith("hub:") else ""
        plain = spec.model_copy(update={"source": prefix + spec.source, "function": None})
        resolved = resolve([plain], base_dir=folder)[0]
        return Source(entry["name"], entry["kind"], spec, resolved.load, role=role, **more)
    files = [folder / record["path"] for record in entry["files"]]
    for file, record in zip(files, entry["files"], strict=True):
        if not file.exists():
            raise DataError("the file is gone", place=record["path"], fix="put it back, or start the run anew")
        try:
            quick = _untouched(file, record) and (change is None or _is_outside(record["path"], folder))
            changed = verify and not quick and _hash(file) != record["sha256"]
        except OSError as error:  # of another machine, perhaps, on which nobody may read it
            words = f"the file cannot be read: {error.strerror or error}"
            raise DataError(words, place=record["path"], fix="let this user read it, on every machine") from error
        if changed:
            raise DataError("the file has changed since the run began", place=record["path"], fix="start a new run")
    digests = tuple(record["sha256"] for record in entry["files"])
    return replace(reopen(entry["name"], entry["kind"], role, spec, files, digests), **more)


def reopen(
    name: str, kind: str, role: str, spec: SourceSpec, files: Sequence[Path], digests: tuple[str, ...] = ()
) -> Source:
    """Return a source of files that were found before."""
    from nbtune.data.sources.resolve import saved_dataset

    if any(file.suffix == ".arrow" and (file.parent / "state.json").exists() for file in files):  # Dataset.save_to_disk
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
    """Return whether size and time of the last change are those of the snapshot: then its content is not read again."""
    now = file.stat()
    return bool((now.st_size, now.st_mtime_ns) == (record.get("size"), record.get("changed")))


def _hash(file: Path) -> str:
    with untrusted.open_file(file) as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _write(rows: Rows, stem: Path, name: str) -> Path:
    if isinstance(rows, ArrowRows):
        import pyarrow.parquet

        path = stem.with_name(stem.name + ".parquet")
        with replace_file(path) as beside:
            pyarrow.parquet.write_table(rows.table, beside, row_group_size=4096)
    else:
        path = stem.with_name(stem.name + ".jsonl")
        with replace_file(path) as beside, beside.open("w", encoding="utf-8") as handle:
            for index, row in enumerate(rows):
                handle.write(to_json(row, f"{name}, row {index}") + "\n")
    return path
