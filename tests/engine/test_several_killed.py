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
        assert kill["said"] == [], kill
        assert kill["again"] == [0] * len(kill["again"]), kill
        assert kill["apart"] < 1e-4, kill
    assert len({kill["reached"] for kill in told}) > 3


PEER = """
import os, sys, torch, torch.distributed as dist
from nbtune.train.control import OtherIsGone
from nbtune.train.distributed import Ranks
ranks = Ranks.join(sys.argv[1])
ranks.wait()
if ranks.rank:
    os._exit(9)
try:
    with ranks.noticing():
        dist.all_reduce(torch.ones(3))  # as a library does in the middle of a model, which knows nothing of runs
except OtherIsGone:
    print("gone", flush=True)
try:
    with ranks.noticing():
        raise RuntimeError("of one's own")
except RuntimeError as error:
    print(error, flush=True)
os._exit(0)
"""


def test_what_fails_of_anothers_end_is_told_from_what_fails_by_itself(tmp_path) -> None:
    usual = {**os.environ, "WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", PEER, str(tmp_path)],
            env={**usual, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    words = [process.communicate(timeout=240)[0] for process in both]
    assert words[0].splitlines() == ["gone", "of one's own"]
