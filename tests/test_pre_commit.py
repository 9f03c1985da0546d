"""The hooks of a commit run without a shell, so on Windows too, and mend what `make lint` would find."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

HOOKS = "python .ci/hook.py "


def hooks(repo: Path) -> list[dict[str, str]]:
    (local,) = yaml.safe_load((repo / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    found: list[dict[str, str]] = local["hooks"]
    return found


def test_hooks_are_modules_that_python_runs(repo: Path) -> None:
    for hook in hooks(repo):
        assert hook["language"] == "system"
        assert hook["entry"].startswith(HOOKS)
        module = hook["entry"].removeprefix(HOOKS).split()[0]
        assert importlib.util.find_spec(module) or (repo / f"{module.replace('.', '/')}.py").is_file(), module
        assert not {*"|&;<>$`"} & {*hook["entry"]}, "needs a shell"


@pytest.mark.skipif(shutil.which("git") is None, reason="git is missing")
def test_a_file_is_mended_before_it_is_committed(repo: Path, tmp_path: Path) -> None:
    for name in (".pre-commit-config.yaml", "pyproject.toml", ".ci"):
        (shutil.copytree if (repo / name).is_dir() else shutil.copy)(repo / name, tmp_path / name)
    (tmp_path / ".venv").symlink_to(sys.prefix)  # wherever the tests run
    (tmp_path / "made.py").write_text("import os\nx = {  'a':1 }\n", encoding="utf-8")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {**os.environ, "PATH": path, "PRE_COMMIT_HOME": str(tmp_path / "cache"), "PYTHONPATH": ""}
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run(["git", "add", "made.py"], cwd=tmp_path, check=True)
    for hook in ("ruff-check", "ruff-format"):
        command = [sys.executable, "-m", "pre_commit", "run", hook, "--files", "made.py"]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert "files were modified by this hook" in done.stdout, done.stdout + done.stderr
    assert (tmp_path / "made.py").read_text(encoding="utf-8") == 'x = {"a": 1}\n'
