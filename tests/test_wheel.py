"""The wheel that people install: what is in it, and that it trains where nothing else of the repository is."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import nbtune

REPO = Path(__file__).resolve().parents[1]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def run(command: list[str | Path], environ: dict[str, str], cwd: Path) -> str:
    done = subprocess.run([str(word) for word in command], env=environ, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def outside(outside_environ: dict[str, str]) -> dict[str, str]:
    """Without a way to the repository; with the caller's home, where pip's and npm's settings lie."""
    return {**outside_environ, "PYTHONPATH": ""}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, outside: dict[str, str]) -> Path:
    """The files that git knows, so that nothing that was built here before gets in."""
    source = tmp_path_factory.mktemp("source")
    listed = run(["git", "ls-files", "-z", "--cached"], outside, REPO)
    for name in filter(None, listed.split("\0")):
        if (REPO / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPO / name, source / name)
    return source


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory, outside: dict[str, str]) -> Path:
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--skip-dependency-check", "--outdir", out]
    run([*command, source], outside, source)
    (made,) = out.glob("*.whl")
    return made


def test_an_sdist_makes_the_same_wheel_where_there_is_no_node(
    wheel: Path, source: Path, outside: dict[str, str], tmp_path: Path
) -> None:
    """With node from the index, as a build requirement, as `pip install` of an sdist has it."""
    out = tmp_path / "dist"
    build = [sys.executable, "-m", "build", "--no-isolation", "--skip-dependency-check", "--outdir", out]
    run([*build, "--sdist", source], outside, tmp_path)
    (sdist,) = out.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        assert not [name for name in archive.getnames() if "/static/" in name or "node_modules" in name]
    bare = os.pathsep.join(
        folder for folder in outside["PATH"].split(os.pathsep) if not shutil.which("node", path=folder)
    )
    tools = tmp_path / "bin"  # what else lies beside node
    tools.mkdir()
    for name in ("sh", "env", "uname"):
        (tools / name).symlink_to(str(shutil.which(name, path=outside["PATH"])))
    without = {**outside, "PATH": os.pathsep.join([bare, str(tools)])}
    assert shutil.which("node", path=without["PATH"]) is None
    run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", out, sdist], without, tmp_path)
    (made,) = out.glob("*.whl")
    with zipfile.ZipFile(made) as one, zipfile.ZipFile(wheel) as other:
        assert set(one.namelist()) == set(other.namelist())


def test_what_is_in_it(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        weights = sum(info.file_size for info in archive.infolist() if "/models/embedded/" in info.filename)
        packages = archive.read(next(name for name in names if name.endswith("METADATA"))).decode()
    assert {name.split("/")[0] for name in names} == {
        "nbtune",
        "nbtune_kernels",
        f"nbtune-{nbtune.__version__}.dist-info",
    }
    assert "nbtune/models/embedded/weights/model.safetensors" in names
    assert "nbtune/data/sources/builtin/json-answers.jsonl" in names
    assert {"nbtune/widgets/static/monitor.js", "nbtune/widgets/static/plotly.mjs.gz"} <= names
    assert "nbtune_kernels/__init__.py" in names
    assert {"nbtune/py.typed", "nbtune/__init__.pyi", "nbtune_kernels/py.typed"} <= names
    assert not any(name.endswith((".pyc", ".ipynb")) or "node_modules" in name or "/tests/" in name for name in names)
    assert weights <= 8 * 2**20
    assert wheel.stat().st_size <= 12 * 2**20
    assert "License-Expression: Apache-2.0" in packages
    assert "Requires-Dist: torch" in packages
    assert "Description-Content-Type: text/markdown" in packages
    links = re.findall(r"""(?:\]\(|\b(?:src|srcset|href)=")([^)"\s]+)""", packages)
    assert len(links) > 50
    assert not [link for link in links if not link.startswith(("https://", "#"))]  # nothing lies beside it on PyPI


def test_it_trains_in_an_empty_environment(wheel: Path, tmp_path: Path, outside: dict[str, str]) -> None:
    """A new virtual environment with the wheel alone; what it requires is borrowed, not downloaded again."""
    venv = tmp_path / "venv"
    run([sys.executable, "-m", "venv", venv], outside, tmp_path)
    python = venv / "bin" / "python"
    run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel], outside, tmp_path)
    (site,) = venv.glob("lib/python*/site-packages")
    borrowed = next(path for path in map(Path, sys.path) if (path / "torch").is_dir())
    (site / "borrowed.pth").write_text(f"{borrowed}\n")  # only a path: the editable nbtune in there isn't seen

    environ = {**outside, "HOME": str(tmp_path), "NBTUNE_RUNS": str(tmp_path / "runs")}
    where = run([python, "-c", "import nbtune, nbtune_kernels; print(nbtune.__file__)"], environ, tmp_path)
    assert Path(where.strip()).is_relative_to(venv)
    (tmp_path / "spec.yaml").write_text("data: nbtune/json-answers\nsteps: 3\n")
    run([venv / "bin" / "nbtune", "train", "spec.yaml", "--name", "first"], environ, tmp_path)
    (adapter,) = (tmp_path / "runs").glob("first-*/adapter/adapter_model.safetensors")
    assert adapter.stat().st_size > 0
