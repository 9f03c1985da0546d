"""Kernels that are compiled in another process are found by a launch: the same key in Triton's cache, nothing run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

CARD = """
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
class Card:  # a card that is not there, of which compiling asks its kind alone
    def get_current_target(self): return GPUTarget("cuda", 90, 32)
    def get_current_device(self): return 0
    def get_current_stream(self, device): return 0
driver.set_active(Card())
import importlib
kernel = importlib.import_module("nbtune_kernels.dropout")._kernel
x, seed = torch.zeros(4096, dtype=torch.bfloat16), torch.zeros(1, dtype=torch.int64)
def arguments(n=4096, threshold=6553): return (x, seed, x, n, threshold, 1.1, 0)
options = {"ADD": False, "BLOCK": 256, "enable_fp_fusion": True, "num_warps": 4}
"""
AHEAD = """
from nbtune_kernels.ahead import finish
for n in (4096, 8192, 4096): kernel[(2,)](*arguments(n), **options)
kernel[(2,)](*arguments(4097), **options)
kernel[(2,)](*arguments(), **{**options, "num_warps": 8})
print(*finish())
"""
WANTED = """
for n in (4096, 8192, 4097): kernel.warmup(*arguments(n), grid=(2,), **options)
kernel.warmup(*arguments(), grid=(2,), **{**options, "num_warps": 8})
print(type(kernel).__name__)
"""


def test_what_is_compiled_ahead_is_what_a_launch_looks_for(tmp_path: Path) -> None:
    def run(code: str, ahead: str) -> str:
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        environment |= {"TRITON_CACHE_DIR": str(tmp_path), "NBTUNE_COMPILE_AHEAD": ahead}
        environment |= {"CUDA_VISIBLE_DEVICES": ""}  # the played card is the only one
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", CARD + code],
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.split("\n")[0]

    assert run(AHEAD, "1") == "3 []"  # two numbers of tokens that divide by 16 are one kernel
    compiled = {path.name for path in tmp_path.iterdir()}
    assert run(WANTED, "0") == "JITFunction"
    assert {path.name for path in tmp_path.iterdir()} == compiled
