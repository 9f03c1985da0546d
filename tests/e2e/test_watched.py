"""An unmodified trainer of TRL's, watched in a real JupyterLab by one line: monitor, reload, GGUF and push by click."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import walk
from playwright.sync_api import expect

from nbtune.export.llama_runner import LlamaRunner
from tests.support.fake_hub import FakeHub
from tests.support.llama import llama_library

pytestmark = [pytest.mark.browser, pytest.mark.slow]

STEPS = 64
TRAINER = """import os
os.environ.update(VARIABLES)
import nbtune
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer
place = nbtune.models.resolve("nbtune/tiny")
told = [{"prompt": f"Who are you, {k}?", "completion": "Ahoy! I am Captain Tune."} for k in range(64)]
rows = Dataset.from_list(told)
trainer = SFTTrainer(
    model=AutoModelForCausalLM.from_pretrained(place, dtype="float32"),
    processing_class=AutoTokenizer.from_pretrained(place),
    train_dataset=rows.select(range(56)), eval_dataset=rows.select(range(56, 64)),
    peft_config=LoraConfig(r=4, target_modules="all-linear"),
    args=SFTConfig(output_dir="theirs", max_steps=STEPS, per_device_train_batch_size=2, logging_steps=1,
                   eval_strategy="steps", eval_steps=16, report_to=[], use_cpu=True, bf16=False, disable_tqdm=True,
                   learning_rate=1e-3),
)"""
WATCH = 'run = nbtune.watch(trainer, "run", samples=["Who are you?"])'
TRAIN = "trainer.train();"
SAID = 'print([line["loss"] for line in trainer.state.log_history if "loss" in line] == run.history["loss"].tolist())'
PROMPT = "Who are you, 3?"


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub() as served:
        yield served


def test_a_trainer_of_trls_from_one_line_to_a_file_and_a_push(
    notebook: Any, lab: Any, hub: Any, tmp_path: Path
) -> None:
    variables = {**walk.environment(hub, tmp_path), "NBTUNE_LLAMA_LIB": str(llama_library())}
    first = TRAINER.replace("VARIABLES", repr(variables)).replace("STEPS", str(STEPS))
    page = notebook([first, WATCH, TRAIN, SAID], width=1400)
    for cell in (0, 1):
        page.run(cell)
    monitor = page.page.locator(".nbt-monitor")
    page.run(2, wait=False)
    page.page.wait_for_function("() => Number(document.querySelector('.nbt-monitor')?.dataset.points) >= 3")
    page.save()
    page.load()  # while it trains
    monitor.locator(walk.FINISHED).wait_for(timeout=walk.WORK)
    page.run(3)
    assert page.output(3).strip() == "True"  # a point is what the trainer has logged

    def complete() -> None:
        monitor.scroll_into_view_if_needed()  # nothing is drawn where nobody looks
        page.page.wait_for_function("(n) => document.querySelector('.nbt-monitor').dataset.points == n", arg=str(STEPS))
        expect(monitor.locator(walk.FINISHED)).to_be_visible()
        monitor.locator(".scatterlayer .trace").first.wait_for(state="attached")
        for words in ("TRL's SFTTrainer", "Who are you?"):
            expect(monitor).to_contain_text(words)
        expect(monitor).not_to_contain_text("No rows were held out")  # its trainer has measured some

    complete()
    seen = monitor.inner_text()
    page.picture("watched", monitor)
    page.save()
    page.load()
    complete()
    assert monitor.inner_text() == seen  # each figure, sample and word

    click = walk.Clicks()
    got = walk.download_gguf(page, monitor, tmp_path, click)
    (folder,) = (lab.root / variables["NBTUNE_RUNS"]).glob("run-*")
    (made,) = (folder / "exports").glob("*.gguf")
    assert got == made.read_bytes()
    ids, expected = _by_peft(folder / "adapter")
    with LlamaRunner(made, library=llama_library(), n_ctx=64) as llama:
        logits = llama.logits(ids)[:, : expected.shape[1]]
    assert np.abs(logits - expected).max() < 1.0  # of 8 bits
    assert (logits.argmax(-1) == expected.argmax(-1)).mean() > 0.9

    walk.push(monitor, hub, click)
    page.picture("watched-pushed", monitor)
    card = hub.files("ada/run")["README.md"].decode()
    assert "nbtune/tiny" in card
    assert page.complain(".nbt-monitor") == []


def _by_peft(adapter: Path) -> tuple[list[int], Any]:
    """A prompt's ids, and the logits of base and adapter by transformers and peft alone."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import nbtune

    place = nbtune.models.resolve("nbtune/tiny")
    ids = AutoTokenizer.from_pretrained(place)(PROMPT)["input_ids"]
    base = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
    with torch.no_grad():
        return ids, PeftModel.from_pretrained(base, adapter).eval()(torch.tensor([ids])).logits[0].numpy()
