"""The RAM that a run on a CPU takes: what it holds of no file (anonymous, shared), and with its libraries' files.

    python tests/bench_ram.py MODEL --limit 1 --set '{"adapter": "qlora"}'
    python tests/bench_ram.py MODEL --limit 1 --group --set '{"adapter": "qlora"}'     in a cgroup (v1)

The run's process is looked at every five milliseconds from outside, from before Python starts until it has ended. One
JSON line: MiB at most, and in which state of the run.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

GROUPS = Path("/sys/fs/cgroup/memory")
WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog", "and", "runs", "home"]


def train(given: dict[str, Any]) -> None:
    """Be the process that is measured."""
    import random

    import nbtune
    from nbtune import events

    rows, length, steps = given.pop("rows"), given.pop("length"), given["steps"]
    chance = random.Random(0)
    data = [{"text": " ".join(chance.choices(WORDS, k=length))} for _ in range(rows * steps)]
    usual: dict[str, Any] = {
        "train_on": "all",
        "device": "cpu",
        "data": data,
        "sequence_len": length,
        "batch_size": rows,
    }
    with tempfile.TemporaryDirectory() as runs:
        run = nbtune.finetune({**usual, **given}, name="ram", runs_dir=runs).wait()
        steps_done = [e for e in run.events() if isinstance(e, events.Step)]
        plan = run.plan
        assert plan is not None
        found = {
            "state": run.state, "steps": len(steps_done), "planned_mib": round(plan.peak_bytes / 2**20),
            "activations": plan.activations, "micro": plan.micro_batch_size, "weights": str(plan.weights),
            "threads": plan.threads, "losses": [round(e.loss, 4) for e in steps_done],
            "seconds": [round(e.seconds, 2) for e in steps_done],
        }  # fmt: skip
    print("FOUND " + json.dumps(found), flush=True)


def held(pid: int) -> tuple[float, float]:
    """Return a process's MiB of no file, and all that is resident."""
    try:
        lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        own = sum(int(lines[name].split()[0]) for name in ("RssAnon", "RssShmem"))
        return own / 1024, int(lines["VmRSS"].split()[0]) / 1024
    except (OSError, KeyError, ValueError):
        return 0.0, 0.0


def measure(args: argparse.Namespace, given: dict[str, Any]) -> dict[str, Any]:
    group = GROUPS / f"nbtune-ram-{os.getpid()}"
    if args.group:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(int(args.limit * 2**30)))
    join = (lambda: (group / "cgroup.procs").write_text(str(os.getpid()))) if args.group else None
    command = [sys.executable, __file__, "child", "--set", json.dumps(given)]
    try:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=join)
        most, whole, when, began = 0.0, 0.0, 0.0, time.time()
        while child.poll() is None:
            own, resident = held(child.pid)
            whole = max(whole, resident)
            if own > most:
                most, when = own, time.time() - began
            time.sleep(0.005)
        out = child.stdout.read() if child.stdout else ""
        found = next((json.loads(line[6:]) for line in out.splitlines() if line.startswith("FOUND ")), {})
        of_group = {}
        if args.group:
            read = {name: int((group / f"memory.{name}").read_text()) for name in ("max_usage_in_bytes", "failcnt")}
            of_group = {"group_most_mib": round(read["max_usage_in_bytes"] / 2**20), "group_refused": read["failcnt"]}
        seconds = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
        return {"own_mib": round(most), "at_s": round(when, 1), "took_s": round(time.time() - began, 1),
                "cpu_s": round(seconds, 1), "resident_mib": round(whole), "limit_mib": args.limit * 1024,
                "rc": child.returncode, **of_group, **found}  # fmt: skip
    finally:
        if args.group:
            group.rmdir()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--limit", type=float, default=1.0, help="GiB")
    parser.add_argument("--group", action="store_true", help="a cgroup holds the process to the limit")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--set", default="{}", help="more of the spec, JSON")
    args = parser.parse_args()
    if args.model == "child":
        train(json.loads(args.set))
        return
    given = {"model": args.model, "rows": args.rows, "length": args.length, "steps": args.steps}
    given |= {"memory": {"ram_gib": args.limit}, **json.loads(args.set)}
    print(
        json.dumps({"model": args.model, "rows": args.rows, "length": args.length, **measure(args, given)}), flush=True
    )


if __name__ == "__main__":
    main()
