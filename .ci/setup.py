"""`make setup`: the virtual environment `.venv` with nbtune in it, editable, and what its developers need.

Runs on the machine's own Python (3.11 or later) and needs nothing installed. It uses uv where there is one, else
venv and pip.

torch comes first, since on Linux the plain wheel brings gigabytes of CUDA that a machine without a GPU can't use:

1. a torch that is in `.venv` already stays;
2. with a GPU, or on a system whose plain wheel has no CUDA, the plain wheel;
3. without one, a CPU build: one that pip's local folders offer (`--find-links`), else the one that uv knows of.

    python3 .ci/setup.py            # all of it
    python3 .ci/setup.py browser    # only looks for a browser for the tests, and installs Debian's where it can
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[1]
VENV = REPO / ".venv"
WINDOWS = os.name == "nt"
PYTHON = VENV / ("Scripts/python.exe" if WINDOWS else "bin/python")
TORCH = "torch>=2.8"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def run(command: Sequence[str | Path], **options: Any) -> None:
    shown = " ".join(str(part).replace(str(REPO) + os.sep, "") for part in command)
    print(f"$ {shown}", flush=True)
    subprocess.run([str(part) for part in command], cwd=REPO, check=True, **options)


def answer(command: Sequence[str | Path]) -> str | None:
    """What a command prints, or None if it fails or isn't there."""
    try:
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=120, cwd=REPO)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def make_venv(uv: str | None) -> None:
    if PYTHON.is_file() and answer([PYTHON, "-c", ""]) is not None:
        return
    if uv:
        run([uv, "venv", "--clear", "--python", sys.executable, VENV])
        return
    try:
        run([sys.executable, "-m", "venv", "--clear", VENV])
    except subprocess.CalledProcessError:
        sys.exit("Python's venv is missing: install it (Debian: apt-get install python3-venv), or uv")


def installer(uv: str | None) -> list[str | Path]:
    if uv:
        return [uv, "pip", "install", "--python", PYTHON]
    return [PYTHON, "-m", "pip", "install", "--disable-pip-version-check", "--quiet"]


def torch_version() -> str | None:
    """Of the torch in `.venv`, without importing it."""
    code = (
        "import importlib.metadata as m, importlib.util as u; print(m.version('torch') if u.find_spec('torch') else '')"
    )
    return (answer([PYTHON, "-c", code]) or "").strip() or None


def has_gpu() -> bool:
    """An NVIDIA card that its driver sees (the plain Linux wheel is a CUDA build)."""
    listed = answer(["nvidia-smi", "-L"])
    return bool(listed and "GPU" in listed)


def local_cpu_build() -> str | None:
    """The newest CPU build of torch in pip's local folders, if there is one: a file's address."""
    only_local = ["--no-index", "--no-deps", "--ignore-installed"]
    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    report = answer([*pip, *only_local, "--dry-run", "--report", "-", TORCH])
    if report is None:
        return None
    (found,) = json.loads(report)["install"]
    needs = found["metadata"].get("requires_dist", [])
    if any(need.startswith(("nvidia", "cuda")) for need in needs):
        return None  # a CUDA build
    return str(found["download_info"]["url"])


def install_torch(uv: str | None) -> None:
    if torch_version():
        return
    if platform.system() != "Linux" or has_gpu():
        run([*installer(uv), TORCH])
        return
    file = local_cpu_build()
    if file:
        run([*installer(uv), file])
        return
    if uv is None:
        run([*installer(None), "uv"])
        uv = str(PYTHON.with_name("uv"))
    try:
        run([*installer(uv), "--torch-backend=cpu", TORCH])
    except subprocess.CalledProcessError:
        sys.exit(
            "No CPU build of torch could be found, and without a GPU the plain one is gigabytes of CUDA.\n"
            f"Install a torch of your choice, then run `make setup` again: {PYTHON} -m pip install torch"
        )


def install_nbtune(uv: str | None) -> None:
    """nbtune and its developers' tools, with the torch that is there pinned: nothing replaces it."""
    with tempfile.TemporaryDirectory() as folder:
        pins = Path(folder) / "constraints.txt"
        pins.write_text(f"torch=={torch_version()}\n", encoding="utf-8")
        run([*installer(uv), "--constraint", pins, "--editable", ".[dev]"])


def browser() -> str | None:
    """A Chromium for the browser tests; Debian's is installed where it can be."""
    found = os.environ.get("NBTUNE_CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None and shutil.which("apt-get") and hasattr(os, "geteuid") and os.geteuid() == 0:
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        run(["apt-get", "update", "-qq"], env=quiet)
        install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium"]
        run(install, env=quiet, stdout=subprocess.DEVNULL)
        found = shutil.which("chromium")
    return found


def main(arguments: list[str]) -> None:
    if arguments == ["browser"]:
        if browser() is None:
            sys.exit(
                "The browser tests need Chromium and there is none: install it (Debian: apt-get install chromium), "
                "or name one in NBTUNE_CHROMIUM."
            )
        return
    uv = shutil.which("uv")
    make_venv(uv)
    install_torch(uv)
    install_nbtune(uv)
    print(f"nbtune is in {VENV.name}: {PYTHON.with_name('nbtune').relative_to(REPO)} doctor")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except subprocess.CalledProcessError as error:
        sys.exit(f"setup stopped: {error.cmd[0]} ended with {error.returncode}; its own message is above")
