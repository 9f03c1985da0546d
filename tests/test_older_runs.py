"""Run folders that earlier versions wrote open, are drawn, go on and are taken home.

tests/tools/make_older_run.py made them, with the version in the file's name (0.1.0 wrote format 1).
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

import nbtune
from nbtune import data, models
from nbtune.errors import TrainError
from nbtune.folder_format import FORMAT, rows_version

ARCHIVES = sorted((Path(__file__).parent / "older_runs").glob("*.tar.xz"))
STOPPED = [archive for archive in ARCHIVES if "stopped" in archive.name]
FINISHED = [archive for archive in ARCHIVES if "finished" in archive.name]


def _name(archive: Path) -> str:
    return archive.name.removesuffix(".tar.xz")


@pytest.fixture
def unpacked(tmp_path):
    """Unpack an archive; returns the run, and what an uninterrupted run lost at each step."""

    def unpack(archive):
        with tarfile.open(archive) as entries:
            how = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # of Python 3.11 from 3.11.4 on
            entries.extractall(tmp_path / "runs", **how)
        expected = json.loads((tmp_path / "runs" / "expected.json").read_text(encoding="utf-8"))
        (run,) = nbtune.runs(tmp_path / "runs")
        return run, expected["losses"]

    return unpack


def test_there_are_some():
    assert STOPPED
    assert FINISHED


@pytest.mark.parametrize("archive", ARCHIVES, ids=_name)
def test_an_older_run_opens_and_is_drawn(unpacked, archive):
    run, losses = unpacked(archive)
    again = nbtune.attach(run.id, runs_dir=run.folder.parent)
    assert again.state == ("stopped" if archive in STOPPED else "finished")
    assert again.total_steps == len(losses)
    assert again.plan.total_steps == len(losses)
    assert again.spec.adapter.r == 2
    history = again.history
    assert list(history.index) == list(range(1, again.step + 1))
    assert list(history["loss"]) == pytest.approx(losses[: again.step], rel=1e-3)
    assert any(len(trace.x) == again.step for trace in again.figure().data)
    assert run.name in again._repr_html_()
    assert "nbtune" in again.script()
    assert nbtune.RunSpec.model_validate(again.spec.model_dump()) == again.spec


@pytest.mark.parametrize("archive", [a for a in ARCHIVES if "format" in a.name], ids=_name)
def test_an_older_run_holds_out_the_rows_that_it_did_and_so_does_what_comes_of_it(unpacked, archive):
    run, _ = unpacked(archive)
    expected = json.loads((run.folder.parent / "expected.json").read_text(encoding="utf-8"))["held_out"]
    again = nbtune.repeat(run.folder).wait()
    for each in (run, again):
        sources, tokenizer = data.open_snapshot(each.folder / "data"), models.load_tokenizer(each.spec.model)
        held = data.prepare_data(sources, tokenizer, spec=each.spec, max_len=512, seed=each.spec.seed).eval
        assert sorted(set(held.row_of.tolist())) == expected
        assert rows_version(each.folder / "data") < FORMAT


@pytest.mark.parametrize("archive", STOPPED, ids=_name)
def test_an_older_run_goes_on_as_if_it_had_not_stopped(unpacked, archive):
    run, losses = unpacked(archive)
    assert run.step < len(losses)
    run.resume().wait()
    assert run.state == "finished"
    assert list(run.history.index) == list(range(1, len(losses) + 1))
    assert list(run.history["loss"]) == pytest.approx(losses, rel=1e-3)  # another processor rounds otherwise


@pytest.mark.parametrize("archive", FINISHED, ids=_name)
def test_an_older_finished_run_is_not_resumed_but_repeated(unpacked, archive):
    run, losses = unpacked(archive)
    with pytest.raises(TrainError, match="finished"):
        run.resume()
    again = nbtune.repeat(run.folder).wait()
    assert list(again.history["loss"]) == pytest.approx(losses, rel=1e-3)


@pytest.mark.parametrize(
    "archive",
    [pytest.param(a, marks=[] if "dpo" in a.name else pytest.mark.slow) for a in ARCHIVES],
    ids=_name,
)
def test_an_older_runs_adapter_is_taken_home_and_answers(unpacked, archive, tmp_path):
    run, _ = unpacked(archive)
    run.export.adapter(tmp_path / "adapter")
    config = json.loads(next((tmp_path / "adapter").rglob("adapter_config.json")).read_text(encoding="utf-8"))
    assert config["r"] == 2
    assert config["target_modules"] == ["q_proj"]
    assert list((tmp_path / "adapter").rglob("adapter_model.safetensors"))
    assert isinstance(run.generate("Who are you?", max_new_tokens=3), str)
    run.free()
