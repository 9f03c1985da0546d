"""When a cell returns and when it stays, what it leaves in the notebook, what an interrupt does; in real kernels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from nbtune.notebook import environment
from tests.notebook.kernel import ROOT, Kernel, Reply

SETUP = """\
%load_ext nbtune
rows = [{"prompt": f"How much is {i} plus 1?", "completion": f"{i} plus 1 is {i + 1}."} for i in range(16)]
"""
BODY = "model: nbtune/tiny\ndata: rows\nbatch_size: 2\n"
LIVE = f"{BODY}steps: 20000\n"
WIDGET = "application/vnd.jupyter.widget-view+json"


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    with Kernel(tmp_path_factory.mktemp("kernel")) as made:
        assert made.run(SETUP).status == "ok"
        yield made


@pytest.fixture
def live(kernel: Kernel) -> Iterator[Reply]:
    """A run named live, at work: what the cell showed that began it."""
    begun = kernel.run(f"%%finetune --name live\n{LIVE}")
    yield begun
    kernel.run("import nbtune\nnewest = nbtune.attach('live')\nif newest.alive: newest.stop(wait=True)")


def test_without_a_page_the_cell_waits_and_leaves_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'kernels'}")
    monkeypatch.setenv("NBTUNE_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    cells = [SETUP, f"%%finetune --name demo\n{BODY}steps: 3\n", "run.state, run.step"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in cells])
    NotebookClient(
        notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    assert notebook.cells[2].outputs[0]["data"]["text/plain"] == "('finished', 3)"
    shown = [output.get("data", {}) for output in notebook.cells[1].outputs]
    assert not any(WIDGET in data for data in shown)
    assert sum("image/png" in data for data in shown) == 1
    assert any("Run demo: finished, step 3 of 3" in data.get("text/plain", "") for data in shown)
    assert any("AutoModelForCausalLM" in data.get("text/plain", "") for data in shown)
    assert len(nbformat.writes(notebook)) < 300_000


def test_with_a_page_the_cell_returns_at_once_and_the_run_goes_on(kernel: Kernel, live: Reply) -> None:
    assert live.status == "ok", live.text
    assert len(live.outputs(WIDGET)) == 1
    assert "%nbtune stop live" in live.text
    assert kernel.value("run.state in ('queued', 'preparing', 'running')") == "True"


def test_running_the_cell_again_attaches(kernel: Kernel, live: Reply) -> None:
    before = kernel.value("run.id, len(__import__('nbtune').runs())")
    again = kernel.run(f"%%finetune --name live\n{LIVE}")
    assert again.status == "ok", again.text
    assert kernel.value("run.id, len(__import__('nbtune').runs())") == before


def test_a_changed_spec_is_refused_and_said(kernel: Kernel, live: Reply) -> None:
    changed = kernel.run(f"%%finetune --name live\n{BODY}steps: 1000\n")
    assert changed.status == "error"
    assert "steps: 20000 → 1000" in changed.text
    assert "--restart" in changed.text
    assert "--queue" in changed.text
    assert "Traceback" not in changed.text


def test_pause_unpause_and_runs(kernel: Kernel, live: Reply) -> None:
    assert "holds at its next step" in kernel.run("%nbtune pause").text
    kernel.run("import time\nwhile run.state != 'paused': time.sleep(0.05)")
    assert "paused" in kernel.run("%nbtune runs").text
    assert "goes on" in kernel.run("%nbtune unpause live").text
    kernel.run("import time\nwhile run.state != 'running': time.sleep(0.05)")


def test_stop_ends_it_and_the_report_takes_its_place(kernel: Kernel, live: Reply) -> None:
    kernel.send("%nbtune stop")
    report = kernel.until(lambda m: m["msg_type"] == "update_display_data" and "image/png" in m["content"]["data"])
    assert "Run live: stopped" in report["content"]["data"]["text/plain"]
    assert kernel.value("run.wait().state") == "'stopped'"
    shown = kernel.run("%nbtune attach live").messages
    assert sum(m["msg_type"] == "display_data" and "image/png" in m["content"]["data"] for m in shown) == 1


def test_the_first_interrupt_releases_the_cell_and_the_second_stops_and_saves(kernel: Kernel, live: Reply) -> None:
    kernel.run("import time\nwhile run.step < 1: time.sleep(0.05)\nrun.stop(wait=True)")
    request = kernel.send("%nbtune resume live --wait")
    kernel.until(
        lambda m: m["msg_type"] == "update_display_data" and "running" in m["content"]["data"].get("text/plain", "")
    )
    kernel.interrupt()
    released = kernel.finish(request)
    assert released.status == "ok", released.text
    assert "goes on in the background" in released.text
    assert kernel.value("run.state") == "'running'"
    kernel.interrupt()  # the kernel is idle now
    assert kernel.value("run.wait().state") == "'stopped'"
    assert kernel.value("run.step > 0 and (run.folder / 'adapter').is_dir()") == "True"


def test_a_failing_run_raises_where_the_cell_waits(kernel: Kernel) -> None:
    failed = kernel.run("%%finetune --name bad --wait\nmodel: nbtune/tiny\ndata: rows\nsequence_len: 8\nsteps: 2\n")
    assert failed.status == "error", failed.text
    assert "Traceback" not in failed.text
    assert any(message["msg_type"] == "error" for message in failed.messages)


def test_a_cell_run_twice_in_a_row_after_the_end_makes_a_new_run(kernel: Kernel) -> None:
    ids = []
    for _ in range(2):
        assert kernel.run(f"%%finetune --name twice --wait\n{BODY}steps: 1\n").status == "ok"
        ids.append(kernel.value("run.id"))
    assert ids[0] != ids[1]


def test_panels_come_up_in_a_page(kernel: Kernel) -> None:
    for name in ("one", "other"):
        assert kernel.run(f"%%finetune --name {name} --wait\n{BODY}steps: 1\n").status == "ok"
    for line in ("%finetune", "%nbtune data rows", "%nbtune chat one", "%nbtune compare one other"):
        shown = kernel.run(line)
        assert shown.status == "ok", shown.text
        assert len(shown.outputs(WIDGET)) == 1, line


# A package on disk, not a stuffed sys.modules: accelerate looks for the spec of `google.colab`.
COLAB = """\
import pathlib, sys
colab = pathlib.Path("fake/google/colab")
colab.mkdir(parents=True)
(colab / "__init__.py").write_text("from google.colab import output")
(colab / "output.py").write_text(
    "class _widgets: _installed_url = None\\n" "def enable_custom_widget_manager(): _widgets._installed_url = None\\n"
)
sys.path.insert(0, "fake")
import google.colab
%unload_ext nbtune
%load_ext nbtune
%reload_ext nbtune
"""


def test_in_colab_the_cell_waits_with_its_panel(kernel: Kernel) -> None:
    loaded = kernel.run(COLAB)
    assert loaded.text.count("custom widget manager") == 1
    done = kernel.run(f"%%finetune --name colab\n{BODY}steps: 1\n")
    assert done.status == "ok", done.text
    assert len(done.outputs(WIDGET)) == 1
    assert "Colab shows updates only while a cell runs" in done.text
    assert "Run colab: finished" in done.text
    kernel.run("del sys.modules['google.colab'], sys.modules['google.colab.output']; sys.path.remove('fake')")


def test_in_kaggles_editor_the_cell_waits_with_its_panel(kernel: Kernel) -> None:
    kernel.run("import os; os.environ['KAGGLE_KERNEL_RUN_TYPE'] = 'Interactive'")
    kernel.run("from nbtune.notebook import environment; environment._told.clear()")  # once in a kernel
    loaded = kernel.run("%reload_ext nbtune")
    assert loaded.text.count("Kaggle keeps only what lies in /kaggle/working") == 1  # this test's folder is elsewhere
    assert "Kaggle" not in kernel.run("%reload_ext nbtune").text
    done = kernel.run(f"%%finetune --name kaggle\n{BODY}steps: 1\n", page=False)  # whatever its editor sends along
    assert done.status == "ok", done.text
    assert len(done.outputs(WIDGET)) == 1
    assert "in Kaggle's editor a cell stays" in done.text
    assert "Run kaggle: finished" in done.text
    kernel.run("del os.environ['KAGGLE_KERNEL_RUN_TYPE']")


def test_where_kaggle_saves_and_runs_all_the_result_is_static(kernel: Kernel) -> None:
    kernel.run("import os; os.environ['KAGGLE_KERNEL_RUN_TYPE'] = 'Batch'")
    done = kernel.run(f"%%finetune --name batch\n{BODY}steps: 1\n")
    assert done.status == "ok", done.text
    assert not done.outputs(WIDGET)
    assert "Kaggle runs the notebook in one go" in done.text
    assert "Run batch: finished" in done.text
    assert "<img" in str(done.messages)
    chat = kernel.run("import nbtune; nbtune.attach('batch').chat()")
    fresh = [m["content"]["data"] for m in chat.messages if m["msg_type"] == "display_data"]  # earlier cells' go on
    assert not any("text/html" in data for data in fresh)  # no text stands in
    kernel.run("del os.environ['KAGGLE_KERNEL_RUN_TYPE']")


def test_runs_below_kaggles_working_folder_need_no_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    assert environment.prepare_kaggle(Path("/kaggle/working/runs")) == ""
    monkeypatch.delenv("KAGGLE_KERNEL_RUN_TYPE")
    assert environment.prepare_kaggle(Path("/tmp/runs")) == ""
