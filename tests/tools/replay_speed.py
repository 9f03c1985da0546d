"""How long a run's page takes to open from a file: a fresh Chromium without a network, several times.

    python -m tests.tools.replay_speed [docs/pictures/run8b.html] [--times 9]

Each row: milliseconds from navigation to the first words, to the loss's chart, to the last part of the last chart; how
long the page's own thread was on a processor, and how long the whole browser was, which other work on the machine
lengthens less; and the machine's load. Ends with an error where the page says something on the console or asks for
something, or where the middle of all is over 2 s on a machine that has nothing else to do (load below 2).
On one that has, `chrt -f 10` before it (as root, for some seconds) lets the browser go first.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from pathlib import Path
from typing import Any

import psutil

REPO = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPO / "tests" / "e2e")]
MOST = 2000  # milliseconds
QUIET = 1500  # milliseconds without a change, after which nothing more is awaited
CHART = '.nbt-monitor[data-plotly="true"] .nbt-chart-loss .main-svg'

_WATCH = """
globalThis.seen = { last: 0 };
new MutationObserver((changes) => {
    if (!changes.some(({ target }) => target.closest?.(".nbt-chart"))) return;
    seen.last = performance.now();
    if (!seen.chart && document.querySelector('CHART')) seen.chart = seen.last;
}).observe(document, { subtree: true, childList: true });
""".replace("CHART", CHART)
_TOLD = """() => ({ ...seen, now: performance.now(),
    words: performance.getEntriesByName("first-contentful-paint")[0]?.startTime ?? 0 })"""


def main() -> None:
    """Open the page several times and print what each took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path, nargs="?", default=REPO / "docs" / "pictures" / "run8b.html")
    parser.add_argument("--times", type=int, default=9)
    arguments = parser.parse_args()
    rows = [opened(arguments.page.resolve()) for _ in range(arguments.times)]
    middle = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    print("middle:", _words(middle))
    if middle["last"] > MOST and middle["load"] < 2:
        sys.exit(f"more than {MOST} ms")


def opened(path: Path) -> dict[str, float]:
    """Open a page in a browser of its own; return what it took.

    Raises:
        SystemExit: it complained, or asked for something beyond its file.
    """
    from lab import Browser

    said: list[str] = []
    with Browser() as browser:
        context = browser.chromium.new_context(offline=True, viewport={"width": 1100, "height": 800})
        page = context.new_page()
        page.add_init_script(_WATCH)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        devtools = context.new_cdp_session(page)
        devtools.send("Performance.enable", {"timeDomain": "threadTicks"})
        before = _processor_seconds()
        page.goto(path.as_uri())
        page.locator(CHART).first.wait_for()
        while (told := page.evaluate(_TOLD))["now"] - told["last"] < QUIET:
            page.wait_for_timeout(100)
        row = {name: told[name] for name in ("words", "chart", "last")}
        metrics = {each["name"]: each["value"] for each in devtools.send("Performance.getMetrics")["metrics"]}
        row |= {"thread": metrics["TaskDuration"] * 1000, "browser": (_processor_seconds() - before) * 1000}
        row |= {"load": os.getloadavg()[0]}
    print(_words(row), flush=True)
    said += [url for url in asked if not url.startswith(("file:", "blob:", "data:"))]
    if said:
        sys.exit("\n".join(said))
    return row


def _processor_seconds() -> float:
    """Return the processor time of all processes that this one has started, as long as they are there."""
    used: Any = [child.cpu_times() for child in psutil.Process().children(recursive=True) if child.is_running()]
    return float(sum(each.user + each.system for each in used))


def _words(row: dict[str, float]) -> str:
    load = row["load"]
    return ", ".join(f"{name} {row[name]:.0f} ms" for name in row if name != "load") + f", load {load:.1f}"


if __name__ == "__main__":
    main()
