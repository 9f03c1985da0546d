"""`python -m nbtune.engine RUN_DIR`: the engine in a process of its own."""

import sys
from pathlib import Path

from nbtune.engine.lone_worker import WITH_PARENT
from nbtune.engine.worker import main

if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), with_parent=WITH_PARENT in sys.argv[2:]))
