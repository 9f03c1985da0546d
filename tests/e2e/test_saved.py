"""What a notebook's file holds after a run and after all panels: little, a picture, and nothing private."""

from __future__ import annotations

import json

import nbformat
import pytest
from playwright.sync_api import expect

pytestmark = [pytest.mark.browser, pytest.mark.slow]

MOST = 300_000  # bytes
ROWS = """%load_ext nbtune
import os, nbtune
os.environ["HF_TOKEN"] = "hf_" + "q" * 34
rows = [{"prompt": f"Who {'p' * 3}{i}?", "completion": f"Ahoy {'c' * 3}{i}!"} for i in range(64)]"""
TRAIN = """%%finetune --name kept
data: rows
steps: 40
batch_size: 2
samples: ["Who are you?"]
eval: {every: 10}
"""
PANELS = {
    "form": "%finetune",
    "inspector": "%nbtune data rows",
    "compare": "nbtune.widgets.compare([run, run])",
    "chatpanel": "run.chat()",
    "exportpanel": "nbtune.widgets.exporter(run)",
    "losses": "run.losses()",
}


def outputs_of(path) -> tuple[str, list[dict]]:
    """Everything that a run and its panels added to the file: outputs and widgets' state, as text; and the outputs."""
    notebook = nbformat.read(path, as_version=4)
    outputs = [output for cell in notebook.cells for output in cell.outputs]
    return json.dumps([outputs, notebook.metadata.get("widgets", {})], ensure_ascii=False), outputs


def test_a_file_after_all_panels(notebook, lab):
    page = notebook([ROWS, TRAIN, *PANELS.values(), "list(nbtune.runs()), run.state"])
    page.run(0)
    page.run(1)
    page.page.locator('.nbt-monitor .nbt-state[data-state="finished"]').wait_for()
    for index, name in enumerate(PANELS, start=2):
        page.run(index)
        page.page.locator(f".nbt-{name}").first.wait_for()
    chat = page.page.locator(".nbt-chatpanel")
    chat.get_by_label("Ask both…").fill("Who are you?")
    chat.get_by_label("Ask both…").press("Enter")
    expect(chat.locator(".nbt-answer")).to_have_count(2)
    expect(chat.get_by_role("button", name="Ask")).to_be_enabled()
    page.run(2 + len(PANELS))
    page.save()
    body, outputs = outputs_of(lab.root / page.name)
    print(f"  {len(body):,} bytes of outputs")
    assert len(body) <= MOST
    assert any("image/png" in str(output.get("data")) for output in outputs)
    assert not any(output.output_type == "error" for output in outputs)
    assert "qqqqqqqq" not in body  # the token
    assert str(lab.folder) not in body  # home, and the working folder
    assert not [k for k in range(64) if f"ppp{k}?" in body or f"ccc{k}!" in body]  # rows
