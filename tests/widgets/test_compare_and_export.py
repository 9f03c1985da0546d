"""The comparison and the export panel, without a page."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest
from memory_run import MemoryRun, made_up_step

from nbtune import events as ev
from nbtune.errors import ExportError, NbtuneError
from nbtune.export.saying import CANCELLED, ExportCancelled
from nbtune.spec import RunSpec
from nbtune.widgets import compare, exporter
from nbtune.widgets.compare_panel import differences, of_different_tokens
from nbtune.widgets.export_panel import choices
from nbtune.widgets.metrics import COLUMNS


def run(name, steps=20, **spec):
    made = MemoryRun(name)
    made.spec = RunSpec(data="rows", **spec)
    made.say(*[made_up_step(k) for k in range(1, steps + 1)])
    return made


def wait_for(widget, name, what):
    seen = threading.Event()
    widget.observe(lambda change: what(change["new"]) and seen.set(), name)
    if not what(getattr(widget, name)):
        assert seen.wait(240)


def test_what_specs_differ_in_is_a_table():
    runs = [run("a"), run("b", adapter={"type": "dora", "r": 8}, learning_rate=1e-4)]
    table = {row[0]: row[1:] for row in differences(runs)}
    assert table == {"adapter.type": ["lora", "dora"], "adapter.r": ["16", "8"], "learning_rate": ["", "0.0001"]}


def test_losses_of_different_tokens_are_told_apart(tmp_path):
    runs = [run(name, model=model) for name, model in (("a", "org/small"), ("b", "org/large"))]
    for each in runs:
        each.folder = tmp_path / each.name
        (each.folder / "adapter").mkdir(parents=True)
        (each.folder / "adapter" / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"x": 1}}, "added": 1}))
    assert not of_different_tokens([runs[0], runs[0]])
    assert not of_different_tokens(runs)  # two models with one vocabulary
    (runs[1].folder / "adapter" / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"x": 2}}}))
    assert of_different_tokens(runs)
    (runs[1].folder / "adapter" / "tokenizer.json").write_text("[" * 100_000)  # as anybody may write it
    assert of_different_tokens(runs)
    panel = compare(runs)
    assert panel.apart
    panel.close()


@pytest.mark.parametrize("fields", [{"tokenizer": "org/other"}, {"model": "var:mine"}])
def test_runs_of_one_name_may_have_different_tokens(tmp_path, fields):
    """Those of one model with a tokenizer of their own, and those of two objects that had one variable's name."""
    runs = [run("a", model=fields.get("model", "org/small")), run("b", **{"model": "org/small", **fields})]
    for each, vocabulary in zip(runs, ({"x": 1}, {"x": 2}), strict=True):
        each.folder = tmp_path / each.name
        (each.folder / "adapter").mkdir(parents=True)
        (each.folder / "adapter" / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))
    assert of_different_tokens(runs)
    (runs[0].folder / "adapter" / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"x": 2}}}))
    assert not of_different_tokens(runs)


def test_a_comparison_opens_with_all_and_follows_the_living():
    first, second = run("a", 20), run("b", 5)
    panel = compare([first, second])
    try:
        state = panel.get_state()
        assert [picture["rows"] for picture in state["pictures"]] == [20, 5]
        columns = np.frombuffer(state["columns"][0]).reshape(len(COLUMNS), 20)
        assert columns[COLUMNS.index("step")].tolist() == list(range(1, 21))
        second.say(made_up_step(6))
        wait_for(panel, "pictures", lambda pictures: pictures and pictures[1]["rows"] == 6)
    finally:
        panel.close()
    assert not first._listeners


@pytest.mark.parametrize("count", [0, 1, 13])
def test_too_few_or_too_many_runs_are_refused(count):
    with pytest.raises(NbtuneError):
        compare([run("a", 1)] * count)


def test_sizes_and_cards_of_a_one_billion_model():
    table = {choice["type"]: choice for choice in choices(1_240_000_000)}
    assert table["f16"]["bytes"] == pytest.approx(2.48e9, rel=0.01)
    assert table["q8_0"]["fits"] == 4
    assert choices(70_000_000_000)[0]["fits"] is None
    sizes = [choice["bytes"] for choice in table.values()]
    assert sizes == sorted(sizes, reverse=True)


def test_a_file_appears_and_a_second_click_meanwhile_is_refused():
    made = run("a")
    panel = exporter(made)
    try:
        going, go_on = threading.Event(), threading.Event()
        whole = made.export.gguf
        made.export.gguf = lambda *types, **options: (going.set(), go_on.wait(240), whole(*types))
        panel.do_gguf(["q8_0"])
        assert going.wait(240)
        with pytest.raises(NbtuneError, match="still being made"):
            panel.do_make("adapter")
        go_on.set()
        wait_for(panel, "working", lambda working: working == "")
        assert [file["path"] for file in panel.files] == ["exports/demo-q8_0.gguf"]
    finally:
        panel.close()


def test_a_failed_export_is_told_once():
    made = run("a")

    def fail(*types, **options):
        made.say(ev.Export(kind="gguf", done=0.0))
        error = ExportError("no room", place="exports", fix="free 3 GB")
        made.say(ev.Export(kind="gguf", detail=str(error)))
        raise error

    made.export.gguf = fail
    panel = exporter(made)
    try:
        panel.do_gguf(["f16"])
        wait_for(panel, "working", lambda working: working == "")
        assert len(panel.notes) == 1
        assert "no room" in panel.notes[0]["message"]
        assert panel.files == []
    finally:
        panel.close()


def test_a_failed_push_is_no_file():
    made = run("a")
    made.say(ev.Export(kind="push", path="me/x", done=0.0), ev.Export(kind="push", path="me/x", detail="401"))
    panel = exporter(made)
    assert panel.files == []
    assert panel.notes[0]["message"] == "push: 401"
    panel.close()


@pytest.mark.parametrize(
    "wish",
    [
        lambda p: p.do_gguf([]),
        lambda p: p.do_gguf(["zip"]),
        lambda p: p.do_make("cake"),
        lambda p: p.do_make("merged", "q8_0"),
        lambda p: p.do_push("me/a", "gguf"),
    ],
)
def test_nonsense_is_refused(wish):
    panel = exporter(run("a"))
    with pytest.raises(NbtuneError):
        wish(panel)
    panel.close()


def test_what_was_measured_of_a_file_is_shown_beside_its_type():
    made = run("a")
    quality = {"perplexity": 3.1, "reference": 3.0, "divergence": 0.01, "same_tokens": True, "odd": "<b>"}
    said = {"kind": "q4_k_m", "path": "exports/a-q4_k_m.gguf", "bytes": 4_600_000_000, "seconds": 17.0}
    made.say(ev.Export(**said), ev.Export(**said, quality=quality))
    panel = exporter(made)
    assert [file["kind"] for file in panel.files] == ["q4_k_m"]
    assert panel.files[0]["quality"] == {key: value for key, value in quality.items() if key != "odd"}
    assert (panel.files[0]["fits"], panel.files[0]["seconds"]) == (8, 17.0)
    panel.close()


def test_each_click_calls_what_its_line_of_code_says(tmp_path):
    made, calls = run("a"), []
    made.folder = tmp_path

    def note(name):
        return lambda *types, should_stop=None, **options: calls.append((name, types, options))

    for name in ("gguf", "adapter", "adapter_gguf", "merged", "ollama"):
        setattr(made.export, name, note(name))
    made.push_to_hub, made.model_card = note("push"), lambda repo, what: f"# {repo} {what}\x00"
    panel = exporter(made)
    try:
        for click in (
            lambda: panel.do_gguf(["q8_0", "q2_k"], importance=True, verify=False),
            lambda: panel.do_gguf(["q8_0"]),
            lambda: panel.do_make("adapter"),
            lambda: panel.do_make("adapter_gguf"),
            lambda: panel.do_make("merged", "float32"),
            lambda: panel.do_make("ollama", "q4_k_m"),
            lambda: panel.do_push("me/a", "gguf", types=["q6_k"], branch="v2", pull_request=True),
            lambda: panel.do_push("me/a", card="# mine"),
        ):
            click()
            wait_for(panel, "working", lambda working: working == "")
        assert calls == [
            ("gguf", ("q8_0", "q2_k"), {"importance": True, "verify": False}),
            ("gguf", ("q8_0",), {}),
            ("adapter", (), {}),
            ("adapter_gguf", (), {}),
            ("merged", (), {"dtype": "float32"}),
            ("ollama", (), {"type": "q4_k_m"}),
            (
                *("push", ("me/a",)),
                {"what": "gguf", "private": True, "types": ["q6_k"], "revision": "v2", "create_pr": True},
            ),
            ("push", ("me/a",), {"what": "adapter", "private": True, "card": tmp_path / "exports" / "card.md"}),
        ]
        assert (tmp_path / "exports" / "card.md").read_text() == "# mine"
        panel.do_card("me/a", "merged")
        wait_for(panel, "card", lambda card: card.get("text") == "# me/a merged")
    finally:
        panel.close()


def test_what_is_being_made_can_be_cancelled_and_that_is_no_error():
    made = run("a")
    asked = threading.Event()

    def gguf(*types, should_stop):
        made.say(ev.Export(kind="gguf q8_0", done=0.3))
        asked.set()
        while not should_stop():
            threading.Event().wait(0.01)
        made.say(ev.Export(kind="gguf q8_0", detail=CANCELLED))
        raise ExportCancelled(CANCELLED)

    made.export.gguf = gguf
    panel = exporter(made)
    try:
        panel.do_gguf(["q8_0"])
        assert asked.wait(240)
        panel.do_cancel()
        wait_for(panel, "working", lambda working: working == "")
        assert panel.cancelled
        assert (panel.files, panel.notes) == ([], [])
        made.export.gguf = lambda *types, should_stop: should_stop() and pytest.fail("still cancelled")
        panel.do_gguf(["q8_0"])
        wait_for(panel, "working", lambda working: working == "")
        assert not panel.cancelled
    finally:
        panel.close()


def test_a_file_says_where_it_lies_from_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = run("a")
    (tmp_path / made.folder / "exports" / "adapter").mkdir(parents=True)
    (tmp_path / made.folder / "exports" / "demo-q8_0.gguf").write_bytes(b"x")
    for path in ("exports/demo-q8_0.gguf", "exports/adapter", "exports/gone.gguf", "https://huggingface.co/me/a"):
        made.say(ev.Export(kind="x", path=path, bytes=1))
    panel = exporter(made)
    found = {file["path"]: (file["here"], file["folder"]) for file in panel.files}
    panel.close()
    assert found["exports/demo-q8_0.gguf"] == (f"{made.folder.as_posix()}/exports/demo-q8_0.gguf", False)
    assert found["exports/adapter"] == (f"{made.folder.as_posix()}/exports/adapter", True)
    assert found["exports/gone.gguf"] == found["https://huggingface.co/me/a"] == ("", False)
