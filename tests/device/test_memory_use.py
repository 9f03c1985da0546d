"""What a process is said to hold of its RAM."""

import subprocess
import sys

HELD = """
import subprocess, sys
here = bytearray(600 * 2**20)
here[::4096] = bytes(len(here[::4096]))
child = "import torch; from nbtune.device import memory_use; print(memory_use(torch.device('cpu')).peak)"
print(subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=True).stdout)
"""


def test_a_peak_is_a_processes_own_and_not_of_whoever_started_it() -> None:
    """Linux hands its parent's on: a run of its own process began with what the notebook's kernel held."""
    done = subprocess.run([sys.executable, "-c", HELD], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 2**20 < int(done.stdout) < 550 * 2**20
