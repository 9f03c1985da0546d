"""The doctor: what it finds is true of this machine, and it never says a token."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nbtune import doctor


def by_topic(**options: bool) -> dict[str, doctor.Finding]:
    return {finding.topic: finding for finding in doctor.examine(**options)}


def test_it_names_device_dtype_and_reason() -> None:
    import torch

    from nbtune import device

    facts = device.describe(device.pick())
    dtype, why = device.choose_dtype("auto", facts)
    found = by_topic()["device"]
    assert found.status == "ok"
    assert f"trains in {dtype}: {why}" in found.text
    assert by_topic()["torch"].text.startswith(torch.__version__)


def test_login_is_yes_or_no_and_the_token_is_never_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    token = "hf_" + "s3cr3t" * 5
    monkeypatch.setenv("HF_TOKEN", token)
    found = by_topic(offline=True)
    assert found["Hub login"].status == "ok"
    assert token not in repr(found)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    assert by_topic()["Hub login"].status == "note"


def test_a_version_below_the_floor_is_a_problem_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_floors", lambda: {"torch": ">=99"})
    found = by_topic()["torch"]
    assert found.status == "problem"
    assert "torch>=99" in found.fix


def unwritable(tmp_path: Path) -> Path:
    """A folder in which nobody makes a file: root may write into any other."""
    if os.name != "nt" and os.geteuid() != 0:
        tmp_path.chmod(0o500)
        return tmp_path
    if Path("/proc/self").exists():
        return Path("/proc")
    (tmp_path / "file").write_text("")
    return tmp_path / "file"


def test_a_folder_that_cannot_be_written_is_a_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NBTUNE_RUNS", str(unwritable(tmp_path) / "runs"))
    found = by_topic()["runs folder"]
    assert (found.status, found.fix) == ("problem", "set NBTUNE_RUNS")
    tmp_path.chmod(0o700)


def test_a_file_in_the_place_of_a_folder_is_a_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NBTUNE_RUNS", str(tmp_path / "file" / "runs"))
    assert by_topic()["runs folder"].status == "problem"


def test_the_cache_is_listed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert doctor.cached() == []
    snapshot = tmp_path / "hub/models--acme--small/snapshots/0123456789012345678901234567890123456789"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (tmp_path / "hub/models--acme--small/refs").mkdir()
    assert [(entry.kind, entry.name) for entry in doctor.cached()] == [("model", "acme/small")]
    assert "1 models of the cache" in by_topic(offline=True)["models without a network"].text
