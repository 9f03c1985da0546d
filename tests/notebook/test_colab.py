"""With the versions that Colab and Kaggle bring along: an install replaces nothing; cells, panels and files work.

What is played: a real kernel of these versions on this machine, and a `google.colab` of our own. Nothing here says how
Colab's or Kaggle's own page behaves.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from packaging.requirements import Requirement

from tests.notebook.hosted import BROUGHT, FOLDER, NOTEBOOK, REPO, environment
from tests.notebook.kernel import Kernel
from tests.notebook.test_waiting import BODY, COLAB, SETUP, WIDGET
from tests.support.every import some
from tests.test_install import put

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Colab and Kaggle are Linux")
HOSTS = sorted(BROUGHT)


@pytest.fixture(scope="module")
def python(outside_environ: dict[str, str]) -> Path:
    return environment(outside_environ)


@pytest.fixture(scope="module", params=["colab", pytest.param("kaggle", marks=pytest.mark.slow)])
def kernel(request: pytest.FixtureRequest, python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    first = FOLDER / "kaggle" if request.param == "kaggle" else None
    with Kernel(tmp_path_factory.mktemp("kernel"), first=first, python=python) as made:
        modules = {"IPython" if name == "ipython" else name: BROUGHT[request.param][name] for name in NOTEBOOK}
        assert ast.literal_eval(made.value(f"{{n: __import__(n).__version__ for n in {list(modules)}}}")) == modules
        assert (loaded := made.run(SETUP)).status == "ok", loaded.text
        yield made


@pytest.fixture
def trained(kernel: Kernel) -> Kernel:
    """The same, in which a run named `first` has finished."""
    if not [*(kernel.folder / "runs").glob("first-*")]:
        assert (done := kernel.run(f"%%finetune --name first\n{BODY}steps: 3\n")).status == "ok", done.text
    return kernel


# What is installed stays -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", HOSTS)
def test_no_floor_is_above_what_is_there(host: str) -> None:
    project = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    floors = {(each := Requirement(line)).name.replace("_", "-"): each for line in project["dependencies"]}
    assert not [
        str(floors[name])
        for name, version in BROUGHT[host].items()
        if name in floors and version not in floors[name].specifier
    ]
    assert set(floors) - set(BROUGHT[host]) == {"bitsandbytes", "gguf"}, "what an install there adds"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--skip-dependency-check",
        "--outdir",
        out,
        REPO,
    ]
    done = subprocess.run(command, cwd=out, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    (made,) = out.glob("*.whl")
    return made


def _would_install(pip: list[Any], wheel: Path, environ: dict[str, str], report: Path) -> set[str]:
    command = [*pip, "install", "--quiet", "--dry-run", "--report", report, wheel]
    done = subprocess.run(command, env={**environ, "PYTHONPATH": ""}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return {each["metadata"]["name"].lower().replace("_", "-") for each in json.loads(report.read_text())["install"]}


@pytest.mark.slow
@pytest.mark.parametrize("host", HOSTS)
def test_an_install_there_replaces_nothing(
    host: str, python: Path, wheel: Path, outside_environ: dict[str, str], tmp_path: Path
) -> None:
    """pip reads what is installed and imports nothing: names and versions are enough for it."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    for name, version in BROUGHT[host].items():
        put(site, name, version)
    pip = [python, "-m", "pip", "--python", tmp_path / "venv" / "bin" / "python"]
    wanted = _would_install(pip, wheel, outside_environ, tmp_path / "report.json")
    assert {"nbtune", "gguf"} <= wanted
    assert not wanted & set(BROUGHT[host])
    assert not [name for name in wanted if name.startswith(("nvidia", "cuda", "jupyter", "widgets"))]


@pytest.mark.slow
def test_what_is_in_the_environment_is_enough(
    python: Path, wheel: Path, outside_environ: dict[str, str], tmp_path: Path
) -> None:
    """Real packages, with what each of them asks of the others."""
    wanted = _would_install([python, "-m", "pip"], wheel, outside_environ, tmp_path / "report.json")
    assert wanted <= {"nbtune", "setuptools"}  # torch wants a newer one than venv brings


# In a kernel of these versions -----------------------------------------------------------------------------------


def _of(message: dict[str, Any], panel: str) -> bool:
    return bool(message["content"]["comm_id"] == panel)


def test_the_first_line_and_the_cell_with_its_monitor(kernel: Kernel) -> None:
    assert kernel.run(COLAB).text.count("custom widget manager") == 1
    done = kernel.run(f"%%finetune --name first\n{BODY}steps: 3\n")
    assert done.status == "ok", done.text
    assert "Run first: finished, step 3 of 3" in done.text
    (shown,) = done.outputs(WIDGET)
    panel = shown["data"][WIDGET]["model_id"]
    opened = next(m["content"] for m in done.messages if m["msg_type"] == "comm_open" and _of(m, panel))
    assert opened["target_name"] == "jupyter.widget"
    state = opened["data"]["state"]
    assert state["_model_module"] == "anywidget"
    assert "render" in state["_esm"]
    points = [m for m in done.messages if m["msg_type"] == "comm_msg" and _of(m, panel) and m["buffers"]]
    assert any(m["content"]["data"]["method"] == "custom" for m in points), "points, as they come"
    assert kernel.value("len(run.figure().data) >= 3, run.history.shape[0]") == "(True, 3)"


def test_a_click_stops_a_cell_that_waits(kernel: Kernel) -> None:
    waiting = kernel.send(f"%%finetune --name long\n{BODY}steps: 1000000\n")
    shown = kernel.until(lambda m: m["msg_type"] == "display_data" and WIDGET in m["content"]["data"])
    panel = shown["content"]["data"][WIDGET]["model_id"]
    kernel.until(lambda m: m["msg_type"] == "comm_msg" and _of(m, panel) and m["buffers"])
    kernel.click(panel, "stop")
    ended = kernel.finish(waiting, timeout=240)
    assert ended.status == "ok", ended.text
    assert "Run long: stopped" in ended.text


def test_the_form_plans_and_starts(kernel: Kernel) -> None:
    shown = kernel.run("%finetune")
    assert shown.status == "ok", shown.text
    panel = shown.outputs(WIDGET)[0]["data"][WIDGET]["model_id"]

    def told(message: dict[str, Any], **state: Any) -> bool:
        if message["msg_type"] != "comm_msg" or not _of(message, panel):
            return False
        said = message["content"]["data"].get("state", {})
        return all(test(said[name]) if name in said else False for name, test in state.items())

    kernel.click(panel, "yaml", text=f"{BODY}steps: 2\n")
    kernel.until(lambda m: told(m, costs=lambda costs: costs["state"] == "known"))
    kernel.click(panel, "start", name="formed")
    kernel.until(lambda m: told(m, monitors=lambda monitors: monitors[:1] and monitors[0].startswith("IPY_MODEL_")))
    assert kernel.value("run.name, run.wait().state") == "('formed', 'finished')"


def test_the_other_panels_come_up(trained: Kernel) -> None:
    kernel = trained
    kernel.run(f"%%finetune --name other\n{BODY}steps: 1\n")
    for line in ("%nbtune data rows", "%nbtune chat first", "%nbtune compare first other", "%nbtune attach first"):
        shown = kernel.run(line)
        assert shown.status == "ok", f"{line}\n{shown.text}"
        assert len(shown.outputs(WIDGET)) == 1, line
    closed = kernel.run("panel = run.monitor(); panel.close(); display(panel)")
    assert closed.status == "ok", closed.text


def test_a_panel_that_no_page_answers_says_so(trained: Kernel) -> None:
    """ipywidgets 7 displays widgets on a way of its own."""
    kernel = trained
    kernel.run("run.monitor()")
    told = kernel.until(
        lambda m: m["msg_type"] == "update_display_data" and "does not show" in m["content"]["data"]["text/plain"]
    )
    assert "text/html" in told["content"]["data"]


def test_the_export(trained: Kernel) -> None:
    kernel = trained
    done = kernel.run("%nbtune export first --gguf q8_0")
    assert done.status == "ok", done.text
    (file,) = (kernel.folder / "runs").glob("first-*/**/*.gguf")
    assert file.read_bytes()[:4] == b"GGUF"
    assert "q8_0" in done.text


def test_errors_are_blocks_and_help_is_ours(kernel: Kernel) -> None:
    wrong = kernel.run("%%finetune\nstpes: 3\n")
    assert wrong.status == "error"
    assert "`steps`" in wrong.text
    assert "Traceback" not in wrong.text
    kernel.client.shell_channel.send(
        kernel.client.session.msg("inspect_request", {"code": "%%finetune", "cursor_pos": 10, "detail_level": 0})
    )
    help_text = kernel.client.get_shell_msg(timeout=240)["content"]["data"]["text/plain"]
    assert "--dry-run" in help_text


@pytest.mark.parametrize(
    ("code", "word"),
    [
        ("%%finetune --dry", "--dry-run"),
        ("%nbtune expo", "export"),
        ("%%finetune\nadap", "adapter: "),
        ("%%finetune\nmodel: nbtune/tiny\ndata: ro", "rows"),
        ("%%finetune\nadapter:\n  target", "target_modules: "),
    ],
)
def test_words_are_completed(kernel: Kernel, code: str, word: str) -> None:
    kernel.run("rows = [{'prompt': 'a', 'completion': 'b'}]")
    kernel.client.complete(code, len(code))
    answer = kernel.client.get_shell_msg(timeout=240)["content"]
    before = code[: answer["cursor_start"]]
    assert any((before + match).endswith(word) for match in answer["matches"]), answer["matches"][:20]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("notebook", sorted((REPO / "example_notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_the_example_notebooks_run_unchanged(notebook: Path, python: Path, tmp_path: Path) -> None:
    cells = [cell for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "code"]
    with Kernel(tmp_path, python=python) as colab:
        for cell in some(cells):
            done = colab.run(cell.source, timeout=900)
            assert done.status == "ok", f"{cell.source}\n{done.text}"
