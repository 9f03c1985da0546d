"""How fast and how light the monitor is, in a real JupyterLab: `python tests/e2e/bench_monitor.py [--steps 100000]`.

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

from lab import Browser, Lab, Page

SETUP = """
import threading, time
from pathlib import Path
from memory_run import made_up_step
from nbtune import events as ev
from nbtune.spec import RunSpec
from nbtune.store import folder
from nbtune.store.log import EventWriter
from nbtune.store.owner import Ownership
from nbtune.store.run import Run
from nbtune.widgets import monitor
made = folder.create(Path("runs"), "bench", RunSpec(data="rows"))
owner = Ownership(made).__enter__()
write = EventWriter(made / "events.jsonl")
write(ev.State(state="running", total_steps={total}))
run = Run(made)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100_000)
    steps = parser.parse_args().steps
    with tempfile.TemporaryDirectory() as folder, Lab(Path(folder)) as lab, Browser() as browser:
        page = browser.open(lab, [SETUP.format(total=steps)])
        page.run(0)
        figures = measure(page, steps)
    rounded = {name: round(value, 2 if name.endswith("_s") else 0) for name, value in figures.items()}
    print(json.dumps(rounded | {"steps": steps, "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1)}))


if __name__ == "__main__":
    main()
