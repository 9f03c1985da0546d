"""The cells of docs/methods/grpo.md, through `%%finetune`: the mean reward of exact reversals rises far enough."""

from __future__ import annotations

from pathlib import Path

import pytest

import nbtune
from nbtune.events import Step
from tests.support.method_pages import blocks_of, page_of
from tests.support.shell import shell_in

pytestmark = pytest.mark.filterwarnings("ignore")  # of TRL and what it imports


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", [1, 3, 4])
def test_reversals_are_learnt_from_rewards(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some 270 to 680 s of CPU each: docs/methods/grpo.md has what they came to."""
    rows, *cells = blocks_of(page_of("grpo").read_text(encoding="utf-8"))
    with shell_in(tmp_path, monkeypatch, colors="nocolor") as shell:
        shell.user_ns["nbtune"] = nbtune
        for code in (rows, *(f"{cell}seed: {seed}\n" for cell in cells)):
            done = shell.run_cell(code)
            assert done.success, done.error_in_exec or done.error_before_exec
            for run in nbtune.runs():
                run.wait()
        run = nbtune.attach("my-grpo")
    rewards = [event.metrics["reward:reversed_right"] for event in run.events() if isinstance(event, Step)]
    assert run.state == "finished"
    assert sum(rewards[:5]) / 5 < 0.3  # 0.19, 0.27, 0.17; seed 2 happens to begin at 0.36
    assert sum(rewards[-10:]) / 10 > 0.8
