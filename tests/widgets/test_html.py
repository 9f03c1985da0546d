"""What a cell shows of a run, a spec, a report: words and HTML, hostile names as text."""

from __future__ import annotations

from pathlib import Path

import pytest
from IPython.lib.pretty import pretty
from memory_run import MemoryRun, made_up_step

import nbtune
from nbtune import events as ev
from nbtune.data.prepare.report import Report
from nbtune.export.exporter import Exporter
from nbtune.export.source import ExportedFile
from nbtune.spec import from_yaml, to_yaml
from nbtune.store.folder import create
from nbtune.untrusted import from_here
from nbtune.widgets.html import card, next_calls


def test_a_run_says_where_it_stands_and_what_comes_next():
    run = MemoryRun("demo", total_steps=9)
    run.say(ev.State(state="running", total_steps=9))
    shown = card(run, made_up_step(3))
    assert "Run demo" in shown
    assert "step 3 of 9" in shown
    assert "run.pause()" in shown


def test_a_hostile_name_is_text():
    run = MemoryRun("<img src=x onerror=alert(1)>")
    run.say(ev.State(state="running"))
    assert "<img" not in card(run, None)


@pytest.mark.parametrize(
    ("state", "call"),
    [
        ("finished", "run.chat()"),
        ("stopped", "run.resume()"),
        ("interrupted", "run.resume()"),
        ("paused", "run.stop()"),
    ],
)
def test_the_next_lines_fit_the_state(state, call):
    assert call in next_calls(state)


def test_a_spec_is_shown_as_its_yaml():
    spec = from_yaml("data: rows\nadapter: {r: 8}\nsamples: ['<b>who?</b>']")
    assert from_yaml(pretty(spec)) == spec
    assert "&lt;b&gt;who?" in spec._repr_html_()
    assert "<b>" not in spec._repr_html_()
    assert pretty(spec) == to_yaml(spec).rstrip()


def test_a_report_is_shown_in_words():
    report = Report(used=3, held_out=1, tokens=10, trained_tokens=4, longest=5, warnings=["<i>odd</i>"])
    assert "3 examples to learn from" in pretty(report)
    assert "&lt;i&gt;odd" in report._repr_html_()
    assert "<i>" not in report._repr_html_()
    assert Report(used=12_345).__str__().startswith("12,345 examples")


def test_a_spec_in_a_list_says_only_what_was_asked():
    spec = from_yaml("data: rows\nadapter: {r: 8}\nsteps: 3")
    assert repr([spec]) == "[RunSpec(data=(SourceSpec(source='rows'),), adapter=AdapterSpec(r=8), steps=3)]"
    assert str(spec) == to_yaml(spec).rstrip()


def test_in_a_terminal_a_run_is_some_lines_and_in_a_list_one(tmp_path):
    run = nbtune.Run(create(tmp_path, "demo", from_yaml("data: rows")))
    assert pretty(run).splitlines()[0] == "Run demo"
    assert "Next: run." in pretty(run)
    assert pretty([run]) == f"[{run!r}]"


def test_paths_are_told_from_the_working_folder_and_never_from_a_home(tmp_path, monkeypatch):
    home = Path.home()
    monkeypatch.chdir(tmp_path)
    assert from_here(tmp_path / "runs" / "a") == "runs/a"
    assert from_here(home / "models") == "~/models"
    made = ExportedFile(tmp_path / "runs" / "a-q8_0.gguf", "q8_0", 3 * 2**20, 0.1, notes=("fits",))
    assert repr([made]) == "[<q8_0: runs/a-q8_0.gguf, 3.0 MiB; fits>]"
    assert str(home) not in repr(ExportedFile(home / "merged", "merged", 1, 0.1))
    assert repr(Exporter(MemoryRun("demo"))).startswith('<what can be made of demo: gguf("q8_0"')
