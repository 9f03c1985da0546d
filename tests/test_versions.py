"""The lowest versions that `pyproject.toml` allows of everything, and the newest: both train, chat and export.

An environment each, kept as `.venv-lowest` and `.venv-highest` (gigabytes, where only a CUDA build of torch is found;
`UV_TORCH_BACKEND=cpu` in the caller's environment takes a smaller one where that can be reached).
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from pathlib import Path

import pytest

from tests.support.every import every
from tests.test_install import _uv, floor
from tests.test_wheel import outside, run  # noqa: F401 — a fixture

REPO = Path(__file__).resolve().parents[1]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(sys.platform != "linux", reason="the program is the same everywhere, the versions are Linux's"),
]
STEPS = "extension cell chat merged adapter gguf dpo packed full nf4 dora panels all"


def environment(which: str, outside: dict[str, str]) -> Path:  # noqa: F811
    """The python of `.venv-lowest` or `.venv-highest`, made anew when pyproject.toml is another."""
    folder = REPO / f".venv-{which}"
    python, made = folder / "bin" / "python", folder / "made.txt"
    wanted = f"{sys.version}\n{hashlib.sha256((REPO / 'pyproject.toml').read_bytes()).hexdigest()}\n"
    if made.is_file() and made.read_text() == wanted:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    run([sys.executable, "-m", "venv", folder], outside, REPO)
    resolution = "lowest-direct" if which == "lowest" else "highest"
    command = [_uv(), "pip", "install", "--quiet", "--python", python, "--resolution", resolution]
    run([*command, "-r", REPO / "pyproject.toml"], outside, REPO)
    made.write_text(wanted)
    return python


@pytest.mark.parametrize("which", ["lowest", "highest"])
def test_a_newcomer_s_first_hour(which: str, outside: dict[str, str], tmp_path: Path) -> None:  # noqa: F811
    python = environment(which, outside)
    code = (
        "import torch, transformers, IPython; print(torch.__version__, transformers.__version__, IPython.__version__)"
    )
    found = [version.split("+")[0] for version in run([python, "-c", code], outside, tmp_path).split()]
    if which == "lowest":
        wanted = [floor("torch"), floor("transformers"), floor("ipython")]
        assert every(there.startswith(lowest) for there, lowest in zip(found, wanted, strict=True)), found
    environ = {**outside, "PYTHONPATH": f"{REPO}:{REPO / 'kernels'}", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = run([python, REPO / "tests/support/with_other_versions.py"], environ, tmp_path)
    assert [line for line in done.splitlines() if line in STEPS.split()] == STEPS.split()
