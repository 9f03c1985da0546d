"""Plants each bug of the table in a copy of the tree and runs the tests that must see it: ``make mutants``.

    python -m tests.mutants.run                       all of them, two at a time
    python -m tests.mutants.run no-weight-decay …     these
    python -m tests.mutants.run --file train/loop.py  those of a file

A mutant is killed where a test fails (the first that does ends it), and survives where all pass. Exit code 0: at least
95 of 100 were killed. Before it, the same tests run on the copy as it is: what fails without a bug says nothing of one.
"""

from __future__ import annotations

import argparse
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.mutants.mutant import Mutant
from tests.mutants.table import MUTANTS

REPO = Path(__file__).resolve().parents[2]
COPIED = ("nbtune", "kernels", "tests", "pyproject.toml", "docs", "README.md", "CONTRIBUTING.md", ".ci")
LINKED = ("js", "example_notebooks", ".venv")
BAR = 0.95
PATIENCE = 600  # seconds for the tests of one mutant: a bug may hang them
KILLED, SURVIVED, BROKEN = "killed", "survived", "broken"


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant: `killed`, `survived`, or `broken`: its tests could not be run."""

    mutant: Mutant
    state: str
    said: str
    seconds: float


class Tree:
    """A copy of the tree, in which one bug at a time is planted."""

    def __init__(self, root: Path) -> None:
        self.root, self._time = root, time.time()
        for name in COPIED:
            source = REPO / name
            if source.is_dir():
                shutil.copytree(source, root / name, ignore=shutil.ignore_patterns("__pycache__", ".hypothesis"))
            elif source.is_file():
                shutil.copy2(source, root / name)
        for name in LINKED:
            if (REPO / name).exists():
                (root / name).symlink_to((REPO / name).resolve())

    def try_out(self, mutant: Mutant) -> Outcome:
        """Plant a bug, run its tests, take it away again."""
        path, began = self.root / mutant.file, time.monotonic()
        text = path.read_text(encoding="utf-8")
        self._write(path, mutant.planted(text))
        try:
            code, said = self.test(mutant.tests)
        finally:
            self._write(path, text)
        state = {0: SURVIVED, 1: KILLED, 2: KILLED, -signal.SIGKILL: KILLED}.get(code, BROKEN)
        return Outcome(mutant, state, said, time.monotonic() - began)

    def test(self, tests: Sequence[str]) -> tuple[int, str]:
        """Run tests up to the first that fails; return pytest's exit code and its last lines."""
        chosen = ["-m", "not slow and not gpu and not browser", "-x", "-q", "-p", "no:cacheprovider"]
        others = filter(None, [os.environ.get("PYTHONPATH")])  # where libraries may lie
        path = os.pathsep.join([str(self.root), str(self.root / "kernels"), *others])
        environment = {**os.environ, "PYTHONPATH": path}
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", *chosen, *tests],
            cwd=self.root,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return -signal.SIGKILL, f"nothing came of it in {PATIENCE} s"
        lines = [line for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))] or output.splitlines()[
            -8:
        ]
        return process.returncode, "\n".join(lines)

    def _write(self, path: Path, text: str) -> None:
        """Write a file with a time of its own: compiled code of the text before is not taken for its."""
        path.write_text(text, encoding="utf-8")
        self._time += 10
        os.utime(path, (self._time, self._time))


def try_all(mutants: Sequence[Mutant], parallel: int) -> list[Outcome]:
    """Try mutants out, some at a time, each line said as it comes."""
    waiting: queue.SimpleQueue[Mutant] = queue.SimpleQueue()
    for mutant in mutants:
        waiting.put(mutant)
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="nbtune-mutants-") as folder:

        def work(number: int) -> None:
            tree = Tree(Path(folder) / str(number))
            while True:
                try:
                    mutant = waiting.get_nowait()
                except queue.Empty:
                    return
                outcome = tree.try_out(mutant)
                outcomes.append(outcome)
                say(outcome, len(outcomes), len(mutants))

        for number in range(parallel):
            (Path(folder) / str(number)).mkdir()
        threads = [threading.Thread(target=work, args=(number,)) for number in range(parallel)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return outcomes


def say(outcome: Outcome, number: int, of: int) -> None:
    """Print a line of an outcome, and why where it was not killed."""
    print(f"{number:4}/{of} {outcome.state:8} {outcome.seconds:5.0f} s  {outcome.mutant.name}", flush=True)
    if outcome.state != KILLED:
        print(f"          {outcome.mutant.file}: {outcome.mutant.old!r} -> {outcome.mutant.new!r}")
        print("          " + outcome.said.replace("\n", "\n          "), flush=True)


def sound(mutants: Sequence[Mutant]) -> bool:
    """Return whether the tests pass without any bug."""
    tests = sorted({test for mutant in mutants for test in mutant.tests})
    whole = {test for test in tests if "::" not in test}
    with tempfile.TemporaryDirectory(prefix="nbtune-mutants-") as folder:
        code, said = Tree(Path(folder)).test(
            [test for test in tests if test in whole or test.split("::")[0] not in whole]
        )
    if code:
        print(f"these tests fail without a bug:\n{said}")
    return code == 0


def main(arguments: Sequence[str]) -> int:
    """Return 0 where enough was killed, 1 where not, 2 where the tests themselves fail."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants.run")
    parser.add_argument("names", nargs="*", help="these mutants; all by default")
    parser.add_argument("--file", default="", help="those of a file, such as train/loop.py")
    parser.add_argument("--parallel", type=int, default=2, help="so many at a time (default 2)")
    parser.add_argument("--believe", action="store_true", help="that the tests pass without a bug")
    asked = parser.parse_args(arguments)
    chosen = [m for m in MUTANTS if m.file.endswith(asked.file) and (not asked.names or m.name in asked.names)]
    if unknown := {*asked.names} - {m.name for m in MUTANTS}:
        parser.error(f"no such mutant: {', '.join(sorted(unknown))}")
    if not asked.believe and not sound(chosen):
        return 2
    outcomes = try_all(chosen, asked.parallel)
    killed = sum(outcome.state == KILLED for outcome in outcomes)
    left = sorted(outcome.mutant.name for outcome in outcomes if outcome.state != KILLED)
    print(f"{killed} of {len(outcomes)} killed" + (f"; not: {', '.join(left)}" if left else ""))
    return 0 if killed >= BAR * len(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
