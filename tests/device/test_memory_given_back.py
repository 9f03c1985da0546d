"""What a process has freed goes back to the system when it is asked for."""

import platform
import subprocess
import sys

import psutil
import pytest
import torch

from nbtune import device

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library keeps it, or nothing")


def test_what_lies_between_small_tensors_is_given_back() -> None:
    whole, held = psutil.Process(), []
    for _ in range(2_000):
        large = torch.ones(2**14)  # 64 KiB: too small for a mapping of its own
        held.append((large, torch.ones(2**8)))
    held = [small for _, small in held]
    del large
    before = whole.memory_info().rss
    device.empty_cache(torch.device("cpu"))
    assert before - whole.memory_info().rss > 80 * 2**20
    assert all(float(small.sum()) == 2**8 for small in held)


LARGE = """
import psutil, torch
from nbtune.device import memory
held = lambda: psutil.Process().memory_info().rss / 2**20
torch.ones(2**20)  # after the first such tensor glibc keeps others of its size
with memory.kept_within(torch.device("cpu"), 2**30):
    both = [(torch.ones(2**19), torch.ones(2**14)) for _ in range(60)]
    small, full = [one for _, one in both], held()
    del both
    print(full - held())
"""


def test_under_a_small_limit_large_tensors_are_gone_at_once() -> None:
    done = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, text=True, check=True)
    assert float(done.stdout) > 100, done.stdout
