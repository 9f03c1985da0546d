"""The comparison and the export panel in a real JupyterLab; what was clicked is opened by what it is for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.support.fake_hub import TOKEN, FakeHub, client_environment, run_client
from tests.support.llama import LlamaOracle, llama_library

pytestmark = pytest.mark.browser

TRAIN = """import nbtune
from nbtune.widgets import compare, exporter
rows = [{"prompt": f"Who are you, {k}?", "completion": "Ahoy! I am Captain Tune."} for k in range(40)]
one = nbtune.finetune(data="rows", rows=globals(), steps=12, name="one").wait()
two = nbtune.finetune(data="rows", rows=globals(), steps=12, name="two", learning_rate=2e-3, adapter={"r": 4}).wait()
compare([one, two])"""

ONE = """import os
os.environ.update(ENVIRONMENT)
import nbtune
from nbtune.widgets import exporter
rows = [{"prompt": f"Who are you, {k}?", "completion": "Ahoy! I am Captain Tune."} for k in range(40)]
more = {"learning_rate": 2e-3, "eval": {"split": 0.2}}
run = nbtune.finetune(data="rows", rows=globals(), steps=12, name="NAME", **more).wait()
exporter(run)"""
PROMPT = "Who are you, 3?"


@pytest.mark.slow
def test_two_runs_are_compared_and_one_is_exported(notebook, lab):
    page = notebook([TRAIN, "exporter(two)"], width=900)
    page.run(0)
    comparison = page.page.locator(".nbt-compare")
    page.page.locator(".nbt-compare[data-plotly=true]").wait_for()
    expect(comparison.locator(".scatterlayer .trace")).to_have_count(2)
    expect(comparison.get_by_role("cell", name="0.002")).to_be_visible()
    assert page.looks("compare", ".nbt-compare") == []

    page.run(1)
    panel = page.page.locator(".nbt-exportpanel")
    panel.get_by_label("q4_k_m").check()
    panel.get_by_role("button", name="Make GGUF").click()
    expect(panel.locator(".nbt-code code")).to_have_text('run.export.gguf("q8_0", "q4_k_m")')
    expect(panel.locator(".nbt-files li", has_text="q4_k_m")).to_be_visible()
    expect(panel.get_by_role("button", name="Make GGUF")).to_be_enabled()
    assert len(list((lab.root / "runs").glob("two-*/exports/*.gguf"))) == 2
    assert page.looks("export", ".nbt-exportpanel") == []


class Clicked:
    """The export panel of a run: `click` waits until what was clicked is made, and sees its line of code."""

    def __init__(self, page: Any, lab: Any, name: str, environment: dict[str, str]) -> None:
        cell = ONE.replace("ENVIRONMENT", repr(environment)).replace("NAME", name)
        self.page = page([cell], width=900)
        self.page.run(0)
        self.panel = self.page.page.locator(".nbt-exportpanel")
        self.panel.wait_for()
        self.folder = next((lab.root / "runs").glob(f"{name}-*"))

    def click(self, button: str, code: str, made: str) -> None:
        self.panel.get_by_role("button", name=button, exact=True).click()
        expect(self.panel.locator(".nbt-code code")).to_have_text(code)
        expect(self.panel.locator(".nbt-files li", has_text=made).first).to_be_visible()
        expect(self.panel.get_by_role("button", name="Make GGUF")).to_be_enabled()
        expect(self.panel.locator(".nbt-files li[data-level=error]")).to_have_count(0)


@pytest.fixture
def clicked(notebook: Any, lab: Any) -> Any:
    return lambda name, **environment: Clicked(
        notebook, lab, name, {"NBTUNE_LLAMA_LIB": str(llama_library()), **environment}
    )


@pytest.mark.slow
def test_every_kind_of_export_by_a_click_and_opened_by_what_it_is_for(clicked, lab):
    at = clicked("all")
    exports = at.folder / "exports"
    at.panel.get_by_label("q4_k_m").check()
    at.panel.get_by_role("button", name="More types").click()
    at.panel.get_by_label("f32", exact=True).check()
    at.click("Make GGUF", 'run.export.gguf("f32", "q8_0", "q4_k_m")', "all-f32.gguf")
    for kind in ("q8_0", "q4_k_m"):
        row = at.panel.locator("tbody tr", has=at.page.page.get_by_text(kind, exact=True))
        expect(row).to_contain_text("perplexity")
        expect(row).to_contain_text("KL")
    at.click("Adapter", "run.export.adapter()", "exports/adapter")
    at.click("Adapter as GGUF", "run.export.adapter_gguf()", "all-lora-f32.gguf")
    at.panel.get_by_label("Number format of the merged model").select_option("float32")
    at.click("Merged model", 'run.export.merged(dtype="float32")', "exports/merged")
    at.panel.get_by_label("Type of Ollama's file").select_option("q4_k_m")
    at.click("Ollama folder", 'run.export.ollama("q4_k_m")', "exports/ollama")
    assert at.page.looks("export-made", ".nbt-exportpanel") == []

    expected = _by_transformers(at.folder / "adapter", exports)
    for kind, most in (("f32", 2e-3), ("q8_0", 1.0), ("q4_k_m", 8.0)):
        with LlamaOracle(exports / f"all-{kind}.gguf", library=llama_library(), n_ctx=64) as llama:
            ids = llama.tokenize([PROMPT])[0]
            assert abs(llama.logits(ids)[:, : expected.shape[1]] - expected).max() < most
    with LlamaOracle(_base_gguf(exports), library=llama_library(), n_ctx=64) as llama:
        assert abs(llama.logits(ids)[:, : expected.shape[1]] - expected).max() > 0.05
        llama.use_adapter(exports / "all-lora-f32.gguf")
        assert abs(llama.logits(ids)[:, : expected.shape[1]] - expected).max() < 2e-3
    ollama = exports / "ollama"
    modelfile = (ollama / "Modelfile").read_text()
    named = next(line.split()[1] for line in modelfile.splitlines() if line.startswith("FROM "))
    assert "TEMPLATE" in modelfile
    assert "PARAMETER stop" in modelfile
    with LlamaOracle(ollama / named, library=llama_library(), n_ctx=64) as llama:
        assert llama.greedy(ids, 4)


def _by_transformers(adapter: Path, exports: Path, tolerance: float = 1e-5) -> Any:
    """Logits of base + adapter, which the merged folder and the exported adapter must have, too."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import nbtune

    def logits(model: Any) -> Any:
        with torch.no_grad():
            return model(torch.tensor([ids])).logits[0].numpy()

    def base() -> Any:
        return AutoModelForCausalLM.from_pretrained(nbtune.models.resolve("nbtune/tiny"), dtype=torch.float32)

    ids = AutoTokenizer.from_pretrained(exports / "merged")(PROMPT)["input_ids"]
    expected = logits(PeftModel.from_pretrained(base(), adapter))
    merged = logits(AutoModelForCausalLM.from_pretrained(exports / "merged", dtype=torch.float32))
    assert abs(merged - expected).max() < tolerance * abs(expected).max()
    assert (logits(PeftModel.from_pretrained(base(), exports / "adapter")) == expected).all()
    return expected


def _base_gguf(out: Path) -> Path:
    import nbtune
    from nbtune.export import ExportSource, export_gguf

    return export_gguf(ExportSource(nbtune.models.resolve("nbtune/tiny"), name="base"), ["f32"], out)[0].path


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    with FakeHub() as served:
        yield served


def _logged_in(hub: FakeHub, tmp_path: Path) -> dict[str, str]:
    """The environment of a kernel whose user has a token, as `hf auth login` leaves it."""
    home = tmp_path / "hub-home"
    (home / "hf").mkdir(parents=True)
    (home / "hf" / "token").write_text(TOKEN)
    wanted = client_environment(hub, home, None)
    return {**{key: wanted[key] for key in wanted if key.startswith("HF_")}, "HF_HUB_OFFLINE": "0"}


@pytest.mark.slow
def test_pushes_by_a_click_with_the_card_read_and_changed(clicked, lab, hub, tmp_path, monkeypatch):
    at = clicked("pushed", **_logged_in(hub, tmp_path))
    panel = at.panel

    panel.get_by_label("Repository").fill("ada/adapter")
    panel.get_by_role("button", name="Model card").click()
    card = panel.locator(".nbt-card")
    expect(card.get_by_role("heading", name="pushed")).to_be_visible()
    expect(card).to_contain_text("ada/adapter")
    expect(panel.locator(".nbt-code code")).to_have_text('print(run.model_card("ada/adapter"))')
    panel.get_by_role("button", name="Edit", exact=True).click()
    area = panel.get_by_label("The model card, in Markdown")
    hostile = "<img src=x onerror=window.hacked=1><script>window.hacked=1</script>"
    area.fill(area.input_value().replace("# pushed", f"# Captain Tune\n\n{hostile}\n\n[a](javascript:window.hacked=1)"))
    panel.get_by_role("button", name="Preview").click()
    expect(card.get_by_role("heading", name="Captain Tune")).to_be_visible()
    expect(card).to_contain_text(hostile)
    assert card.locator("img, script, a").count() == 0
    assert at.page.page.evaluate("window.hacked") is None
    assert at.page.looks("export-card", ".nbt-exportpanel") == []
    file = at.folder.relative_to(lab.root).as_posix() + "/exports/card.md"
    at.click("Push", f'run.push_to_hub("ada/adapter", card="{file}")', "/ada/adapter")
    readme = hub.files("ada/adapter")["README.md"].decode()
    assert "# Captain Tune" in readme
    assert hostile in readme
    assert hub.repos["ada/adapter"].private

    panel.get_by_role("button", name="As generated").click()
    panel.get_by_label("Repository").fill("ada/merged")
    panel.locator("form select").select_option("merged")
    panel.get_by_label("Branch").fill("v2")
    at.click("Push", 'run.push_to_hub("ada/merged", what="merged", revision="v2")', "/ada/merged")
    assert "Captain Tune" not in hub.files("ada/merged", "v2")["README.md"].decode()

    panel.get_by_label("Branch").fill("")
    panel.get_by_label("Repository").fill("ada/files")
    panel.locator("form select").select_option("gguf")
    panel.get_by_label("Private").uncheck()
    panel.get_by_label("as pull request").check()
    code = 'run.push_to_hub("ada/files", what="gguf", types=["q8_0"], private=False, create_pr=True)'
    at.click("Push", code, "/ada/files")
    sent = hub.files("ada/files", "refs/pr/1")
    assert not hub.repos["ada/files"].private
    assert "perplexity" in sent["README.md"].decode()
    (tmp_path / "sent.gguf").write_bytes(sent["pushed-q8_0.gguf"])
    with LlamaOracle(tmp_path / "sent.gguf", library=llama_library(), n_ctx=64) as llama:
        assert llama.tokenize([PROMPT])

    at.page.save()
    for path in [*lab.root.rglob("*"), *lab.folder.glob("*.log")]:
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path
    done = run_client(_READ_BACK.format(run=str(at.folder / "adapter")), hub, tmp_path)
    assert done.returncode == 0, done.stderr


# What a stranger does with the two repositories.
_READ_BACK = """
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
import nbtune

def base():
    return AutoModelForCausalLM.from_pretrained(nbtune.models.resolve("nbtune/tiny"), dtype=torch.float32)

ids = torch.tensor([AutoTokenizer.from_pretrained("ada/merged", revision="v2")("Who are you, 3?")["input_ids"]])
with torch.no_grad():
    expected = PeftModel.from_pretrained(base(), {run!r})(ids).logits
    assert torch.equal(PeftModel.from_pretrained(base(), "ada/adapter")(ids).logits, expected)
    merged = AutoModelForCausalLM.from_pretrained("ada/merged", revision="v2", dtype=torch.float32)
    assert (merged(ids).logits - expected).abs().max() < 0.02 * expected.abs().max()  # bfloat16
"""


@pytest.mark.slow
def test_a_file_and_a_push_from_the_monitor_in_three_clicks_each(notebook, hub, lab, tmp_path):
    environment = repr(_logged_in(hub, tmp_path))
    cell = ONE.replace("ENVIRONMENT", environment).replace("NAME", "box").replace("exporter(run)", "run.monitor()")
    page = notebook([cell], width=900)
    page.run(0)
    panel = page.page.locator(".nbt-monitor")
    panel.locator("[data-do=export]").click()
    box = panel.locator(".nbt-exportpanel")
    box.get_by_role("button", name="Make GGUF").click()
    box.locator("li", has_text="box-q8_0.gguf").wait_for()
    exports = next((lab.root / "runs").glob("box-*")) / "exports"
    with LlamaOracle(exports / "box-q8_0.gguf", library=llama_library(), n_ctx=64) as llama:
        assert llama.logits(llama.tokenize([PROMPT])[0]).any()
    panel.locator("[data-do=push]").click()
    box.get_by_label("Repository").fill("ada/adapter")
    box.get_by_role("button", name="Push", exact=True).click()
    box.locator("li", has_text="/ada/adapter").wait_for()
    assert any(name.endswith("adapter_model.safetensors") for name in hub.files("ada/adapter"))
    assert hub.repos["ada/adapter"].private
    assert page.looks("monitor-export", ".nbt-monitor") == []
