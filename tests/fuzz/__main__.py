"""The hunt: two processes at a time, each told seed after seed; what dies, hangs or grows is found from outside."""

from __future__ import annotations

import argparse
import json
import os
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.fuzz.cases import FINE, KINDS, Verdict, trial
from tests.fuzz.waiting import OwnTime

SECONDS = 10.0  # of a case, see `OwnTime`
GROWTH = 2 << 30  # bytes of RAM by which a case may raise its process
SHARES = {
    "specs": 20_000,
    "rows": 1_000,
    "models": 500,
    "runs": 300,
    "trained": 300,
    "gguf": 1_000,
    "held": 1_000,
    "pairs": 200,
}  # what half an hour must reach
FIRST = 120.0  # more, of a process's first case of a kind: it imports torch and trains what it will damage
ALLOWANCE = {"pairs": 120.0}  # a case of which is several runs


def child() -> None:
    """Try what is asked for, a line a case: {"kind", "seed"}; the first line says that all is imported."""
    import torch

    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")  # a library in another language writes to the first one, too
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["again"]:  # what a process does once is no part of the case's time
            _tried(asked["kind"], asked["seed"] + 1)
            answers.write('{"warm": true}\n')
            answers.flush()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        verdict = _tried(asked["kind"], asked["seed"])
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
        answers.write(json.dumps({**asdict(verdict), "grown": grown}) + "\n")
        answers.flush()


def _tried(kind: str, seed: int) -> Verdict:
    folder = Path(tempfile.mkdtemp(prefix="nbtune-fuzz-case-"))
    verdict = trial(kind, seed, folder)
    shutil.rmtree(folder, ignore_errors=True)
    return verdict


class Hunter:
    """A child process and the case that it is at."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        self.case: tuple[str, int] = ("", 0)
        self.time = OwnTime(0)
        self.begun: set[str] = set()  # kinds of which this process has tried one
        self.first = self.again = False

    def give(self, kind: str, seed: int, *, again: bool = False) -> None:
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.fuzz", "--child"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            )  # fmt: skip
            self.begun = set()
        assert self.process.stdin is not None
        self.case, self.time = (kind, seed), OwnTime(self.process.pid)
        self.first, self.again = kind not in self.begun, again
        self.process.stdin.write(json.dumps({"kind": kind, "seed": seed, "again": again}) + "\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any] | None:
        """Return how the case ended; None while it goes on."""
        assert self.process is not None
        assert self.process.stdout is not None
        if select.select([self.process.stdout], [], [], 0.0)[0]:
            line = self.process.stdout.readline()
            self.begun.add(self.case[0])
            found = json.loads(line) if line else {}
            if found.get("warm"):
                self.time, self.first = OwnTime(self.process.pid), False
                return None
            if found:
                return found  # type: ignore[no-any-return]
            self.end()
            return {"outcome": "died", "said": "the process is gone", "given": "", "grown": 0}
        allowed = ALLOWANCE.get(self.case[0], SECONDS) + (FIRST if self.first else 0.0)
        if self.time.seconds() < allowed:
            return None
        self.end()
        return {"outcome": "hang", "said": f"over {allowed:.0f} s of its own", "given": "", "grown": 0}

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self.process = None


def next_of(kinds: list[str], given: Mapping[str, int]) -> str:
    """Return the kind that is furthest from its share."""
    return min(kinds, key=lambda name: given.get(name, 0) / SHARES[name])


def reached(done: Mapping[str, int]) -> str:
    """Return how many of each kind were tried, beside what half an hour must reach."""
    tried = {kind: sum(count for name, count in done.items() if name.split()[0] == kind) for kind in SHARES}
    return "; ".join(f"{kind} {count:,} of {SHARES[kind]:,}" for kind, count in tried.items() if count)


def hunt(kinds: list[str], seconds: float, first: int, out: Path | None) -> Counter[str]:
    """Try cases of these kinds in the shares of `SHARES` until the time is over; print what was found."""
    hunters = [Hunter(), Hunter()]
    done: Counter[str] = Counter()
    given: Counter[str] = Counter()
    over = time.monotonic() + seconds
    busy: dict[int, Hunter] = {}
    slowest: dict[str, tuple[float, int]] = {}
    while busy or time.monotonic() < over:
        for number, hunter in enumerate(hunters):
            if number not in busy and time.monotonic() < over:
                kind = next_of(kinds, given)
                hunter.give(kind, first + given[kind])
                given[kind] += 1
                busy[number] = hunter
            elif number in busy and (found := hunter.answer()) is not None:
                if found["outcome"] == "hang" and not hunter.again:
                    # a machine that is busy with others makes any case slow: what hangs does so twice
                    print(f"{hunter.case[0]} {hunter.case[1]}: {found['said']}; once more", flush=True)
                    hunter.give(*hunter.case, again=True)
                    continue
                del busy[number]
                if not hunter.first:
                    took = (hunter.time.seconds(), hunter.case[1])
                    slowest[hunter.case[0]] = max(slowest.get(hunter.case[0], (0.0, 0)), took)
                _count(hunter.case, found, done, out)
        time.sleep(0.0005)
    for hunter in hunters:
        hunter.end()
    print("slowest: " + "; ".join(f"{kind} {seed}: {took:.1f} s" for kind, (took, seed) in sorted(slowest.items())))
    return done


def _count(case: tuple[str, int], found: dict[str, Any], done: Counter[str], out: Path | None) -> None:
    outcome = "memory" if found["grown"] > GROWTH else found["outcome"]
    done[f"{case[0]} {outcome}"] += 1
    if outcome not in FINE:
        print(f"{case[0]} {case[1]}: {outcome}: {found['said'][-700:]}", flush=True)
        print(f"    given: {found['given'][:300]!r}", flush=True)
        if out is not None:
            with out.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"kind": case[0], "seed": case[1], **found, "outcome": outcome}) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("--seed", type=int, default=0, help="of the first case; the others follow")
    parser.add_argument("--only", default=",".join(KINDS))
    parser.add_argument("--out", type=Path, help="a JSON line for each finding")
    parser.add_argument("--child", action="store_true")
    asked = parser.parse_args()
    if asked.child:
        child()
        return 0
    done = hunt(asked.only.split(","), asked.seconds, asked.seed, asked.out)
    print("tried: " + reached(done))
    print("; ".join(f"{name}: {count}" for name, count in sorted(done.items())))
    return 0 if all(name.split()[1] in FINE for name in done) else 1


if __name__ == "__main__":
    sys.exit(main())
