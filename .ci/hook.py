"""A module of `.venv`'s Python, run on a commit's files: what .pre-commit-config.yaml calls, on every system, no shell.

    python .ci/hook.py ruff check --fix FILE …

Any Python that is called `python` will do (an activated .venv has one); the tools themselves are those of .venv.
"""

from __future__ import annotations

import subprocess
import sys

from setup import PYTHON, REPO


def main(words: list[str]) -> int:
    if not PYTHON.is_file():
        print(f"{PYTHON.relative_to(REPO)} is missing: run `make setup`, or `python .ci/setup.py`", file=sys.stderr)
        return 1
    return subprocess.run([str(PYTHON), "-m", *words], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
