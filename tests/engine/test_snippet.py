"""The lines of `run.snippet()` and of a card, executed by stock transformers and peft: they are of what was trained."""

from __future__ import annotations

import ast
import contextlib
import io
from pathlib import Path
from typing import Any

import pytest
import torch

import nbtune

IDS = torch.tensor([[5, 70, 300, 12, 44, 499, 33, 7]])
TEXTS = [{"text": f"It was {word}, number {i}.", "label": word} for i in range(3) for word in ("bad", "good")]
TAGGED = [{"tokens": [who, "sails", "home"], "tags": ["PER", "O", "O"]} for who in ("Ada", "Bo", "Clara", "Otto")]
PAIRS = [{"prompt": f"Who is {i}?", "chosen": "Ahoy!", "rejected": f"Nobody, {i}."} for i in range(6)]
SCORED = {"reward": PAIRS, "classification": TEXTS, "token_classification": TAGGED}
ROWS = [{"prompt": f"Who is number {i}?", "completion": f"Aye, {i}."} for i in range(6)]


def executed(code: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(code, "snippet", "exec"), names)  # noqa: S102 — our own lines
    return names


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.float().eval()(input_ids=IDS).logits


@pytest.mark.parametrize("method", ["sft", "classification"])
def test_of_all_weights_it_opens_the_folder_that_holds_them(method: str, start: Any, tmp_path: Path) -> None:
    """There is no adapter to put onto a base."""
    rows = ROWS if method == "sft" else TEXTS
    run = start(rows=rows, method=method, adapter={"type": "full"}, steps=2, batch_size=2, eval={"split": 0}).wait()
    names = executed(run.snippet())
    assert "base" not in names
    merged = executed(run.snippet().replace(str(run.folder / "adapter"), str(run.export.merged(tmp_path / "m").path)))
    torch.testing.assert_close(logits(names["model"]), logits(merged["model"]))
    assert names["tokenizer"]("Aye").input_ids == merged["tokenizer"]("Aye").input_ids


def test_of_a_gguf_file_it_says_so(start: Any, tmp_path: Path) -> None:
    first = start(rows=ROWS, steps=1, batch_size=2, eval={"split": 0}).wait()
    (file,) = first.export.gguf("f16", out=tmp_path, verify=False)
    run = start(rows=ROWS, model=str(file.path), steps=2, batch_size=2, eval={"split": 0}).wait()
    expected = logits(executed(run.snippet())["model"])
    own = nbtune.models.load_model(
        run.export.merged(tmp_path / "m", dtype="float32").path, dtype=torch.float32, device="cpu"
    )
    torch.testing.assert_close(expected, logits(own), rtol=1e-3, atol=1e-3)
    line = f'base = AutoModelForCausalLM.from_pretrained(".", gguf_file="{file.path.name}", dtype="auto")'
    assert line in run.model_card("ada/demo").splitlines()


@pytest.mark.parametrize("method", ["reward", "classification", "token_classification"])
def test_what_a_card_shows_of_scores_is_what_the_run_says(method: str, start: Any, tmp_path: Path) -> None:
    """With the labels' names, which no base knows; of a reward model an answer, as it learnt from answers."""
    run = start(rows=SCORED[method], method=method, steps=4, batch_size=4, dtype="fp32", eval={"split": 0}).wait()
    for kind in ("adapter", "merged"):
        folder = getattr(run.export, kind)(tmp_path / kind).path
        code = run.model_card("ada/demo", what=kind).split("```python\n", 1)[1].split("\n```", 1)[0]
        code = code.replace('"ada/demo"', repr(str(folder))).replace('dtype="auto"', 'dtype="float32"')
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            names = executed(code)
        shown = said.getvalue().strip().splitlines()
        if method == "reward":
            (expected,) = run.score([names["chat"]])
            assert float(shown[0]) == pytest.approx(expected["reward"], abs=5e-3)
        elif method == "classification":
            assert ast.literal_eval(shown[0]) == pytest.approx(run.score(["Hello"])[0], abs=5e-3)
        else:
            assert "lines" in names, code
            words = names["lines"]
            assert [line.partition(" ")[0] for line in shown] == words
            for line, expected in zip(shown, run.score([words])[0], strict=True):
                assert ast.literal_eval(line.partition(" ")[2]) == pytest.approx(expected, abs=5e-3)
