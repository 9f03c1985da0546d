"""Which rate a task wants: the held-out loss of the plan's own defaults beside those of a small grid, at equal steps.

    python tests/tools/calibrate.py run /tmp/tiny.json --tasks town,labels --rows 32,400
    python tests/tools/calibrate.py run /tmp/smol.json --model FOLDER --rows 150 --steps 40
    python tests/tools/calibrate.py table /tmp/tiny.json [/tmp/smol.json …]

Each cell is a run through `nbtune.finetune`, measured on 32 rows that no run trains on. What is there already is not
run again, so that a long calibration may be broken off. `table` prints the rows of docs/explanation/defaults.md.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]
FACTORS = (0.1, 0.32, 1.0, 3.2)  # of the plan's own rate: half a decade apart
HELD_OUT = 32
GOOD = 1.05  # the defaults' held-out loss is at most this, where the best of the grid is 1
_ORCHARD = {
    "fruit": ("apple", "pear", "plum", "cherry", "lemon", "melon"),
    "tool": ("hammer", "saw", "rake", "shovel", "knife", "ladder"),
    "animal": ("cat", "dog", "horse", "goat", "duck", "sheep"),
}


def _embedded(name: str) -> Rows:
    from nbtune.data.sources import builtin

    with builtin.path(f"nbtune/{name}").open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _labels() -> Rows:
    """Return sentences with the kind of thing that they name."""
    draw = random.Random(7)
    rows = []
    for _ in range(500):
        kind = draw.choice(list(_ORCHARD))
        first, second = draw.sample(_ORCHARD[kind], 2)
        place, number = draw.choice(["house", "market", "garden", "mill"]), draw.randint(2, 99)
        rows.append({"prompt": f"By the {place}: {number} times {first}, and a {second}. Which?", "completion": kind})
    return rows


def _spoken() -> Rows:
    """Return orders in one line, as the fields of a form."""
    draw, names, rows = random.Random(8), ("Anna", "Ben", "Clara", "Otto", "Ruth"), []
    for _ in range(500):
        name, count, things = draw.choice(names), draw.randint(2, 40), draw.choice([*_ORCHARD["fruit"]])
        day = draw.choice(["Monday", "Tuesday", "Friday", "Sunday"])
        rows.append(
            {
                "prompt": f"{name} wants {count} of the {things} kind for {day}.",
                "completion": f"name: {name}; what: {things}; how many: {count}; when: {day}",
            }
        )
    return rows


def _backwards() -> Rows:
    """Return words to be said in reverse order."""
    draw, words = random.Random(9), [word for kind in _ORCHARD.values() for word in kind]
    lists = [draw.sample(words, draw.randint(3, 5)) for _ in range(500)]
    return [{"prompt": f"Backwards: {' '.join(some)}", "completion": " ".join(some[::-1])} for some in lists]


def _tongue() -> Rows:
    """Return sentences in a language that nobody speaks."""
    draw = random.Random(10)
    words = [word for kind in _ORCHARD.values() for word in kind] + [
        "sees",
        "takes",
        "likes",
        "the",
        "a",
        "small",
        "old",
    ]
    other = {word: "".join(draw.choice(["ka", "lo", "mi", "tu", "re", "so"]) for _ in range(2)) for word in words}
    rows = []
    for _ in range(500):
        some = [
            "the",
            draw.choice(["small", "old"]),
            draw.choice(_ORCHARD["animal"]),
            draw.choice(["sees", "takes", "likes"]),
        ]
        some += ["a", draw.choice(_ORCHARD[draw.choice(["fruit", "tool"])])]
        rows.append({"prompt": f"Translate: {' '.join(some)}", "completion": " ".join(other[word] for word in some)})
    return rows


def _people() -> Rows:
    """Return what is to be known by heart of sixty people, each asked in several ways."""
    draw, rows = random.Random(11), []
    firsts, lasts = (
        ["Nora", "Emil", "Ida", "Karl", "Vera", "Hugo"],
        ["Hill", "Stone", "Brook", "Field", "Marsh", "Wood"],
    )
    for name in (f"{first} {last}" for first in firsts for last in lasts):
        place, thing = draw.choice(["mill", "bakery", "harbour", "school"]), draw.choice(_ORCHARD["animal"])
        for question in ("Where does {} work?", "What is the workplace of {}?", "At what place is {} at work?"):
            rows.append({"prompt": question.format(name), "completion": f"{name} works at the {place}."})
        for question in ("Which animal has {}?", "What does {} keep at home?", "Name the animal of {}."):
            rows.append({"prompt": question.format(name), "completion": f"{name} has a {thing} at home."})
    return rows


def _letters() -> Rows:
    """Return long answers: letters in one house's style."""
    draw, rows = random.Random(12), []
    for _ in range(500):
        name, thing, day = (
            draw.choice(["Anna", "Ben", "Clara"]),
            draw.choice(_ORCHARD["tool"]),
            draw.choice(["Monday", "Friday"]),
        )
        count, late = draw.randint(2, 9), draw.choice(["is on its way", "is late", "was lost"])
        rows.append({
            "prompt": f"Write to {name}: order of {count} {thing}s, {late}, call on {day}.",
            "completion": f"Dear {name},\n\nthank you for your order of {count} {thing}s, which made us all glad. "
            f"We have to tell you that it {late}. You need not do anything: we shall call you on {day} in the morning, "
            f"and until then every {thing} of yours is in good hands.\n\nWarm greetings\nyour toolmakers",
        })  # fmt: skip
    return rows


TASKS: dict[str, Callable[[], Rows]] = {
    "json-answers": lambda: _embedded("json-answers"),
    "persona": lambda: _embedded("persona"),
    "town": lambda: _embedded("town"),
    "labels": _labels,
    "orders": _spoken,
}
OTHERS = {"backwards": _backwards, "tongue": _tongue, "people": _people, "letters": _letters}  # no rule was fitted to


def rows_of(task: str) -> Rows:
    """Return all rows of a task."""
    return (TASKS | OTHERS)[task]()


def split(task: str, count: int) -> tuple[Rows, Rows]:
    """Return so many rows of a task to train on, and others to measure; none of the latter is among all of the task's
    other rows."""
    rows = rows_of(task)
    random.Random(1).shuffle(rows)
    seen: set[str] = set()
    different = [row for row in rows if (key := json.dumps(row)) not in seen and not seen.add(key)]  # type: ignore[func-returns-value]
    return different[HELD_OUT : HELD_OUT + count], different[:HELD_OUT]


def measured(spec: dict[str, Any], train: Rows, held: Rows) -> dict[str, Any]:
    """Return what a run came to: its rate, steps, first and last held-out loss, and whether it diverged."""
    import nbtune

    began = time.monotonic()
    root = Path(tempfile.mkdtemp())
    try:
        named = {"train": train, "held": held}
        body = {"data": "var:train", "eval": {"data": "var:held", "max_rows": HELD_OUT}, "device": "cpu", **spec}
        body["eval"] |= {"every": spec.get("steps") or nbtune.plan(body, rows=named).total_steps}  # once, at its end
        run = nbtune.finetune(body, rows=named, runs_dir=root, name="cell")
        try:
            run.wait()
        except nbtune.errors.NbtuneError as error:
            return {"diverged": True, "why": str(error)[:200], "rate": spec.get("learning_rate")}
        history, plan = run.history, run.plan
        assert plan is not None
        evals = [float(loss) for loss in history["eval_loss"].dropna()]
        losses = [float(loss) for loss in history["loss"]]
        return {
            "rate": plan.learning_rate,
            "steps": plan.total_steps,
            "trained": plan.trainable_parameters,
            "evals": evals,
            "held_out": evals[-1],
            "last": sum(losses[-5:]) / len(losses[-5:]),
            # worse than it began, on what it trains or on what it does not
            "diverged": not math.isfinite(evals[-1]) or losses[-1] > 1.5 * losses[0],
            "seconds": round(time.monotonic() - began, 1),
        }
    finally:
        shutil.rmtree(root, ignore_errors=True)


def cells(arguments: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any], str, int]]:
    """Yield (key, fields of the spec, task, rows) of each cell; the defaults' own first, whose rate and steps the
    others are held to."""
    for task in arguments.tasks.split(","):
        for count in map(int, arguments.rows.split(",")):
            spec: dict[str, Any] = {"model": arguments.model, "adapter": {"type": arguments.adapter}}
            if arguments.steps:
                spec["steps"] = arguments.steps
            if arguments.method != "sft":
                spec["method"] = arguments.method
            name = "tiny" if arguments.model == "nbtune/tiny" else Path(arguments.model).name
            yield f"{name}/{arguments.adapter}/{task}/{count}", spec, task, count


def run(arguments: argparse.Namespace) -> None:
    """Do what is missing of a calibration, one run after another."""
    out = Path(arguments.out)
    found: dict[str, dict[str, Any]] = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    for key, spec, task, count in cells(arguments):
        train, held = split(task, count)
        mine = found.setdefault(key, {})
        for factor in sorted(map(float, arguments.factors.split(",")), key=lambda factor: factor != 1):
            if f"{factor:g}" in mine:
                continue
            asked = dict(spec)
            if factor != 1:
                asked |= {"learning_rate": mine["1"]["rate"] * factor, "steps": mine["1"]["steps"]}
            mine[f"{factor:g}"] = measured(asked, train, held)
            out.write_text(json.dumps(found, indent=1), encoding="utf-8")
            print(key, f"x{factor:g}", {k: v for k, v in mine[f"{factor:g}"].items() if k != "evals"}, flush=True)


def table(files: list[str]) -> str:
    """Return the rows of the page on defaults, as Markdown."""
    lines = [
        "| model, adapter, task, rows | steps | default rate: held-out loss | best of the grid | ratio |",
        "|---|---|---|---|---|",
    ]
    for file in files:
        for key, mine in json.loads(Path(file).read_text(encoding="utf-8")).items():
            own = mine["1"]
            sound = {name: cell for name, cell in mine.items() if not cell["diverged"]}
            if own["diverged"] or not sound:
                lines.append(f"| {key} | – | **diverged** | – | – |")
                continue
            best = min(sound.values(), key=lambda cell: cell["held_out"])
            ratio = own["held_out"] / best["held_out"]
            shown = f"{ratio:.2f}" if ratio <= GOOD else f"**{ratio:.2f}**"
            lines.append(
                f"| {key.replace('/', ', ')} | {own['steps']} | {own['rate']:.2g}: {own['held_out']:.3f} "
                f"| {best['rate']:.2g}: {best['held_out']:.3f} | {shown} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    doing = commands.add_parser("run")
    doing.add_argument("out")
    doing.add_argument("--model", default="nbtune/tiny")
    doing.add_argument("--adapter", default="lora")
    doing.add_argument("--method", default="sft")
    doing.add_argument("--tasks", default=",".join(TASKS))
    doing.add_argument("--rows", default="32,400")
    doing.add_argument("--steps", type=int, default=0)
    doing.add_argument("--factors", default=",".join(f"{factor:g}" for factor in FACTORS))
    showing = commands.add_parser("table")
    showing.add_argument("files", nargs="+")
    arguments = parser.parse_args()
    if arguments.command == "run":
        run(arguments)
    else:
        print(table(arguments.files))


if __name__ == "__main__":
    main()
