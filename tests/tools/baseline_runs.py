"""The runs of the baseline: short ones on the CPU, through `nbtune.finetune` alone, and what is kept of them."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

from baseline_rows import EXAMPLES, ROW_WEIGHTS, Rows, feedback, pairs, prompts

COLUMNS = ("loss", "grad_norm", "learning_rate", "tokens", "trained_tokens", "epoch", "eval_loss")
ROWS: dict[str, Callable[[int], Rows]] = {
    "sft": prompts,
    **dict.fromkeys(("dpo", "ipo", "orpo", "simpo"), pairs),
    "kto": feedback,
}
ADAPTERS: dict[str, Any] = {
    "lora": {"type": "lora", "r": 4},
    "dora": {"type": "dora", "r": 4},
    "qlora": {"type": "qlora", "r": 4},
    "full": {"type": "full"},
}
ENOUGH_TO_CACHE = 2000  # rows from which prepared data is kept on disk
BIG = 20_000  # rows from which a run begins before all are prepared


def _finetune(root: Path, name: str, rows: Rows | None = None, *, wait: bool = True, **fields: Any) -> Any:
    """A run of five steps, unless `fields` say otherwise, without held-out rows; with `wait` it has ended."""
    import nbtune

    body = {"steps": 5, "batch_size": 4, "micro_batch_size": 2, "learning_rate": 2e-3, "device": "cpu", "seed": 1}
    body |= {"eval": {"split": 0}, "data": "var:rows", **fields}
    run = nbtune.finetune(body, name=name, rows={"rows": rows}, runs_dir=root / "runs")
    return run.wait() if wait else run


def losses(root: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Name of each run → what its steps were. The runs' folders are in `root/runs`."""
    found = {}
    for name, train in {**_plain_runs(root), **_special_runs(root)}.items():
        began = time.monotonic()
        found[name] = _kept(train())
        say(f"  {name} ({time.monotonic() - began:.1f} s)")
    return found


def _plain_runs(root: Path) -> dict[str, Callable[[], Any]]:
    """Methods with the adapters that they take, packed and not, two seeds by turns; ipo is dpo but for its last line,
    simpo differs from orpo by no more, so that each of them is not run with every adapter again."""
    found: dict[str, Callable[[], Any]] = {}
    for k, (method, adapter, packing) in enumerate(product(ROWS, ADAPTERS, (False, True))):
        if (adapter == "full" and method in ("dpo", "kto")) or (adapter != "lora" and method == "ipo"):
            continue  # dpo, ipo and kto compare with the model without its adapter: there must be one
        if adapter in ("dora", "qlora") and method == "simpo":
            continue
        seeds = (1, 2) if method == "sft" and adapter == "lora" else (1 + (k // 2 + packing) % 2,)
        for seed in seeds:
            name = f"{method}-{adapter}{'-packed' * packing}-seed{seed}"
            fields = {"method": method, "adapter": ADAPTERS[adapter], "packing": packing, "seed": seed}
            fields |= {"learning_rate": 2e-4} if adapter == "full" else {}
            found[name] = lambda name=name, method=method, fields=fields: _finetune(  # type: ignore[misc]
                root, name, ROWS[method](24), **fields
            )
    return found


def _special_runs(root: Path) -> dict[str, Callable[[], Any]]:
    """Stopped and resumed, begun from another's weights, of several processes, mixed, weighed, measured, big."""

    def stopped() -> Any:
        run = _finetune(root, "stopped", prompts(24), wait=False, steps=8, packing=True, seed=2)
        while run.alive and run.step < 2:
            time.sleep(0.01)
        run.stop(wait=True)
        return run.resume(**({"step": 8} if run.state == "finished" else {})).wait()

    def gone_back() -> Any:
        run = _finetune(root, "gone-back", pairs(24), method="dpo", checkpoint={"every": 2, "keep": 9})
        return run.resume(step=2).wait()

    def mixed() -> Any:
        one, two = root / "one.jsonl", root / "two.jsonl"
        _write(one, prompts(12))
        _write(two, EXAMPLES["messages"][0] * 4)
        data = [{"source": str(one), "weight": 2.0}, {"source": str(two), "weight": 1.0}]
        own = root / "own.jsonl"
        _write(own, prompts(40)[30:])
        return _finetune(
            root,
            "mixed",
            data=data,
            mix={"by": "tokens"},
            eval={"data": str(own), "every": 2},
            samples=["Who are you?"],
            checkpoint={"every": 2},
        )

    def big() -> Any:
        _write(root / "big.jsonl", prompts(BIG))
        return _finetune(root, "big", data=str(root / "big.jsonl"), packing=True)

    lora = {"type": "lora", "r": 4, "alpha": 8, "dropout": 0.1, "target_modules": ["q_proj", "v_proj"]}
    weights = {**ROW_WEIGHTS, "r000000000000": 2.0}  # the last of no row: the run warns
    return {
        "stopped-and-resumed": stopped,
        "gone-back-and-resumed": gone_back,
        "start-from": lambda: _finetune(
            root, "start-from", prompts(16), adapter=ADAPTERS["lora"], start_from="sft-lora-seed1", order="short_first"
        ),
        "two-processes": lambda: _finetune(root, "two-processes", prompts(24), gpus=2, micro_batch_size=None),
        "mixed-and-measured": mixed,
        "some-modules": lambda: _finetune(
            root, "some-modules", prompts(24), adapter=lora, order="bucketed", row_weights=weights, weight_decay=0.1
        ),
        "held-out": lambda: _finetune(root, "held-out", prompts(48), eval={"split": 0.25, "every": 2}),
        "recompute-bf16": lambda: _finetune(root, "recompute-bf16", prompts(24), dtype="bf16", activations="recompute"),
        "big-data": big,
    }


def _kept(run: Any) -> dict[str, Any]:
    """The columns of its history, floats as hexadecimal digits; the digest of what was learnt; what was answered."""
    history = run.history
    kept: dict[str, Any] = {"state": run.state, "steps": [int(step) for step in history.index]}
    for column in COLUMNS:
        kept[column] = [float(value).hex() for value in history[column]]
    lines = _lines(run.folder)
    kept["samples"] = [[line["step"], line["prompt"], line["answer"]] for line in lines if line["type"] == "sample"]
    kept["evals"] = [[line["step"], float(line["loss"]).hex()] for line in lines if line["type"] == "eval"]
    kept["weights"] = _digest_of_tensors(run.folder / "adapter")
    return kept


def _digest_of_tensors(folder: Path) -> str:
    """Of the names and numbers in all its safetensors files, whatever else stands in their heads."""
    from safetensors import safe_open

    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in sorted(tensors.keys()):
                tensor = tensors.get_tensor(name)
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.float().numpy().tobytes())
    return digest.hexdigest()


def _lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()]


def event_records(runs: Path) -> dict[str, Any]:
    """The types of the records in the runs' events.jsonl, each with its fields; and what files a run's folder has."""
    import nbtune

    records: dict[str, set[str]] = {}
    next(run for run in nbtune.runs(runs) if run.name == "start-from").export.adapter()  # which says so in its log
    for folder in sorted(runs.iterdir()):
        for line in _lines(folder):
            records.setdefault(line["type"], set()).update(line)
    files = sorted(path.name for path in next(runs.glob("mixed-*")).iterdir())
    return {"records": {name: sorted(fields) for name, fields in sorted(records.items())}, "folder": files}


def take_home(root: Path) -> dict[str, str]:
    """Digests of what a run's exports are: merged, as GGUF, the adapter alone."""
    import nbtune

    run = next(run for run in nbtune.runs(root / "runs") if run.name.startswith("sft-dora-seed"))
    run.export.merged()
    run.export.gguf("q8_0", verify=False)
    merged = next(path.parent for path in (run.folder / "exports").rglob("*.safetensors"))
    found = {"run merged": _digest_of_tensors(merged)}
    for file in sorted((run.folder / "exports").rglob("*.gguf")):
        found[f"run {file.name.rsplit('-', 1)[-1]}"] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def _write(file: Path, rows: Rows) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def arrays_of_example(root: Path, name: str, rows: Rows, fields: dict[str, Any]) -> dict[str, Any]:
    """What a run makes of a format's rows, from the cache of prepared data, which keeps what has many rows.

    Each row is repeated, so that there are enough; of each array the digest, and its beginning to look at.
    """
    import numpy as np

    from nbtune.errors import NbtuneError

    cache = root / "cache" / "prepared"
    before = set(cache.glob("*"))
    file = root / f"{name}.jsonl"
    _write(file, (rows * ENOUGH_TO_CACHE)[: ENOUGH_TO_CACHE + len(rows)])
    more = {key: value for key, value in fields.items() if key != "source"}
    data = {"source": str(file), **fields.get("source", {})}
    found: dict[str, Any] = {}
    try:
        _finetune(root, f"prepare-{name}", data=data, steps=1, **more)
    except NbtuneError as error:
        found["error"] = str(error).replace(str(root), "")  # a row that is refused must be refused still
    for path in sorted(path for folder in set(cache.glob("*")) - before for path in folder.glob("*.npy")):
        array = np.load(path)
        digest = hashlib.sha256(f"{array.dtype} {array.shape}".encode() + array.tobytes()).hexdigest()
        found[path.stem] = {"sha256": digest, "begins": repr(array[:60].tolist())}
    return found
