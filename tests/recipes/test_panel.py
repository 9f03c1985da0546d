"""The recipe "add a panel", carried out on a copy of the tree: a file for each of its halves, found by their names."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.recipe import REPO, changed, copy_tree, python

PYTHON = '''\
"""The echo: what is said comes back louder."""

from __future__ import annotations

from nbtune.errors import NbtuneError
from nbtune.widgets.panel import Panel


class Echo(Panel):
    """Says what it is told."""

    panel = "echo"

    def do_say(self, words: str) -> str:
        """Return the words, louder."""
        if not words:
            raise NbtuneError("nothing was said", fix="say something")
        return words.upper()
'''
PAGE = """\
import { el } from "../shared/dom.js";
import { panel } from "../shared/panel.js";

export default panel((model) => {
  const root = el("section", { class: "nbt nbt-echo", role: "region", "aria-label": "Echo" });
  return { root, destroy() {} };
});
"""
STYLE = ".nbt-echo { text-transform: uppercase; }\n"
SPEAKS = """
from nbtune.widgets.echo_panel import Echo

panel, answers = Echo(), []
state = panel.get_state()
assert ".nbt-echo{text-transform:uppercase}" in state["_css"] and ".nbt-btn" in state["_css"]
assert "nbt-echo" in state["_esm"]
panel.send = lambda content, buffers=None: answers.append(content)
panel._handle_custom_msg({"t": "do", "id": 1, "do": "say", "words": "ahoy"}, [])
panel._handle_custom_msg({"t": "do", "id": 2, "do": "say", "words": ""}, [])
assert answers[0] == {"t": "ack", "id": 1, "value": "AHOY"}, answers
assert "nothing was said" in answers[1]["error"]
"""
LOADS = "import(process.argv[1]).then((module) => console.log(Object.keys(module.default()).sort().join()))"


def node(folder: Path, *words: str) -> str:
    done = subprocess.run(["node", *words], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
def test_a_new_panel_is_a_file_for_each_of_its_halves(tmp_path: Path) -> None:
    if not (REPO / "js/node_modules").is_dir():
        pytest.skip("js/node_modules is missing: `make setup` builds the panels")
    tree = copy_tree(tmp_path)
    shutil.copytree(REPO / "js", tree / "js", ignore=shutil.ignore_patterns("node_modules"))
    (tree / "js/node_modules").symlink_to((REPO / "js/node_modules").resolve())
    (tree / "nbtune/widgets/echo_panel.py").write_text(PYTHON, encoding="utf-8")
    (tree / "js/src/echo").mkdir()
    (tree / "js/src/echo/index.js").write_text(PAGE, encoding="utf-8")
    (tree / "js/src/echo/echo.css").write_text(STYLE, encoding="utf-8")
    node(tree / "js", "build.mjs")
    python(tree, "-c", SPEAKS)
    shutil.copy(tree / "nbtune/widgets/static/echo.js", tmp_path / "echo.mjs")
    assert node(tmp_path, "-e", LOADS, str(tmp_path / "echo.mjs")) == "initialize,render"
    assert changed(tree) == ["nbtune/widgets/echo_panel.py"]
    assert "pass" in node(tree / "js", "--test", "test/styles.test.js"), "the panel's style keeps to what all keep to"
