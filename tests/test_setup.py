"""`make setup` on a machine without a GPU takes a CPU build of torch, and never the one that brings CUDA."""

from __future__ import annotations

import importlib.util
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

REPO = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def setup() -> ModuleType:
    spec = importlib.util.spec_from_file_location("nbtune_setup", REPO / ".ci" / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip looks into, and nothing else."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    return wheels


def put_wheel(folder: Path, version: str, *needs: str) -> Path:
    """A wheel of "torch" with nothing in it but its name, version and requirements."""
    path = folder / f"torch-{version}-py3-none-any.whl"
    info = f"torch-{version}.dist-info"
    required = "".join(f"Requires-Dist: {need}\n" for need in needs)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n{required}")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


def test_a_cpu_build_in_a_local_folder_is_found(setup: ModuleType, folder: Path) -> None:
    path = put_wheel(folder, "2.13.0+cpu", "numpy", "sympy>=1.13")
    address = setup.local_cpu_build()
    assert address.startswith("file:")
    assert address.endswith(path.name.replace("+", "%2B"))


def test_a_build_that_asks_for_cuda_is_left_where_it_is(setup: ModuleType, folder: Path) -> None:
    put_wheel(folder, "2.14.0", "numpy", "nvidia-cublas-cu13==13.1; platform_system == 'Linux'")
    assert setup.local_cpu_build() is None


def test_a_torch_that_is_too_old_is_not_taken(setup: ModuleType, folder: Path) -> None:
    put_wheel(folder, "2.0.0+cpu")
    assert setup.local_cpu_build() is None


def test_without_local_folders_there_is_none(setup: ModuleType, folder: Path) -> None:
    assert setup.local_cpu_build() is None


@pytest.mark.parametrize(("says", "has"), [("GPU 0: NVIDIA T4 (UUID: GPU-1)", True), ("No devices were found", False)])
def test_a_card_is_one_that_its_driver_lists(
    setup: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str, has: bool
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!{sys.executable}\nprint({says!r})\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert setup.has_gpu() is has


def test_without_a_driver_there_is_no_card(setup: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert setup.has_gpu() is False
