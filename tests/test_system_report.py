"""The doctor: what it finds is true of this machine, and it never says a token."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nbtune import system_report


def by_topic(**options: bool) -> dict[str, system_report.Finding]:
    return {finding.topic: finding for finding in system_report.examine(**options)}


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
    monkeypatch.setattr(system_report, "_floors", lambda: {"torch": ">=99"})
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


def put_in_cache(hub: Path, name: str, *files: str) -> None:
    """A model of the Hub as huggingface_hub keeps it."""
    commit = "0123456789012345678901234567890123456789"
    folder = hub / f"models--{name.replace('/', '--')}"
    for file in files:
        path = folder / "snapshots" / commit / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)


def test_what_is_missing_without_a_network_is_listed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from nbtune.spec import from_mapping
    from nbtune.store import folder

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("NBTUNE_RUNS", str(tmp_path / "runs"))
    put_in_cache(tmp_path / "hub", "acme/whole", "config.json", "model.safetensors")
    put_in_cache(tmp_path / "hub", "acme/half", "config.json")
    for name, model in {"a": "acme/whole", "b": "acme/gone", "c": "nbtune/tiny"}.items():
        folder.create(tmp_path / "runs", name, from_mapping({"data": "rows", "model": model}))
    found = by_topic(offline=True)
    assert found["models without a network"].text == "nbtune/tiny and 1 models of the cache"
    assert found["model acme/half"].status == "problem"
    assert "the run b-" in found["model acme/gone"].text
    assert found["model acme/gone"].fix.startswith("hf download acme/gone")
    assert "model acme/whole" not in found


def test_a_package_that_was_replaced_under_a_kernel_needs_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    assert system_report.restart_needed() == []
    monkeypatch.setattr(transformers, "__version__", "4.0.0")
    (told,) = system_report.restart_needed()
    assert told.startswith("transformers 4.0.0 is loaded, ")


def test_the_cache_is_listed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert system_report.cached() == []
    snapshot = tmp_path / "hub/models--acme--small/snapshots/0123456789012345678901234567890123456789"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (tmp_path / "hub/models--acme--small/refs").mkdir()
    assert [(entry.kind, entry.name) for entry in system_report.cached()] == [("model", "acme/small")]
    assert "model acme/small" in by_topic(offline=True)
