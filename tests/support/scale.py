"""The table of docs/explanation/scale.md, reckoned: `python -m tests.support.scale` writes it there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from nbtune.data.prepare.stats import DataFacts
from nbtune.device import machine
from nbtune.engine.planned import spread_out
from nbtune.errors import PlanError
from nbtune.models.config_facts import ModelFacts
from nbtune.planner import make_plan
from nbtune.spec import from_mapping

PAGE = Path(__file__).parents[2] / "docs" / "explanation" / "scale.md"
_SHAPES = {"8B": (4096, 14336, 32, 32, 8_030_261_248), "70B": (8192, 28672, 80, 64, 70_553_706_496)}
_WORK: dict[str, tuple[str, int, dict[str, Any]]] = {
    "8B, LoRA": ("8B", 4, {"adapter": "lora"}),
    "8B, full": ("8B", 4, {"adapter": "full", "weights": "sharded"}),
    "70B, LoRA, parted": ("70B", 4, {"adapter": "lora", "weights": "sharded"}),
    "70B, full": ("70B", 4, {"adapter": "full", "weights": "sharded"}),
}
_COUNTS = (4, 8, 16, 64, 256, 1024)


def model(shape: str) -> ModelFacts:
    """Return the facts of a Llama of that size."""
    names = ("hidden_size", "intermediate_size", "num_layers", "num_heads", "parameters")
    facts: dict[str, Any] = dict(zip(names, _SHAPES[shape], strict=True))
    rest = {"num_kv_heads": 8, "head_dim": 128, "vocab_size": 128256, "tied": False, "max_position": 131072}
    size = {"weights_bytes": 2 * facts["parameters"], "dtype": "bfloat16"}
    return ModelFacts(name=shape, architecture="LlamaForCausalLM", **facts, **rest, **size)


def cell(work: str, count: int, network: float | None = None) -> str:
    """Return what a table says of some work on so many H200, eight a machine."""
    shape, rows, fields = _WORK[work]
    device = machine(f"{min(count, 8)}xh200", nodes=-(-count // 8), network=network)
    body = {
        "data": "rows",
        "gpus": "all",
        "learning_rate": 1e-5,
        "sequence_len": 2048,
        "micro_batch_size": rows,
        **fields,
    }
    data = DataFacts(rows=10**6, tokens_total=2048 * 10**6, trained_tokens=2048 * 10**6, longest=2048)
    facts = model(shape)
    try:
        plan = make_plan(from_mapping({**body, "batch_size": rows * count}), facts, data, device, devices=count)
    except PlanError:
        return "does not fit"
    found = spread_out(plan, facts, device, device.count).spread
    assert found is not None
    return f"{plan.peak_bytes / 2**30:.0f} GiB, {found.seconds:.2g} s, {found.share:.0%}"


def table() -> str:
    """Return it as Markdown."""
    head = ["", *(f"{count:,} GPUs" for count in _COUNTS)]
    lines = [head, ["---"] * len(head)]
    lines += [[name, *(cell(name, count) for count in _COUNTS)] for name in _WORK]
    slow = [cell("8B, LoRA", count, 100) if count > 8 else "" for count in _COUNTS]
    slower = [cell("8B, full", count, 100) if count > 8 else "" for count in _COUNTS]
    lines += [["8B, LoRA; 100 Gbit a machine", *slow], ["8B, full; 100 Gbit a machine", *slower]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def written(text: str) -> str:
    """Return the page with the table in it."""
    return re.sub(r"(?<=<!-- table -->\n).*?(?=\n<!-- end -->)", lambda _: table(), text, flags=re.S)


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
