"""Two kernels look at one run: both see all of it, either stops it, one engine writes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import nbtune
from nbtune.events import State
from tests.notebook.kernel import Kernel
from tests.notebook.test_waiting import BODY, SETUP, WIDGET

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def kernels(tmp_path: Path) -> Iterator[tuple[Kernel, Kernel]]:
    with Kernel(tmp_path) as one, Kernel(tmp_path) as two:
        assert one.run(SETUP).status == two.run("%load_ext nbtune").status == "ok"
        yield one, two


def _stopped_within(run: nbtune.Run, since: float) -> float:
    """Seconds from a wish to the run's last word."""
    assert run.wait().state == "stopped"
    return next(event.time for event in reversed(run.events()) if isinstance(event, State)) - since


def _complete(kernel: Kernel, run: nbtune.Run) -> None:
    """Its handle, and the chart made from it, have every step."""
    said = kernel.run("print(run.wait().state, len(run.figure().data[0].x), [int(n) for n in run.history.index])")
    assert f"stopped {len(run.history)} {[int(n) for n in run.history.index]}\n" in said.text


def test_two_kernels_are_attached_and_either_stops_it(kernels: tuple[Kernel, Kernel], tmp_path: Path) -> None:
    one, two = kernels
    started = one.run(f"%%finetune --name both\n{BODY}steps: 1000000\n")
    assert started.status == "ok", started.text
    run = nbtune.attach("both", runs_dir=tmp_path / "runs")
    attached = two.run("%nbtune attach both")
    assert attached.status == "ok", attached.text
    panels = [reply.outputs(WIDGET)[0]["data"][WIDGET]["model_id"] for reply in (started, attached)]
    for turn, (kernel, panel) in enumerate(((two, panels[1]), (one, panels[0]))):
        seen = run.step
        while run.step < seen + 20:
            time.sleep(0.05)
        refused = two.run("run.resume()")
        assert "is at work" in refused.text
        clicked = time.time()
        kernel.click(panel, "stop")
        assert _stopped_within(run, clicked) <= 2.0
        for each in kernels:
            _complete(each, run)
        if turn == 0:
            resumed = one.run("run = run.resume()")
            assert resumed.status == "ok", resumed.text
    steps = [event.step for event in run.events() if event.type == "step"]
    assert steps == list(range(1, len(steps) + 1)), "one engine wrote, and nothing twice"
