"""Text that is no JSON, as people and other tools write it: what is wrong with it, and what to write instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from nbtune.data.sources.files import read_file
from nbtune.errors import DataError


@pytest.mark.parametrize(
    ("name", "text", "cause", "fix"),
    [
        ("a.json", '[{"a": 1},]', "a comma stands before the `]`", "leave that comma out"),
        ("a.json", '[\n{"a": 1,}\n]', "a comma stands before the `}` in line 2", "leave that comma out"),
        ("a.jsonl", '{"a": 1},\n{"a": 2}', "a comma stands behind the object", "each line is an object by itself"),
        ("a.jsonl", '[\n{"a": 1},\n{"a": 2}\n]', "a list begins", "end the file's name in .json"),
        ("a.json", "[{'a': 1}]", "a text stands in single quotes", "double quotes"),
        ("a.json", '[ // mine\n{"a": 1}]', "a comment stands in it", "JSON has none"),
        ("a.json", '[{"a": True}]', "`True` is Python's word", "write `true`"),
        ("a.json", '[{"a": 1}', "", "close what is open|write the file again"),
        ("a.json", "<!DOCTYPE html><html></html>", "a page of the web", "fetch the file itself"),
        ("a.json", '[{"a" 1}]', "line 1, column", "one JSON object a line"),
        ("a.json", "null", "it holds null", "write [ {…}, {…} ]"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, name: str, text: str, cause: str, fix: str) -> None:
    import re

    (tmp_path / name).write_text(text)
    with pytest.raises(DataError) as caught:
        list(read_file(tmp_path / name, name))
    assert cause in caught.value.cause
    assert re.search(fix if "|" in fix else re.escape(fix), caught.value.fix)
