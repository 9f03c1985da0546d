"""`nbtune cache` lists what is kept and throws prepared data away."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nbtune.cli import main
from nbtune.data.prepare import cache


def call(capfd: Any, *args: str) -> tuple[int, str]:
    code = main(["cache", *args])
    return code, capfd.readouterr().out


def test_prepared_data_is_listed_and_thrown_away(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.setenv("NBTUNE_CACHE", str(Path("kept").absolute()))
    rows = [{"prompt": f"ask {i}", "completion": f"say {i}"} for i in range(2100)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["data", "rows.jsonl", "--model", "nbtune/tiny"]) == 0
    ((key, size, _),) = cache.entries()
    capfd.readouterr()
    code, out = call(capfd, "--json")
    entries = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert {"kind": "prepared", "name": key[:16], "bytes": size} in entries
    assert call(capfd, "--prune", "1")[0] == 0
    assert cache.entries() != []
    code, out = call(capfd, "--prune", "0", "--json")
    assert (code, json.loads(out.splitlines()[0])) == (0, {"freed": size})
    assert cache.entries() == []
