"""What a run's folder holds of its data is what was written there: changed, borrowed or linked rows are seen."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from nbtune.data import open_snapshot, resolve, snapshot
from nbtune.data.sources.snapshot import copy_snapshot, questions
from nbtune.errors import DataError
from nbtune.spec import from_mapping

ROWS = [{"prompt": f"ask {i}", "completion": f"say {i}"} for i in range(4)]
DATA = Path("run/data")


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NBTUNE_CACHE", str(tmp_path / "cache"))


def kept(**fields: Any) -> Path:
    """A snapshot of rows of a variable; the file that it wrote."""
    spec = from_mapping({"data": [{"source": "rows", **fields}]})
    snapshot(resolve(spec.data, {"rows": ROWS, "twice": lambda row: row}), DATA)
    return DATA / "rows.jsonl"


def test_rows_that_a_function_reads_are_looked_at_though_their_file_seems_untouched() -> None:
    """What this user signed is a function on these rows: a stranger can give a file its old size and time back."""
    file = kept(function="twice")
    before = file.stat()
    file.write_bytes(file.read_bytes().replace(b"say 1", b"say 7"))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size
    with pytest.raises(DataError, match="has changed"):
        open_snapshot(DATA)


def test_another_time_alone_is_no_change_and_other_rows_are() -> None:
    file = kept()
    os.utime(file, (1, 1))
    assert len(open_snapshot(DATA)[0].rows) == 4
    file.write_bytes(file.read_bytes().replace(b"say 1", b"say 7"))
    with pytest.raises(DataError, match="has changed"):
        open_snapshot(DATA)


def test_a_data_set_of_arrow_files_is_asked_for_wherever_it_lies() -> None:
    """The library that reads one reads what its folder says besides."""
    kept()
    index = DATA / "sources.json"
    body = json.loads(index.read_text())
    body["sources"][0]["files"][0]["path"] = "set/rows.arrow"
    body["sources"][0].pop("signature", None)
    index.write_text(json.dumps(body))
    assert questions(DATA) == ["the file set/rows.arrow"]
    with pytest.raises(DataError, match="not written here by you"):
        open_snapshot(DATA)


def test_what_a_link_leads_to_is_not_copied_into_another_run(tmp_path: Path) -> None:
    kept()
    private = tmp_path / "private.txt"
    private.write_text("secret")
    (DATA / "more.txt").symlink_to(private)
    with pytest.raises(DataError, match="leads out"):
        copy_snapshot(DATA, Path("other/data"))
    assert not Path("other").exists()


def test_a_copy_is_of_what_is_allowed_alone_and_is_allowed_itself() -> None:
    kept(function="twice")
    copy_snapshot(DATA, Path("other/data"))
    assert questions(Path("other/data")) == []
    assert [*open_snapshot(Path("other/data"))[0].rows] == ROWS
    Path(os.environ["NBTUNE_CACHE"], "functions.key").unlink()
    with pytest.raises(DataError, match="not written here by you"):
        copy_snapshot(DATA, Path("third/data"))
    assert not Path("third").exists()
