"""A walk in a real JupyterLab, with defaults only: from a new notebook to tuned answers beside the base's.

    python -m tests.tools.three_minutes --model FOLDER

Prints, for each station, seconds since the notebook was opened, and the CPU seconds that server and kernel, and the
page, have taken since. Chromium and playwright are needed, as for tests/e2e.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.tools.calibrate import split

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))
LONG = 3_600_000  # milliseconds that a station may take, on a machine that has other work
ROWS = 150


def cpu_seconds(root: int) -> float:
    """Return what a process, its descendants and those of them that have ended took of the processors."""
    parents, times = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        parents[int(folder.name)] = int(fields[1])
        times[int(folder.name)] = sum(map(int, fields[11:15]))
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return sum(times.get(pid, 0) for pid in found) / os.sysconf("SC_CLK_TCK")


def lab_of(folder: Path) -> Any:
    """Return a JupyterLab whose kernels have as many threads as this process was told, or as they have by default."""
    from lab import Lab

    class Quick(Lab):
        def _env(self) -> dict[str, str]:
            asked = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "")}
            return {name: value for name, value in (super()._env() | asked).items() if value}

    return Quick(folder)


def walk(browser: Any, lab: Any, model: str, station: Callable[[str], None]) -> tuple[str, list[str]]:
    """Load, train, wait for the card; return what it says, and the words of its answers."""
    page = browser.open(lab, ["%load_ext nbtune", f"%%finetune\ndata: rows.jsonl\nmodel: {model}"])
    station("the notebook is open, its kernel there")
    page.page.set_default_timeout(LONG)
    page.run(0)
    station("%load_ext nbtune")
    page.run(1)
    station("%%finetune has returned")
    page.page.locator(".nbt-monitor .nbt-state[data-state=running]").wait_for()
    station("the run works")
    page.page.locator(".nbt-monitor .nbt-state[data-state=finished]").wait_for()
    station("the run has finished")
    card = page.page.locator(".nbt-finish")
    card.locator(".nbt-twin").first.wait_for()
    station("a tuned answer beside the base's")
    page.page.locator(".nbt-finish[data-state=known]").wait_for()
    station("the card is complete")
    return card.locator("[role=status]").first.inner_text(), card.locator(".nbt-twin").all_inner_texts()


def main() -> None:
    from lab import Browser

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--task", default="json-answers")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, lab_of(Path(folder)) as lab, Browser() as browser:
        rows, _ = split(arguments.task, ROWS)
        (lab.root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        began, all_before, before = time.monotonic(), cpu_seconds(os.getpid()), cpu_seconds(lab.process.pid)

        def station(name: str) -> None:
            own, all_ = cpu_seconds(lab.process.pid) - before, cpu_seconds(os.getpid()) - all_before
            print(f"{time.monotonic() - began:7.1f} s  {own:7.1f} CPU-s  {all_ - own:6.1f} page's  {name}", flush=True)

        held, answers = walk(browser, lab, arguments.model, station)
        print(held, *answers, sep="\n\n")


if __name__ == "__main__":
    main()
