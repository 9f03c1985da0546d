"""What a newcomer does, in whatever versions this python has: a cell, a chat, exports; a line for each that is done.

Run by `tests/test_versions.py` in environments of their own, where there is no pytest.
"""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

CELL = """data: nbtune/json-answers
steps: 3
batch_size: 2
sequence_len: 256
eval: {split: 0.1, max_rows: 4}
samples: ["Two teas, please."]
"""
PAIRS = [{"prompt": "Hi", "chosen": "Ahoy!", "rejected": f"Hello {number}."} for number in range(8)]


def main() -> None:
    """Do it all in an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["NBTUNE_RUNS"] = str(Path(folder) / "runs")
        os.environ["IPYTHONDIR"] = str(Path(folder) / "ipython")
        shell = _shell()
        run = _cell(shell)
        _chat(run)
        _exports(run, Path(folder))
        _methods()
        _panels(shell, run)
        os.chdir("/")  # IPython looks at the folder when it ends
    print("all", flush=True)


def _done(what: str) -> None:
    print(what, flush=True)


def _shell() -> Any:
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    config = Config()
    config.HistoryManager.enabled = False
    shell = InteractiveShell.instance(config=config)
    _run(shell, "%load_ext nbtune")
    _done("extension")
    return shell


def _run(shell: Any, cell: str) -> Any:
    done = shell.run_cell(cell)
    done.raise_error()
    return done.result


def _cell(shell: Any) -> Any:
    import nbtune

    _run(shell, f"%%finetune --name first --wait\n{CELL}")
    run = nbtune.attach("first")
    losses = list(run.history["loss"])
    assert run.state == "finished", run.state
    assert len(losses) == 3, losses
    assert all(map(math.isfinite, losses)), losses
    _done("cell")
    return run


def _chat(run: Any) -> None:
    run.free()
    said = run.generate("Two teas, please.", max_new_tokens=8)
    assert isinstance(said, str)
    _done("chat")


def _exports(run: Any, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    merged = run.export.merged(folder / "merged").path
    model, tokenizer = AutoModelForCausalLM.from_pretrained(merged), AutoTokenizer.from_pretrained(merged)
    ids = tokenizer("Two teas", return_tensors="pt")
    assert model(**ids).logits.isfinite().all()
    _done("merged")
    adapter = run.export.adapter(folder / "adapter").path
    assert json.loads((adapter / "adapter_config.json").read_text())["peft_type"] == "LORA"
    _done("adapter")
    files = run.export.gguf("q8_0", "q4_k_m", out=folder / "gguf", verify=False)
    assert all(file.path.stat().st_size > 1 << 20 for file in files)
    _done("gguf")


def _methods() -> None:
    import nbtune

    common: dict[str, Any] = {"steps": 2, "batch_size": 2, "eval": {"split": 0}}
    dpo = nbtune.finetune(data=PAIRS, method="dpo", name="dpo", **common).wait()
    assert abs(dpo.history["loss"].iloc[0] - math.log(2)) < 1e-3
    _done("dpo")
    rows = [{"prompt": "Hi", "completion": "Ahoy!"}] * 8
    for name, fields in {
        "packed": {"packing": "auto"},
        "full": {"adapter": {"type": "full"}},
        "nf4": {"adapter": {"type": "qlora"}},
        "dora": {"adapter": {"type": "dora"}, "accelerate": False},
    }.items():
        run = nbtune.finetune(data=rows, name=name, **common, **fields).wait()
        assert run.state == "finished", (name, run.error)
        _done(name)


def _panels(shell: Any, run: Any) -> None:
    from nbtune.spec import from_yaml
    from nbtune.widgets import chat, exporter

    for cell in ("%finetune", f"%%nbtune plan\n{CELL}", "%nbtune runs", "%nbtune attach first"):
        _run(shell, cell)
    _run(shell, "%nbtune chat first --prompt Hello")  # its panel wants a page, which a plain shell has not
    assert from_yaml(CELL).steps == 3
    assert [panel(run).panel for panel in (exporter, chat)] == ["export", "chat"]
    _done("panels")


if __name__ == "__main__":
    main()
    sys.exit(0)
