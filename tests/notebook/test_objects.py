"""A model and a tokenizer of the notebook in a cell, by their variables' names."""

from __future__ import annotations

from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer

import nbtune
from tests.notebook.test_completion import complete

BODY = "model: my_model\ntokenizer: my_tokenizer\ndata: rows\nsteps: 1\n"


def test_a_cell_names_what_is_loaded(shell: Any) -> None:
    place = nbtune.models.resolve("nbtune/tiny")
    shell.user_ns |= {
        "my_model": AutoModelForCausalLM.from_pretrained(place),
        "my_tokenizer": AutoTokenizer.from_pretrained(place),
        "rows": [{"prompt": f"How much is {n}?", "completion": str(n)} for n in range(9)],
    }
    shell.run_cell_magic("nbtune", "plan", BODY)
    shell.run_cell_magic("finetune", "--name mine --wait", BODY)
    run = shell.user_ns["run"]
    assert (run.state, run.spec.model, run.spec.tokenizer) == ("finished", "var:my_model", "var:my_tokenizer")
    shell.run_cell_magic("nbtune", "validate", run.yaml())
    assert complete(shell, "%%finetune\nmodel: my|") == ["%%finetune\nmodel: my_model"]
    assert complete(shell, "%%finetune\ntokenizer: my|") == ["%%finetune\ntokenizer: my_tokenizer"]
