"""What a process has freed goes back to the system when it is asked for."""

import platform

import psutil
import pytest
import torch

from nbtune import device


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library keeps nothing, or cannot be asked")
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
