"""This folder again, with the Triton kernels run by Triton's interpreter on the CPU."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("few", ["3", pytest.param("0", marks=pytest.mark.slow)], ids=["a sample", "all"])
def test_kernels_under_the_interpreter(few: str, repo: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "pytest", str(repo / "tests/kernels"), "-x", "-p", "no:cacheprovider"],
        env={**os.environ, "TRITON_INTERPRET": "1", "NBTUNE_TEST_FEW": few},
        cwd=repo,
        capture_output=True,
        text=True,
        timeout=560,
    )
    assert run.returncode == 0, run.stdout[-6000:]
    assert " passed" in run.stdout
