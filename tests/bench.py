"""`make bench`: what this machine can measure. Nothing here passes or fails.

Every `bench_*.py` below tests/ and kernels/benchmarks/ that has a `main()` is run after the import times.
"""

from __future__ import annotations

import importlib.util
import statistics
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
TIMES = 7

_LOAD = """
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
"""
_IMPORTS = {
    "import nbtune": ("", "import nbtune"),
    "%load_ext nbtune": (_LOAD, "shell.run_line_magic('load_ext', 'nbtune')"),
}


def seconds(before: str, measured: str) -> float:
    """Median of the times that a statement takes, each in a new Python."""
    code = f"import time\n{before}\nstart = time.perf_counter()\n{measured}\nprint(time.perf_counter() - start)"
    taken = []
    for _ in range(TIMES):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        taken.append(float(done.stdout.split()[-1]))
    return statistics.median(taken)


def main() -> None:
    """Print what was measured, as Markdown."""
    print("| what | median |\n|---|---|")
    for name, (before, measured) in _IMPORTS.items():
        print(f"| `{name}` | {seconds(before, measured) * 1000:.0f} ms |", flush=True)
    for path in sorted((REPO / "tests").rglob("bench_*.py")):
        print(f"\n## {path.relative_to(REPO)}\n", flush=True)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.main()


if __name__ == "__main__":
    sys.path[:0] = [str(REPO), str(REPO / "kernels")]
    main()
