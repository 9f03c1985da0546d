"""Run folders as this version writes them, for the versions that come: tests/test_older_runs.py reads them all.

    python tests/tools/make_older_run.py [FOLDER]

Makes `format<FORMAT>-sft-stopped.tar.xz` (stopped on the way, to be resumed) and `format<FORMAT>-dpo-finished.tar.xz`
(nbtune 0.1.0 wrote format 1), each with what an uninterrupted run lost and which rows it held out beside the run's
folder. Run it before the format of run folders changes; archives that are there stay.
"""

from __future__ import annotations

import io
import json
import os
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

from baseline import settle
from baseline_rows import pairs, prompts

HERE = Path(__file__).resolve().parents[1] / "older_runs"
SMALL = {"type": "lora", "r": 2, "target_modules": ["q_proj"]}
SPEC = {
    "model": "nbtune/tiny",
    "data": "var:rows",
    "adapter": SMALL,
    "steps": 4,
    "batch_size": 4,
    "learning_rate": 1e-3,
    "device": "cpu",
    "eval": {"split": 0.25, "every": 2},
    "checkpoint": {"every": 2, "keep": 1},
}


def make(target: Path, root: Path) -> None:
    """Both archives, in `target`; the runs are made in `root`."""
    import nbtune
    from nbtune.folder_format import FORMAT

    def begin(name: str, rows: list[dict[str, Any]], **fields: Any) -> Any:
        return nbtune.finetune({**SPEC, **fields}, name=name, rows={"rows": rows}, runs_dir=root / "runs")

    more = {"samples": ["Who are you?"]}
    whole = begin("whole", prompts(16), **more).wait()
    stopped = begin("sft", prompts(16), **more)
    while stopped.alive and stopped.step < 1:
        time.sleep(0.005)
    stopped.stop(wait=True)
    if stopped.state != "stopped":
        raise SystemExit(f"{stopped!r} was too quick to be stopped: try again")
    finished = begin("dpo", pairs(16), method="dpo").wait()
    for run, kind, expected in ((stopped, "sft-stopped", whole), (finished, "dpo-finished", finished)):
        file = target / f"format{FORMAT}-{kind}.tar.xz"
        if file.exists():
            print(f"{file.name} is there already", file=sys.stderr)
            continue
        losses = [float(loss) for loss in expected.history["loss"]]
        write(file, run.folder, {"losses": losses, "held_out": held_out(run)})
        print(f"{file.name}: {file.stat().st_size:,} bytes, {run!r}")


def held_out(run: Any) -> list[int]:
    """The numbers of the rows that a run holds out, each once, as its engine prepares them."""
    from nbtune import data, models

    sources, tokenizer = data.open_snapshot(run.folder / "data"), models.load_tokenizer(run.spec.model)
    held = data.prepare_data(sources, tokenizer, spec=run.spec, max_len=512, seed=run.spec.seed).eval
    return [] if held is None else sorted(set(held.row_of.tolist()))


def write(file: Path, folder: Path, expected: dict[str, Any]) -> None:
    """An archive of a run's folder and of `expected.json`, without owners and times."""
    with tarfile.open(file, "w:xz", preset=9) as archive:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            _add(archive, f"{folder.name}/{path.relative_to(folder).as_posix()}", path.read_bytes())
        _add(archive, "expected.json", json.dumps(expected).encode())


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


if __name__ == "__main__":
    target = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else HERE
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="nbtune-older-", ignore_cleanup_errors=True) as place:
        settle(Path(place).resolve())
        make(target, Path(place).resolve())
        os.chdir(target)
