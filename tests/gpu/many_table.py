"""The rows of `bench_many.py` as the tables of docs/speed.md: `python tests/gpu/many_table.py ROWS.jsonl`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

Rows = dict[str, dict[str, Any]]


def read(path: Path) -> Rows:
    """The rows by name; of two the last that holds figures."""
    found: Rows = {}
    for line in path.read_text().splitlines():
        row = json.loads(line) if line.startswith("{") else {}
        if "row" in row and "failed" not in row:
            found[f"{row['row']}-on-{row['resumed_on']}" if "resumed_on" in row else row["row"]] = row
    return found


def apart(one: dict[str, Any], many: dict[str, Any]) -> str:
    """How far the losses of one row are from another's."""
    both = [abs(x - y) for x, y in zip(one["losses"], many["losses"], strict=False)]
    return f"{sum(both) / len(both):.5f}, {max(both):.5f}"


def line(*cells: Any) -> None:
    print(f"| {' | '.join(str(cell) for cell in cells)} |")


def figures(rows: Rows, name: str, title: str, base: str) -> None:
    """One line: what a row did, beside as many of the base row."""
    if name not in rows:
        return line(title, *["not measured"] * 5)
    row, one = rows[name], rows.get(base, {})
    speed = row["tok_s"]
    share = f"{speed / one['tok_s'] / (row['gpus'] / one['gpus']):.1%}" if one and name != base else ""
    times = f"{speed / one['tok_s']:.2f} ×" if one and name != base else ""
    held = (
        f"{row['allocated_gib']} / {max(row.get('peaks_gib') or [row['peak_gib']])}"
        if "allocated_gib" in row
        else row["peak_gib"]
    )
    return line(title, f"{row['step_s']} s", f"{speed:,}", f"{times} {share}".strip(), held, row.get("activations", ""))


def main(path: Path) -> None:
    rows = read(path)
    line("8B, 2,048 tokens a row", "step", "tokens/s", "of one GPU's", "GiB held / peak", "activations")
    line(*["---"] * 6)
    for count in (1, 2, 4):
        figures(rows, f"lora-{count}", f"LoRA, 16 rows a step, {count} GPU", "lora-1")
    for count in (2, 4):
        figures(rows, f"parted-{count}", f"LoRA, weights parted, 16 rows, {count} GPU", "lora-1")
    for count in (1, 2):
        figures(rows, f"dpo-{count}", f"DPO, 4 pairs of 1,024 a GPU, {count} GPU", "dpo-1")
    for name in ("full-2", "stock-2", "stock-2-checkpointing", "full-4", "stock-4", "stock-4-checkpointing"):
        if name in rows:
            figures(rows, name, name, "")
    print()
    line("70B shape, 1 × 2,048 a GPU", "step", "tokens/s", "of one GPU's", "GiB held / peak", "activations")
    line(*["---"] * 6)
    for name in ("qlora-70b-1", "qlora-70b-2", "lora-70b-2", "lora-70b-4"):
        figures(rows, name, name, "qlora-70b-1" if "qlora" in name else "lora-70b-2")
    print()
    for name in ("lora-2", "lora-4", "parted-2", "parted-4"):
        if name in rows and "lora-1" in rows:
            print(f"{name}: losses apart from one GPU's (mean, most): {apart(rows['lora-1'], rows[name])}")
    for name, row in rows.items():
        if "resumed_on" in row:
            print(f"{name}: {row['state']}, most apart {row['most_apart']}")
        if name.startswith("links"):
            print(json.dumps(row))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
