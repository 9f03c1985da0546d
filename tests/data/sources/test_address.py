"""Rows at an address, fetched from a server of the test's own with what a plain install has; paths where nothing is."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from nbtune.data.sources.resolve import resolve
from nbtune.errors import DataError
from nbtune.spec import from_mapping


class _Handler(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of the folder `tmp_path`; no proxy stands between."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Handler, directory=str(tmp_path))) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_address[1]}"
        serving.shutdown()


def rows_at(address: str) -> list[dict[str, Any]]:
    (source,) = resolve(from_mapping({"data": address}).data)
    return [dict(row) for row in source.load()]


def test_rows_are_fetched_without_further_packages(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("aiohttp", "requests"):  # fsspec wants both, and nothing of a plain install brings the first
        monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / "my rows.csv").write_text("prompt,completion\nWho?,Me\n")
    assert rows_at(f"{server}/my%20rows.csv?raw=1") == [{"prompt": "Who?", "completion": "Me"}]


@pytest.mark.parametrize(
    ("name", "cause", "fix"),
    [
        ("gone.csv", "cannot be fetched: Not Found|File not found", "in a browser"),
        ("page.csv", "a page of the web", "fetch the file itself"),
        ("view", "its name has no ending", "give one of .jsonl"),
    ],
)
def test_what_cannot_be_read_there_is_said(server: str, tmp_path: Path, name: str, cause: str, fix: str) -> None:
    (tmp_path / "page.csv").write_text("<!DOCTYPE html><html><body>Sign in</body></html>")
    (tmp_path / "view").write_text("x")
    with pytest.raises(DataError, match=cause) as caught:
        rows_at(f"{server}/{name}")
    assert fix in caught.value.fix


@pytest.mark.parametrize(
    ("address", "fix"),
    [("htps://127.0.0.1/a.csv", "write https:// in place of htps://"), ("http://127.0.0.1:9/a.csv", "the network")],
)
def test_an_address_that_leads_nowhere_is_said(server: str, address: str, fix: str) -> None:
    with pytest.raises(DataError, match="cannot be fetched") as caught:
        rows_at(address)
    assert fix in caught.value.fix


@pytest.mark.parametrize(
    ("name", "cause", "fix"),
    [
        ("ROWS.CSV", "no file called `ROWS.CSV`", "did you mean `rows.csv`?"),
        ("data/train.jsonl", "no file called", "check the name; it was looked for in {here}"),
        ("*.parq", "no file matches `*.parq`", "check the pattern; it was looked for in {here}"),
        ("C:\new\table.csv", "with a '\\n' in it", "single quotes"),
        ("/gone/train.jsonl", "no file called", "check the name"),
    ],
)
def test_a_file_that_is_not_there_is_said_with_where_it_was_looked_for(
    tmp_path: Path, name: str, cause: str, fix: str
) -> None:
    (tmp_path / "rows.csv").write_text("prompt,completion\nWho?,Me\n")
    with pytest.raises(DataError) as caught:
        resolve(from_mapping({"data": name}).data, base_dir=tmp_path)
    assert cause in caught.value.cause
    assert fix.format(here=tmp_path) in caught.value.fix
    assert ("looked for" in caught.value.fix) == ("looked for" in fix)
