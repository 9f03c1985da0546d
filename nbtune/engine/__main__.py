"""`python -m nbtune.engine RUN_DIR`: the engine in a process of its own."""

import sys
from pathlib import Path

from nbtune.engine.engine import main

if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
