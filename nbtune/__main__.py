"""`python -m nbtune`: the command line."""

import sys

from nbtune.cli import main

if __name__ == "__main__":
    sys.exit(main())
