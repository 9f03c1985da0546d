"""A copy of the tree on which a recipe of CONTRIBUTING is carried out, and what a new process with that copy says."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
PACKAGES = ("nbtune", "kernels/nbtune_kernels")


def copy_tree(root: Path) -> Path:
    """Copy both packages into `root`, as they are here (the panels that were built, too)."""
    for package in PACKAGES:
        shutil.copytree(REPO / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    return root


def insert(file: Path, before: str, text: str) -> None:
    """Write `text` into a file, before a line that begins with `before` (the only one)."""
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    (at,) = [k for k, line in enumerate(lines) if line.strip().startswith(before)]
    file.write_text("".join([*lines[:at], text, *lines[at:]]), encoding="utf-8")


def changed(tree: Path) -> list[str]:
    """What differs in the copy from the tree, what is built apart: files that were written by the recipe."""
    found = []
    for package in PACKAGES:
        for path in sorted((tree / package).rglob("*")):
            ours = REPO / path.relative_to(tree)
            if path.is_dir() or {"__pycache__", "static"} & {*path.parts}:
                continue
            if not ours.is_file() or ours.read_bytes() != path.read_bytes():
                found.append(path.relative_to(tree).as_posix())
    return found


def python(tree: Path, *arguments: str, **environment: str) -> str:
    """What a new process with the copy prints; this repository's tests are there as well."""
    paths = os.pathsep.join([str(tree), str(tree / "kernels"), str(REPO)])
    own = {
        "PYTHONPATH": paths,
        "NBTUNE_CACHE": str(tree / "cache"),
        "COLUMNS": "120",
        "IPYTHONDIR": str(tree / "ipython"),
    }
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=tree,
        env={**os.environ, **own, **environment},
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
