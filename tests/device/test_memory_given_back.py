"""What a process has freed goes back to the system when it is asked for."""

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library keeps it, or nothing")


BETWEEN = """
import psutil, torch
from nbtune import device
whole, both = psutil.Process(), []
for _ in range(2_000):
    both.append((torch.ones(2**14), torch.ones(2**8)))  # 64 KiB: too small for a mapping of its own
small = [one for _, one in both]
del both
before = whole.memory_info().rss
device.empty_cache(torch.device("cpu"))
print((before - whole.memory_info().rss) / 2**20)
assert all(float(one.sum()) == 2**8 for one in small)
"""


def given_back(script: str) -> float:
    """Return the MiB that `script` says it gave back, in a process whose heap nothing has used before."""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


def test_what_lies_between_small_tensors_is_given_back() -> None:
    assert given_back(BETWEEN) > 80


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
    assert given_back(LARGE) > 100
