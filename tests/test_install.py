"""Installing nbtune replaces no torch and no numpy, and finds wheels on every platform. Asks the package index."""

from __future__ import annotations

import importlib.metadata as metadata
import json
import shutil
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.test_wheel import outside, run, source, wheel  # noqa: F401 — fixtures

REPO = Path(__file__).resolve().parents[1]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def floor(package: str) -> str:
    """The lowest version that pyproject.toml allows."""
    requirements = [Requirement(line) for line in metadata.requires("nbtune") or []]
    found = next(requirement for requirement in requirements if requirement.name == package)
    return str(next(spec.version for spec in found.specifier if spec.operator == ">="))


def put(site: Path, name: str, version: str) -> None:
    """A package of that name and version as pip sees it: it reads what is installed, and imports nothing."""
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"  # as wheels are named: pip reads the name up to "-"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "RECORD").write_text("")
    (info / "INSTALLER").write_text("pip\n")


@pytest.mark.parametrize("which", ["lowest", "newest"])
def test_an_installed_torch_stays(which: str, wheel: Path, outside: dict[str, str], tmp_path: Path) -> None:  # noqa: F811
    run([sys.executable, "-m", "venv", tmp_path / "venv"], outside, tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    # pandas too: datasets asks for it, and a pandas that is fetched brings the numpy of its own time
    there = {
        name: floor(name) if which == "lowest" else metadata.version(name) for name in ("torch", "numpy", "pandas")
    }
    for name, version in there.items():
        put(site, name, version)
    report = tmp_path / "report.json"
    command = [python, "-m", "pip", "install", "--quiet", "--dry-run", "--report", report, wheel]
    run(command, outside, tmp_path)
    wanted = {entry["metadata"]["name"].lower() for entry in json.loads(report.read_text())["install"]}
    assert {"nbtune", "transformers", "peft"} <= wanted
    assert not [name for name in wanted if name in there or name.startswith(("nvidia", "cuda", "triton"))]


def test_what_is_installed_here_is_enough(wheel: Path, outside: dict[str, str], tmp_path: Path) -> None:  # noqa: F811
    """Into the environment of this very test, whose torch is no stand-in."""
    report = tmp_path / "report.json"
    command = ["install", "--quiet", "--dry-run", "--report", report, wheel]
    run([sys.executable, "-m", "pip", "--python", sys.executable, *command], outside, tmp_path)
    wanted = {entry["metadata"]["name"].lower() for entry in json.loads(report.read_text())["install"]}
    assert wanted == {"nbtune"}


PLATFORMS = ["x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu", "aarch64-apple-darwin", "x86_64-pc-windows-msvc"]
CLASSIFIERS = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]["classifiers"]
PYTHONS = [each.rpartition(" ")[2] for each in CLASSIFIERS if "Python :: 3." in each]


def test_the_pythons_that_are_promised() -> None:
    assert PYTHONS == ["3.11", "3.12", "3.13", "3.14"]


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("python", PYTHONS)
def test_every_platform_has_its_wheels(platform: str, python: str, outside: dict[str, str], tmp_path: Path) -> None:  # noqa: F811
    options = ["--python-platform", platform, "--python-version", python, "--only-binary", ":all:"]
    command = [_uv(), "pip", "compile", "--quiet", *options, REPO / "pyproject.toml", "-o", tmp_path / "all.txt"]
    run(command, outside, tmp_path)
    names = {line.split("==")[0] for line in (tmp_path / "all.txt").read_text().splitlines() if "==" in line}
    assert {"torch", "transformers", "peft"} <= names
    assert "linux" in platform or "triton" not in names  # on Linux torch brings its own
    assert ("bitsandbytes" in names) == platform.startswith("x86_64")


def _uv() -> str:
    found = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    if found is None:
        pytest.skip("uv is not there")
    return found


def test_the_lowest_versions_of_everything_fit_together(outside: dict[str, str], tmp_path: Path) -> None:  # noqa: F811
    command = [_uv(), "pip", "compile", "--quiet", "--resolution", "lowest-direct", "--python-version", "3.11"]
    run([*command, REPO / "pyproject.toml", "-o", tmp_path / "all.txt"], outside, tmp_path)
    pins = dict(line.split("==") for line in (tmp_path / "all.txt").read_text().split() if "==" in line)
    assert {name: pins[name] for name in ("torch", "transformers")} == {
        "torch": f"{floor('torch')}.0",
        "transformers": f"{floor('transformers')}.0",
    }
