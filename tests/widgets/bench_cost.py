"""What a run's events cost the thread that trains: `python tests/widgets/bench_cost.py [--rounds 30]`.

A thread of a real kernel makes steps of 10 ms (products of small matrices: a hundred times a step it lets go of
Python's lock and wants it back), in blocks of half a second. Kinds of block take turns, so that what else the machine
does falls on all of them:

nothing   no events, nobody listens
again     the same once more: what two equal blocks differ by is the error of the figures
events    20 events a second are written
watched   the same, and a monitor listens whose page is seen: messages go out over a real comm
unseen    the same, and nobody sees the page

There is no browser: what it paints is its own processor's time, not the trainer's. Prints one line of JSON, medians
over rounds, in percent:

clock      how much longer a block took than the block "nothing" of its round (the middle half of the rounds beside it)
waiting    of a block, the time in which the thread was not on a processor, less the same of "nothing"
others     of one core, what all other threads of the kernel used: no more than that can Python's lock be theirs
writing    of a block, the processor time of writing its events
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "notebook"))

from kernel import Kernel

KINDS = ("nothing", "again", "events", "watched", "unseen")
SETUP = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
import itertools, json, threading, time
from pathlib import Path
import numpy as np
from memory_run import made_up_step
from nbtune import events as ev
from nbtune.spec import RunSpec
from nbtune.store import folder
from nbtune.store.event_log import EventWriter
from nbtune.store.lock import Ownership
from nbtune.store.run_reader import RunReader
from nbtune.widgets import monitor
made = folder.create(Path("runs"), "bench", RunSpec(data="rows"))
owner = Ownership(made).__enter__()
write = EventWriter(made / "events.jsonl")
write(ev.State(state="running", total_steps=100_000))
run = RunReader(made)
a = np.random.rand(120, 120)
def products(count):
    for _ in range(count):
        a @ a
def timed():
    began = time.perf_counter()
    products(500)
    return (time.perf_counter() - began) / 500
each = round(0.01 / min(timed() for _ in range(20)))
numbers = itertools.count(1)
def block(events):
    wrote = 0.0
    wall, mine, all_ = time.perf_counter(), time.thread_time(), time.process_time()
    for k in range(50):
        products(each)
        if events and k % 5 == 0:
            event, at = made_up_step(next(numbers), 100_000), time.thread_time()
            write(event)
            wrote += time.thread_time() - at
    mine, all_ = time.thread_time() - mine, time.process_time() - all_
    wall = time.perf_counter() - wall
    return wall, 1 - mine / wall, (all_ - mine) / wall, wrote / wall
panel = monitor(run)
def see(seen):
    panel._hear(panel, {{"t": "seen", "seen": seen}}, [])
def one(name):
    if name in ("watched", "unseen"):
        panel._watched.listen(panel._tell)
        see(name == "watched")
    else:
        panel._watched._remove()
    time.sleep(0.4)
    found.setdefault(name, []).append(block(name not in ("nothing", "again")))
found = {{}}
def work(rounds, kinds):
    for k in range(rounds):
        for name in kinds[k % len(kinds):] + kinds[:k % len(kinds)]:
            one(name)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--kinds", nargs="*", default=KINDS)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Kernel(Path(folder)) as kernel:
        reply = kernel.run(SETUP)
        assert reply.status == "ok", reply.text
        kernel.run(
            f"thread = threading.Thread(target=work, args=({asked.rounds}, {list(asked.kinds)})); thread.start()"
        )
        reply = kernel.run("thread.join(); print(json.dumps(found))", timeout=3600)
        found: dict[str, Any] = json.loads(reply.text.strip().splitlines()[-1])
    print(json.dumps(figures(found) | {"cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1)}))


def figures(found: dict[str, Any]) -> dict[str, Any]:
    """Of {kind: [(clock, waiting, others, writing), …]}."""
    without = found["nothing"]
    told: dict[str, Any] = {"step_ms": round(20 * statistics.median(each[0] for each in without), 2)}
    for name, blocks in found.items():
        longer = [100 * (a[0] / b[0] - 1) for a, b in zip(blocks, without, strict=True)]
        waiting = statistics.median(100 * (a[1] - b[1]) for a, b in zip(blocks, without, strict=True))
        low, middle, high = (round(value, 1) for value in statistics.quantiles(longer, n=4))
        others, writing = (round(100 * statistics.median(each[k] for each in blocks), 2) for k in (2, 3))
        told[name] = {"clock": [middle, low, high], "waiting": round(waiting, 2), "others": others, "writing": writing}
    return told


if __name__ == "__main__":
    main()
