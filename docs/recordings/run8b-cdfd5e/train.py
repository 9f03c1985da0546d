"""Trains this run again: same spec, same rows, same losses. Needs nothing but this folder and nbtune."""

from pathlib import Path

import nbtune

if __name__ == "__main__":
    run = nbtune.repeat(Path(__file__).parent).wait()
    print(run.folder)
