"""How fast and how light the monitor is, in a real JupyterLab: `python tests/e2e/bench_monitor.py [--steps 100000]`.

With `--long` the run is over already and as long as `--steps` says (a million is 300 MB of events): seconds until it is
painted, from its columns and without them, the kernel's memory for it, frames a second while it is dragged.
With `--cost` a thread makes steps of 10 ms in the kernel, with and without 20 events a second and a monitor.

Prints one line of JSON: seconds from running the cell to the first painted chart, milliseconds from an event to its
pixels at 4 events a second, bytes that a second monitor and an update send. The steps come from a made-up run, written
to a real run folder and read by the real `Run`, so that the pump, the file and the comm are those of every day.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import itertools

from lab import REPO, Browser, Lab, Page

SETUP = """
import threading, time
from pathlib import Path
from memory_run import made_up_step
from nbtune import events as ev
from nbtune.spec import RunSpec
from nbtune.store import folder
from nbtune.store.event_log import EventWriter
from nbtune.store.lock import Ownership
from nbtune.store.run_reader import RunReader
from nbtune.widgets import monitor
made = folder.create(Path("runs"), "bench", RunSpec(data="rows"))
owner = Ownership(made).__enter__()
write = EventWriter(made / "events.jsonl")
write(ev.State(state="running", total_steps={total}))
run = RunReader(made)
def go(first, count, pause):
    def body():
        for step in range(first, first + count):
            write(made_up_step(step, {total}))
            time.sleep(pause)
    threading.Thread(target=body, daemon=True).start()
"""
PROBE = """() => {
    globalThis.seen = [];
    globalThis[Symbol.for("nbtune.probe")] = (what) => seen.push({ ...what, at: Date.now() / 1000 });
}"""


def quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def painted(page: Page, first: int, count: int) -> list[float]:
    """Milliseconds from each event to its pixels, for steps that come four times a second."""
    page.page.evaluate("() => { seen.length = 0; }")
    page.run_code(f"go({first}, {count}, 0.25)")
    page.page.wait_for_function("(wanted) => seen.at(-1)?.points >= wanted", arg=first + count - 1)
    newest: dict[int, dict[str, float]] = {}
    for what in page.page.evaluate("() => seen"):
        newest.setdefault(what["points"], what)
    return [1000 * (what["at"] - what["time"]) for points, what in sorted(newest.items()) if points >= first]


def measure(page: Page, steps: int) -> dict[str, float]:
    figures: dict[str, float] = {}
    page.page.evaluate(PROBE)
    page.run_code("from nbtune.widgets import monitor; import numpy")  # the imports are not the monitor's
    began = time.time()
    page.run_code("m = monitor(run); display(m)")
    page.run_code("write(made_up_step(1))")
    page.page.wait_for_function("() => seen.some((what) => what.plotly && what.points >= 1)")
    first = page.page.evaluate("() => seen.find((what) => what.plotly && what.points >= 1).at")
    figures["first_paint_s"] = first - began
    figures["first_bytes"] = page.bytes
    took = painted(page, 2, 60)
    figures["event_to_paint_p50_ms"], figures["event_to_paint_p95_ms"] = quantile(took, 0.5), quantile(took, 0.95)

    before = page.bytes
    page.run_code("display(monitor(run))")
    page.page.wait_for_function("() => document.querySelectorAll('.nbt-monitor[data-plotly=true]').length === 2")
    figures["second_monitor_bytes"] = page.bytes - before

    page.run_code(f"for step in range(62, {steps} + 1): write(made_up_step(step, {steps}))")
    page.page.wait_for_function("(wanted) => seen.at(-1)?.points >= wanted", arg=steps)
    page.page.wait_for_timeout(1000)
    before = page.bytes
    took = painted(page, steps + 1, 40)
    figures["long_event_to_paint_p95_ms"] = quantile(took, 0.95)
    figures["long_update_bytes"] = (page.bytes - before) / 40
    before = page.bytes
    page.run_code("display(monitor(run))")
    page.page.wait_for_function("() => document.querySelectorAll('.nbt-monitor[data-plotly=true]').length === 3")
    figures["long_second_monitor_bytes"] = page.bytes - before
    return figures


LONG = """
import os, psutil
from pathlib import Path
from nbtune.store.run_reader import RunReader
from nbtune.widgets import monitor
import numpy, nbtune.widgets.monitor_panel
run = RunReader(next(Path("runs").glob("bench-*")))
rss = lambda: psutil.Process().memory_info().rss / 2**20
before = rss()
"""
FRAMES = """() => {
    const seen = globalThis.frames = [];
    const count = (at) => { seen.push(at); globalThis.counting = requestAnimationFrame(count); };
    requestAnimationFrame(count);
}"""


def long_run(root: Path, steps: int) -> None:
    """The folder of a run that is over."""
    sys.path[:0] = [str(REPO), str(REPO / "kernels"), str(REPO / "tests" / "widgets")]
    from memory_run import made_up_step

    from nbtune import events as ev
    from nbtune.spec import RunSpec
    from nbtune.store import folder

    made = folder.create(root / "runs", "bench", RunSpec(data="rows"))
    with (made / "events.jsonl").open("w") as file:
        file.write(ev.to_line(ev.State(state="running", total_steps=steps)))
        file.writelines(ev.to_line(made_up_step(step, steps)) for step in range(1, steps + 1))
        file.write(ev.to_line(ev.State(state="finished", step=steps, total_steps=steps)))


def opened(page: Page, steps: int) -> tuple[float, float]:
    """(seconds until all steps are painted, MiB that the kernel has more) for a fresh kernel."""
    page.run(0)
    page.page.evaluate(PROBE)
    began = time.time()
    page.run(1)
    page.page.wait_for_function("(wanted) => seen.some((what) => what.plotly && what.points >= wanted)", arg=steps)
    at = page.page.evaluate("(wanted) => seen.find((what) => what.plotly && what.points >= wanted).at", steps)
    page.run(2)
    return at - began, float(page.output(2))


def dragged(page: Page) -> dict[str, float]:
    """Zooms in by a drag, then pans by another one."""
    plot = page.page.locator(".nbt-chart-loss .nsewdrag").bounding_box()
    middle, y = plot["x"] + plot["width"] / 2, plot["y"] + plot["height"] / 2
    mouse = page.page.mouse
    figures: dict[str, float] = {}
    for name, key in (("zoom", None), ("pan", "Shift")):
        if key:
            page.page.keyboard.down(key)
        mouse.move(middle - 60, y)
        mouse.down()
        page.page.evaluate(FRAMES)
        began, k = time.time(), 0
        while time.time() - began < 2:
            k += 1
            mouse.move(middle - 60 + (k % 120), y)
        frames = page.page.evaluate("() => { cancelAnimationFrame(counting); return frames; }")
        took = [b - a for a, b in itertools.pairwise(frames)]
        figures[f"{name}_frames_per_second"] = 1000 * len(took) / sum(took)
        figures[f"{name}_frame_p95_ms"] = quantile(took, 0.95)
        mouse.up()
        if key:
            page.page.keyboard.up(key)
    return figures


def measure_long(folder: Path, browser: Browser, lab: Lab, steps: int) -> dict[str, float]:
    long_run(lab.root, steps)
    cells = [LONG, "monitor(run)", "print(rss() - before)"]
    figures: dict[str, float] = {}
    for name in ("without_columns", "open"):
        page = browser.open(lab, cells)
        figures[f"{name}_s"], figures[f"{name}_mib"] = opened(page, steps)
        if name == "open":
            figures |= dragged(page)
            page.picture("bench-long")
        page.close()
        lab.stop_kernels()
    return figures


COST = """
import statistics, time, threading
import numpy as np
a = np.random.rand(120, 120)
began = time.perf_counter()
for _ in range(2000):
    a @ a
each = round(0.01 / ((time.perf_counter() - began) / 2000))  # products in 10 ms
def block(events):
    began = time.thread_time()
    for k in range(100):
        for _ in range(each):
            a @ a
        if events and k % 5 == 0:
            event, at = made_up_step(next(numbers), {total}), time.thread_time()
            write(event)
            wrote.append(time.thread_time() - at)
    return time.thread_time() - began
import itertools
numbers = itertools.count(2)
found, wrote = {{False: [], True: []}}, []
def work():
    for _ in range(15):
        for events in (False, True):
            found[events].append(block(events))
            time.sleep(0.3)
thread = threading.Thread(target=work)
"""


def measure_cost(page: Page) -> dict[str, float]:
    """What a step of a fixed number of products takes, with and without events and a monitor beside it."""
    page.run_code("m = monitor(run); display(m); write(made_up_step(1))")
    page.page.locator(".nbt-monitor[data-plotly=true]").wait_for()
    page.run_code(COST.format(total=3000))
    page.run_code("thread.start()")
    page.run_code("thread.join(); print(*(statistics.median(v) for v in (*found.values(), wrote)))")
    without, with_, event = map(float, page.page.locator(".jp-OutputArea-output").last.inner_text().split())
    figures = {"block_without_ms": 1000 * without, "block_with_ms": 1000 * with_, "event_us": 1e6 * event}
    return figures | {"block_percent": 100 * (with_ / without - 1), "events_percent": 100 * 20 * event}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--cost", action="store_true")
    asked = parser.parse_args()
    steps = asked.steps
    with tempfile.TemporaryDirectory() as folder, Lab(Path(folder)) as lab, Browser() as browser:
        if asked.long:
            figures = measure_long(Path(folder), browser, lab, steps)
        else:
            page = browser.open(lab, [SETUP.format(total=steps)])
            page.run(0)
            figures = measure_cost(page) if asked.cost else measure(page, steps)
    rounded = {name: round(value, 2 if name.endswith(("_s", "_percent")) else 0) for name, value in figures.items()}
    print(json.dumps(rounded | {"steps": steps, "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1)}))


if __name__ == "__main__":
    main()
