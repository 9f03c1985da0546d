"""One of several processes is killed (`kill -9`) at any moment; another number of them goes on, with its losses."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_killed_at_thirty_moments_it_goes_on_with_another_number(tmp_path) -> None:
    """LoRA beside whole weights, beside parted ones, and full training; 2, 3 and 4 processes."""
    command = [sys.executable, "-m", "tests.support.killed", str(tmp_path), "30"]
    done = subprocess.run(
        command, env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"}, stdout=subprocess.PIPE, text=True, timeout=7000
    )
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(told) == 30
    assert done.returncode == 0
    for kill in told:
        assert None not in kill["codes"], f"somebody waited for ever: {kill}"
        assert kill["again"] == [0] * len(kill["again"]), kill
        assert kill["apart"] < 1e-4, kill
    assert len({kill["reached"] for kill in told}) > 3
