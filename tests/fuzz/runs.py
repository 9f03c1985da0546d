"""Folders of runs: each of their files damaged, replaced, or gone."""

from __future__ import annotations

import contextlib
import io
import json
import random
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import nbtune
from nbtune.cli import main
from nbtune.errors import NbtuneError
from tests.fuzz.cases import BUG, Case, Silent
from tests.fuzz.values import mangled, odd

ROWS = [{"prompt": f"Say {k}", "completion": f"{k}, as you wish."} for k in range(6)]
SPEC = {"model": "nbtune/tiny", "data": "rows", "steps": 2, "batch_size": 2, "adapter": {"r": 2}, "eval": {"split": 0},
        "checkpoint": {"every": 1}}  # fmt: skip


@cache
def good() -> Path:
    """Return the folder of a run of two steps."""
    place = Path(mkdtemp(prefix="nbtune-fuzz-"))
    return nbtune.finetune(SPEC, rows={"rows": ROWS}, runs_dir=place, name="good").wait().folder


def make(chance: random.Random, folder: Path) -> Case:
    place = folder / "runs" / good().name
    shutil.copytree(good(), place)
    shutil.copytree(good(), folder / "runs" / "other-aaaaaa")
    file = chance.choice(sorted(path for path in place.rglob("*") if path.is_file()))
    said = str(file.relative_to(place))
    pick = chance.random()
    if pick < 0.1:
        file.unlink()
        said += " is gone"
    elif pick < 0.45 and file.suffix in (".json", ".jsonl"):
        said += f": {_values(chance, file)}"
    else:
        data = mangled(chance, file.read_bytes())
        file.write_bytes(data)
        said += f": {data[:300]!r}"
    doings = [_look, *([_export] if chance.random() < 0.5 else []), *([_resume] if chance.random() < 0.25 else [])]
    return Case(lambda: attempt(folder / "runs", place, doings), said)


def _values(chance: random.Random, file: Path) -> str:
    """One value of one of its objects is another."""
    lines = file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]
    at = chance.randrange(len(lines))
    value: Any = json.loads(lines[at])
    if not isinstance(value, dict) or not value:
        value = odd(chance)
    else:
        value[chance.choice(list(value))] = odd(chance)
    lines[at] = json.dumps(value)
    file.write_text("\n".join(lines) + "\n")
    return lines[at][:300]


def attempt(runs: Path, place: Path, doings: list[Callable[[Path, Path], None]]) -> None:
    """Do with it what people do: list, open, draw, ask, export, resume. The sound one beside it is always listed."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
        code = main(["runs", "--runs", str(runs)])
    if code != 0 or "Traceback" in shown.getvalue() or "other-aaaaaa" not in shown.getvalue():
        raise Silent(f"`nbtune runs` ended with {code}: {shown.getvalue()[-600:]}")
    errors: list[NbtuneError] = []
    for what in doings:
        try:
            what(runs, place)
        except NbtuneError as error:
            if BUG in str(error):
                raise
            errors.append(error)
    if errors:
        raise errors[0]


def _look(runs: Path, place: Path) -> None:
    run = nbtune.attach(place.name, runs_dir=runs)
    str(run), repr(run), run.state, run.history, run.plan, run.spec
    run._repr_html_()
    list(run.events())
    run.figure()


def _export(runs: Path, place: Path) -> None:
    nbtune.attach(place.name, runs_dir=runs).export.adapter()


def _resume(runs: Path, place: Path) -> None:
    nbtune.attach(place.name, runs_dir=runs).resume(step=1).wait().free()
