"""Every test runs as on a stranger's machine: own home, own caches, own runs, no Hub, any working directory.

The environment is set when this file is read, before a library is imported: huggingface_hub, transformers and torch
look at it once, at import. A test that needs the caller's own environment (pip, npm: their settings lie at home) asks
for `outside_environ`.

``NBTUNE_TEST_BLOCK=triton,bitsandbytes,fcntl`` is a machine without these packages, as macOS and Windows are;
``NBTUNE_TEST_OFFLINE=/tmp/asked`` one without a network, which writes down who asks for it.
"""

from __future__ import annotations

import os
import runpy
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

REPO = Path(__file__).resolve().parents[1]

_LACKING = REPO / "tests" / "support" / "platform"
_BLOCKED = os.environ.get("NBTUNE_TEST_BLOCK", "").split(",")
runpy.run_path(str(_LACKING / "sitecustomize.py"))

_OUTSIDE = dict(os.environ)
_HOME = Path(tempfile.mkdtemp(prefix="nbtune-tests-"))
_LEAKY = ("NBTUNE_", "HF_", "HUGGING", "TRANSFORMERS_", "JUPYTER", "IPYTHON", "WANDB_", "MLFLOW_")

for _name in [name for name in os.environ if name.startswith(_LEAKY) and not name.startswith("NBTUNE_TEST_")]:
    del os.environ[_name]

os.environ.update(
    HOME=str(_HOME),
    XDG_CACHE_HOME=str(_HOME / "cache"),
    XDG_CONFIG_HOME=str(_HOME / "config"),
    XDG_DATA_HOME=str(_HOME / "data"),
    IPYTHONDIR=str(_HOME / "ipython"),
    JUPYTER_CONFIG_DIR=str(_HOME / "jupyter"),
    JUPYTER_DATA_DIR=str(_HOME / "jupyter" / "data"),
    JUPYTER_PLATFORM_DIRS="1",
    MPLCONFIGDIR=str(_HOME / "matplotlib"),
    MPLBACKEND="Agg",
    HF_HOME=str(_HOME / "huggingface"),
    # Nothing is asked from the Hub; a test with a Hub of its own says so in the environment of its own process.
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_XET="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    TRL_EXPERIMENTAL_SILENCE="1",
    TOKENIZERS_PARALLELISM="false",
    # Two threads on a busy machine made a step 50 times slower; one is also what makes sums repeatable.
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    OPENBLAS_NUM_THREADS="1",
    # A child process finds the packages wherever it starts.
    PYTHONPATH=os.pathsep.join(
        filter(None, [str(REPO), str(REPO / "kernels"), str(_LACKING), os.environ.get("PYTHONPATH")])
    ),
)


# No test passes or fails by the clock; in CI the same examples are tried each time.
settings.register_profile(
    "nbtune", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize="CI" in os.environ
)
settings.load_profile("nbtune")


def pytest_configure(config: pytest.Config) -> None:
    """What others say of a machine that lacks something."""
    if "fcntl" in _BLOCKED:
        config.addinivalue_line("filterwarnings", "ignore:only soft file lock is available:UserWarning")  # filelock


def pytest_unconfigure(config: pytest.Config) -> None:
    """Takes the home of the tests away."""
    shutil.rmtree(_HOME, ignore_errors=True)


@pytest.fixture(autouse=True)
def _apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of its own for each test's runs, and a working directory that is not the repository's."""
    monkeypatch.setenv("NBTUNE_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def repo() -> Path:
    """The repository's root."""
    return REPO


@pytest.fixture(scope="session")
def outside_environ() -> dict[str, str]:
    """The environment that pytest was started in, with the caller's own home."""
    return dict(_OUTSIDE)
