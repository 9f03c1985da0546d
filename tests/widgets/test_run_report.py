"""What stays in the notebook: a picture and a little HTML, the same bytes each time, every text as text."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from pathlib import Path

from memory_run import MemoryRun, made_up_step
from PIL import Image

from nbtune import events as ev
from nbtune.data.prepare.report import Report
from nbtune.spec import RunSpec
from nbtune.store import folder as run_folder
from nbtune.store.event_log import add_event
from nbtune.store.run_reader import RunReader
from nbtune.widgets import figure, report
from nbtune.widgets.run_report import facts_for_card

HOSTILE = "<img src=x onerror=alert(1)></script>‮ $\\frac{1}{0}$ \x1b[31m& \x00"


def finished(name="demo", extra=()):
    run = MemoryRun(name)
    run.say(ev.State(state="running", time=0.0), *[made_up_step(k) for k in range(1, 101)])
    run.say(ev.Eval(step=100, loss=0.4, best=True), *extra, ev.State(state="finished", time=75.0))
    return run


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.seen, self.attributes, self.text = set(), set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data):
        self.text.append(data)


def test_the_picture_is_a_png_with_the_curve_in_it():
    image = Image.open(io.BytesIO(report(finished()).png()))
    assert image.size == (720, 290)
    colours = {colour for _, colour in image.convert("RGB").getcolors(100_000)}
    assert (0, 114, 178) in colours  # the smoothed line
    assert (213, 94, 0) in colours  # the held-out points


def test_the_same_run_gives_the_same_bytes():
    run = finished(extra=[made_up_step(101)])
    assert report(run).png() == report(run).png()
    assert report(run).html() == report(run).html()


def test_the_report_says_what_happened():
    text = " ".join(Tags(report(finished()).html()).text)
    for part in ("Run demo: finished, step 100 of 200", "Held-out loss", "0.4 (best 0.4 at step 100)", "1 min 15 s"):
        assert part in text
    assert dict(report(finished()).facts())["Peak RAM"] == "1.30 GiB"  # it trained on a CPU


def test_a_finished_run_adds_less_than_300_kb():
    bundle = report(finished())._repr_mimebundle_()
    assert set(bundle) == {"text/html", "image/png", "text/plain"}
    assert sum(len(value) for value in bundle.values()) < 150_000


def test_hostile_text_stays_text():
    extra = [ev.Warning(message=HOSTILE, cause=HOSTILE, fix=HOSTILE), ev.Sample(step=0, prompt=HOSTILE, answer=HOSTILE)]
    tags = Tags(report(finished(HOSTILE, extra)).html())
    assert tags.seen == {"div", "p", "b", "img", "table", "tr", "th", "td", "ul", "li"}
    assert tags.attributes == {"class", "alt", "src", "style"}
    assert "<img src=x onerror=alert(1)></script>" in " ".join(tags.text)


def test_a_home_folder_is_not_told():
    path = str(Path.home() / "models" / "demo.gguf")
    html = report(finished(extra=[ev.Export(kind="gguf", path=path, bytes=10)])).html()
    assert str(Path.home()) not in html
    assert "~/models/demo.gguf" in html


def test_a_run_without_a_step_has_a_report_too():
    run = MemoryRun()
    run.say(ev.State(state="failed", detail="no rows"))
    assert Image.open(io.BytesIO(report(run).png())).size == (720, 290)
    assert "step 0 of 200" in report(run).html()


def test_nothing_is_loaded_from_anywhere():
    html = report(finished()).html()
    assert re.findall(r'src="(.{10})', html) == ["data:image"]
    assert "http" not in re.sub(r'src="[^"]*"', "", html)


def test_the_figure_has_each_curve():
    run = finished(extra=[ev.Eval(step=40, loss=0.3, best=True)])
    curves = {trace.name: trace for trace in figure(run).data}
    assert [*curves] == ["loss", "smoothed", "held-out", "learning rate"]
    said = [event for event in run.events() if isinstance(event, ev.Step)]
    for name, column in (("loss", "loss"), ("learning rate", "learning_rate")):
        drawn = dict(zip(map(int, curves[name].x), curves[name].y, strict=True))
        assert drawn == {step.step: getattr(step, column) for step in said}
    held = curves["held-out"]
    assert dict(zip(map(int, held.x), held.y, strict=True)) == {40: 0.3, 100: 0.4}
    assert {curves[name].yaxis for name in ("loss", "smoothed", "held-out")} == {"y"}  # the rate has a scale of its own
    assert curves["learning rate"].yaxis == "y2"


def test_a_card_tells_of_rows_that_were_left_out(tmp_path):
    found = Report(rows=2400, fates=[("rows", k, "dropped", "`completion` is missing") for k in range(1300)])
    folder = run_folder.create(tmp_path, "demo", RunSpec(data="rows", on_error="skip"))
    for message in (found.left_out(), "something else is left out", found.left_out()):
        add_event(folder, ev.Warning(message=message))
    lines = facts_for_card(RunReader(folder), draw=False)["data"]
    assert lines == ["rows (the author's own rows)", "1,300 of 2,400 rows are left out: `completion` is missing"]
